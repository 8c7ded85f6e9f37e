"""The engine: five slots (target, rules, path, site, readout) and `attribute`, which composes them."""

from backlight.engine.attribution import Attribution, attribute
from backlight.engine.checkpointing import checkpointed
from backlight.engine.coverage import Coverage, CoverageRow
from backlight.engine.evaluation import Cost
from backlight.engine.paths import Ascent, Line, Noise, Point, WeightNoise
from backlight.engine.readouts import READOUTS
from backlight.engine.rules import GRADIENT, Call, Rule, RuleSet
from backlight.engine.run import Run, running
from backlight.engine.sites import Site, captured, edited, patched
from backlight.engine.surprisal import Surprisal
from backlight.engine.targets import (
    Contrast,
    Entropy,
    Function,
    Logit,
    LogProbability,
    Probability,
    Target,
    TopK,
    Unit,
    as_target,
)
from backlight.engine.token_targets import At, SpanLoss

__all__ = [
    "GRADIENT",
    "READOUTS",
    "Ascent",
    "At",
    "Attribution",
    "Call",
    "Contrast",
    "Cost",
    "Coverage",
    "CoverageRow",
    "Entropy",
    "Function",
    "Line",
    "LogProbability",
    "Logit",
    "Noise",
    "Point",
    "Probability",
    "Rule",
    "RuleSet",
    "Run",
    "Site",
    "SpanLoss",
    "Surprisal",
    "Target",
    "TopK",
    "Unit",
    "WeightNoise",
    "as_target",
    "attribute",
    "captured",
    "checkpointed",
    "edited",
    "patched",
    "running",
]
