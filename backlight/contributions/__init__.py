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
from backlight.contributions.control import ChannelEdit, control, site_means, site_values
from backlight.contributions.control_curves import ControlCurves
from backlight.contributions.control_export import controlled, folded, save_program
from backlight.contributions.control_statistics import ControlStatistics
from backlight.contributions.control_study import ControlStudy, control_study
from backlight.contributions.correlation import correlate
from backlight.contributions.decompose import Decomposed, decompose, open_decomposed
from backlight.contributions.input_decomposition import (
    INPUT_DECOMPOSITIONS,
    ActGradMaps,
    InputDecomposition,
    InputGradMaps,
    IntegratedGradientsMaps,
)
from backlight.contributions.layer_statistics import StoreStatistics, store_statistics
from backlight.contributions.map_display import DISPLAYS, Display, display_mask, map_masks, masked
from backlight.contributions.map_faithfulness import MapFaithfulness, map_faithfulness
from backlight.contributions.maps import ContributionMaps, contribution_maps
from backlight.contributions.mode_sets import ChannelSet, class_sets, mode_sets
from backlight.contributions.modes import Modes, describe, top_channels
from backlight.contributions.reduction import Layout, Signed, layout_of, reduce
from backlight.contributions.sites import default_sites
from backlight.decompositions import DECOMPOSITIONS, Decomposition

__all__ = [
    "ALGORITHMS",
    "DECOMPOSITIONS",
    "DISPLAYS",
    "INPUT_DECOMPOSITIONS",
    "ActGrad",
    "ActGradMaps",
    "ActNormGrad",
    "Algorithm",
    "ChannelEdit",
    "ChannelSet",
    "ContributionCollector",
    "ContributionMaps",
    "Contributions",
    "ControlCurves",
    "ControlStatistics",
    "ControlStudy",
    "Decomposed",
    "Decomposition",
    "Display",
    "HiddenIntegratedGradients",
    "InputDecomposition",
    "InputGrad",
    "InputGradMaps",
    "IntegratedGradientsMaps",
    "Layout",
    "MapFaithfulness",
    "Modes",
    "Signed",
    "SmoothGrad",
    "StoreStatistics",
    "as_algorithm",
    "class_sets",
    "contribute",
    "contribution_maps",
    "control",
    "control_study",
    "controlled",
    "correlate",
    "decompose",
    "default_sites",
    "describe",
    "display_mask",
    "folded",
    "layout_of",
    "map_faithfulness",
    "map_masks",
    "masked",
    "mode_sets",
    "open_decomposed",
    "reduce",
    "save_program",
    "site_means",
    "site_values",
    "store_statistics",
    "top_channels",
]
