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
from backlight.contributions.correlation import correlate
from backlight.contributions.input_decomposition import (
    INPUT_DECOMPOSITIONS,
    ActGradMaps,
    InputDecomposition,
    InputGradMaps,
    IntegratedGradientsMaps,
)
from backlight.contributions.layer_statistics import StoreStatistics, store_statistics
from backlight.contributions.maps import ContributionMaps, contribution_maps
from backlight.contributions.modes import Modes, describe, top_channels
from backlight.contributions.reduction import Layout, Signed, layout_of, reduce
from backlight.contributions.sites import default_sites

__all__ = [
    "ALGORITHMS",
    "INPUT_DECOMPOSITIONS",
    "ActGrad",
    "ActGradMaps",
    "ActNormGrad",
    "Algorithm",
    "ContributionCollector",
    "ContributionMaps",
    "Contributions",
    "HiddenIntegratedGradients",
    "InputDecomposition",
    "InputGrad",
    "InputGradMaps",
    "IntegratedGradientsMaps",
    "Layout",
    "Modes",
    "Signed",
    "SmoothGrad",
    "StoreStatistics",
    "as_algorithm",
    "contribute",
    "contribution_maps",
    "correlate",
    "default_sites",
    "describe",
    "layout_of",
    "reduce",
    "store_statistics",
    "top_channels",
]
