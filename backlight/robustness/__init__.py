"""How far explanations move while image and prediction stay: the manipulation attack and its measure."""

from backlight.robustness.attack import PAPER, PRESETS, REFERENCE, Attack
from backlight.robustness.manipulation import manipulate
from backlight.robustness.outcome import Manipulation, PredictionChange
from backlight.robustness.similarity import Similarity, pearson, similarity, ssim
from backlight.robustness.smoothing import Smoothed

__all__ = [
    "PAPER",
    "PRESETS",
    "REFERENCE",
    "Attack",
    "Manipulation",
    "PredictionChange",
    "Similarity",
    "Smoothed",
    "manipulate",
    "pearson",
    "similarity",
    "ssim",
]
