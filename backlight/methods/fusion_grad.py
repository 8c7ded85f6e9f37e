"""FusionGrad: the mean gradient under weight noise and input noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from backlight.engine.paths import WeightNoise
from backlight.methods.method import Method


@dataclass(kw_only=True)
class FusionGrad(Method):
    """The mean gradient over noisy weights and noisy inputs: every parameter times N(1, weight_stdev^2)."""

    source: ClassVar[str] = "Bykov et al. 2022"
    formula: ClassVar[str] = "mean over weight draws and n of grad s_w(x + n)"
    passes: ClassVar[str] = "n_weights * n_samples"

    n_weights: int = 10
    n_samples: int = 10
    weight_stdev: float = 0.1
    stdev: float = 0.15
    seed: int = 0

    def path(self) -> WeightNoise:
        return WeightNoise(self.n_weights, self.n_samples, self.weight_stdev, self.stdev, self.seed)
