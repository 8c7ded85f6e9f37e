"""SmoothGrad: the mean gradient under input noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from backlight.engine.paths import Noise
from backlight.methods.method import Method


@dataclass(kw_only=True)
class SmoothGrad(Method):
    """The mean gradient over Gaussian noise on the input; `stdev` in units of the input (0.15 for [-1, 1])."""

    source: ClassVar[str] = "Smilkov et al. 2017"
    formula: ClassVar[str] = "mean over n ~ N(0, stdev^2) of grad s(x + n)"
    passes: ClassVar[str] = "n_samples"

    n_samples: int = 50
    stdev: float = 0.15
    seed: int = 0

    def path(self) -> Noise:
        return Noise(self.n_samples, self.stdev, self.seed)
