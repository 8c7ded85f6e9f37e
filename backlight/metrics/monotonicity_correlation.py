"""MonotonicityCorrelation: does the score change more where the map's values are larger?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from backlight.engine.targets import Probability
from backlight.errors import InputError, UnknownNameError
from backlight.metrics.allowed import COUNT, COUNT_OR_NONE, PAIR, Check, one_of
from backlight.metrics.blocks import UNITS, block_drops, map_blocks
from backlight.metrics.case import Case
from backlight.metrics.correlation import spearman
from backlight.metrics.draws import Seed
from backlight.metrics.fills import FILLS, Fill, filled
from backlight.metrics.maps import stacked
from backlight.metrics.metric import Metric
from backlight.metrics.scorer import BATCH_SIZE, Scorer
from backlight.shapes import Float

CHANGES = ("square", "drop")


def monotonicity_correlation(
    model: nn.Module | Scorer,
    inputs: Float[Tensor, "N C H W"],
    attributions: Tensor,
    target: Any = None,
    *,
    blocks: int = 48,
    step: int | None = None,
    unit: str = "feature",
    n_draws: int = 10,
    fill: Fill = "uniform",
    low: float = -1.0,
    high: float = 1.0,
    change: str = "square",
    absolute: bool = True,
    seed: Seed = 0,
    batch_size: int = BATCH_SIZE,
) -> Float[Tensor, "*M N"]:
    """Spearman's correlation of block masses with the change of the score where each block alone is replaced.

    Nguyen & Rodriguez Martinez 2020: the units of the input, sorted by the map from small to large, are cut into blocks
    S_1, S_2, ...; the score is rank-corr_k(sum_{S_k} |phi|, mean_d (f(x) - f(x with S_k = u_kd))^2). Higher is better,
    in [-1, 1]; NaN where masses or changes do not vary. Cost: `n_draws` forwards a block and map, and one a sample.

    Quantus divides the change by f(x)^2 where |f(x)| is at least its `eps`: one number a sample, which no correlation
    of this sample sees. So there is neither here.

    Args:
        model: or a `Scorer` of it at these samples: what it has computed for another metric is not computed again.
        attributions: `[N, C, H, W]`, `[N, 1, H, W]`, or either with a leading axis of methods: all methods see the same
            draws, in blocks of their own.
        blocks: how many, of equal size: 48 are the 3136 entries a block of Semantic Pullbacks at 224.
        step: units a block, in place of `blocks`; Quantus's features_in_step.
        unit: "feature": entries of the input, channels apart. "position": positions, all channels together.
        n_draws: replacements of each block.
        fill: what replaces a block, one number in all of it; see `backlight.metrics.fills`. low, high: of "uniform".
        change: "square": the mean squared change. "drop": the mean fall, which tells evidence for from against.
        absolute: sort and sum absolute values, which cannot tell a map from its negative.
        seed: one for all samples, or one a sample.

    Raises:
        UnknownNameError: another change, unit or fill.
        InputError: no draws, or fewer than two blocks.
    """
    if change not in CHANGES:
        raise UnknownNameError("change", change, CHANGES)
    if n_draws < 1:
        raise InputError(f"needs at least 1 draw, got {n_draws}")
    maps, single = stacked(attributions, inputs)
    scorer = Scorer.of(model, inputs, target, batch_size)
    ordered = map_blocks(maps, unit, blocks, step, absolute=absolute, descending=False)
    draws = n_draws if fill == "uniform" else 1  # what is not drawn is the same each time
    fills = filled(fill, scorer.inputs, ordered.count * draws, seed, low, high)
    drops = block_drops(scorer, ordered, fills.reshape(len(fills), -1, draws))
    scores = spearman(ordered.masses, (torch.square(drops) if change == "square" else drops).mean(-1))
    return scores[0] if single else scores


@dataclass(frozen=True, kw_only=True)
class MonotonicityCorrelation(Metric):
    """Rank correlation of a map's block masses with changes of the score; settings as in `monotonicity_correlation`.

    `probability`: the change of the class's softmax probability, whatever the case's target reads.
    """

    source: ClassVar[str] = "Nguyen & Rodriguez Martinez 2020; Semantic Pullbacks, appendix E"
    formula: ClassVar[str] = "Spearman over blocks S_k of the sorted map of (sum_S |phi|, E_u (f(x) - f(x, S = u))^2)"
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "pullbacks": {},
        "signed": {"change": "drop", "absolute": False},
        "quantus": {"step": 1, "n_draws": 100, "low": 0.0, "probability": True},
    }
    allowed: ClassVar[dict[str, Check]] = {
        "blocks": PAIR,
        "step": COUNT_OR_NONE,
        "unit": one_of(UNITS),
        "n_draws": COUNT,
        "fill": one_of(FILLS, others=(int, float)),
        "change": one_of(CHANGES),
    }

    blocks: int = 48
    step: int | None = None
    unit: str = "feature"
    n_draws: int = 10
    fill: Fill = "uniform"
    low: float = -1.0
    high: float = 1.0
    change: str = "square"
    absolute: bool = True
    probability: bool = False

    def __call__(self, case: Case) -> Tensor:
        settings = self.settings()
        probability = settings.pop("probability")
        return monotonicity_correlation(
            case.model if probability else case.scorer,
            case.inputs,
            case.attributions,
            Probability(case.classes) if probability else case.chosen,
            seed=case.seed,
            batch_size=case.batch_size,
            **settings,
        )

    @property
    def sees_sign(self) -> bool:
        return not self.absolute
