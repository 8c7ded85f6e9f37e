"""The retina: simulate one, fit a network to its spikes, and find the modes of interneurons that drive its cells.

from backlight.retina import RetinaSimulator, analyse_retina, fit_retina
"""

from backlight.retina.analysis import SITES, SITES_AFTER, RetinaAnalysis, SiteModes, analyse_retina, surprisal
from backlight.retina.clusters import CellClusters, cell_modes, cluster_cells
from backlight.retina.combinations import Combination, combinations, examples
from backlight.retina.fitting import FitSettings, FittedRetina, fit_retina, open_fitted, score_retina
from backlight.retina.receptive_fields import receptive_fields, space_time
from backlight.retina.recording import Recording, noise_ceiling
from backlight.retina.simulator import CELL_TYPES, RetinaSimulator

__all__ = [
    "CELL_TYPES",
    "SITES",
    "SITES_AFTER",
    "CellClusters",
    "Combination",
    "FitSettings",
    "FittedRetina",
    "Recording",
    "RetinaAnalysis",
    "RetinaSimulator",
    "SiteModes",
    "analyse_retina",
    "cell_modes",
    "cluster_cells",
    "combinations",
    "examples",
    "fit_retina",
    "noise_ceiling",
    "open_fitted",
    "receptive_fields",
    "score_retina",
    "space_time",
    "surprisal",
]
