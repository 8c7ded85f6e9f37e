"""Attacks: on explanations while image and prediction stay, and on predictions while the image seems to stay."""

from backlight.robustness.attack import PAPER, PRESETS, REFERENCE, Attack
from backlight.robustness.evasion import Adversary, evade
from backlight.robustness.evasion_outcome import Evasion
from backlight.robustness.evasion_picture import framed
from backlight.robustness.manipulation import manipulate
from backlight.robustness.outcome import Manipulation, PredictionChange
from backlight.robustness.similarity import Similarity, pearson, similarity, ssim
from backlight.robustness.smoothing import Smoothed

__all__ = [
    "PAPER",
    "PRESETS",
    "REFERENCE",
    "Adversary",
    "Attack",
    "Evasion",
    "Manipulation",
    "PredictionChange",
    "Similarity",
    "Smoothed",
    "evade",
    "framed",
    "manipulate",
    "pearson",
    "similarity",
    "ssim",
]
