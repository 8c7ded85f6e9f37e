"""CODEC: what hidden units contribute to an output, decomposed into modes, controlled, and mapped to the input."""

from backlight.contributions.algorithms import (
    ALGORITHMS,
    ActGrad,
    ActNormGrad,
    Algorithm,
    HiddenIntegratedGradients,
    InputGrad,
    SmoothGrad,
    as_algorithm,
)
from backlight.contributions.collector import ContributionCollector
from backlight.contributions.contribution import Contributions, contribute
from backlight.contributions.layer_statistics import StoreStatistics, store_statistics
from backlight.contributions.reduction import Layout, Signed, layout_of, reduce
from backlight.contributions.sites import default_sites

__all__ = [
    "ALGORITHMS",
    "ActGrad",
    "ActNormGrad",
    "Algorithm",
    "ContributionCollector",
    "Contributions",
    "HiddenIntegratedGradients",
    "InputGrad",
    "Layout",
    "Signed",
    "SmoothGrad",
    "StoreStatistics",
    "as_algorithm",
    "contribute",
    "default_sites",
    "layout_of",
    "reduce",
    "store_statistics",
]
