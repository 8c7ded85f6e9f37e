"""CODEC: what hidden units contribute to an output, decomposed into modes, controlled, and mapped to the input."""

from backlight.contributions.algorithms import (
    ALGORITHMS,
    ActGrad,
    ActNormGrad,
    Algorithm,
    HiddenIntegratedGradients,
    as_algorithm,
)
from backlight.contributions.contribution import Contributions, contribute

__all__ = [
    "ALGORITHMS",
    "ActGrad",
    "ActNormGrad",
    "Algorithm",
    "Contributions",
    "HiddenIntegratedGradients",
    "as_algorithm",
    "contribute",
]
