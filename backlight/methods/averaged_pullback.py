"""SmoothPullback, FusionPullback, IntegratedPullback: soft pullbacks on the paths of SmoothGrad, FusionGrad and IG."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from backlight.methods.fusion_grad import FusionGrad
from backlight.methods.integrated_gradients import IntegratedGradients
from backlight.methods.pullback import Softened
from backlight.methods.smooth_grad import SmoothGrad


@dataclass(kw_only=True)
class SmoothPullback(Softened, SmoothGrad):
    """The mean soft pullback over Gaussian noise on the input."""

    source: ClassVar[str] = "Semantic Pullbacks, section 4"
    formula: ClassVar[str] = "mean over n ~ N(0, stdev^2) of the soft pullback at x + n"


@dataclass(kw_only=True)
class FusionPullback(Softened, FusionGrad):
    """The mean soft pullback over noisy weights and noisy inputs."""

    source: ClassVar[str] = "Semantic Pullbacks, section 4"
    formula: ClassVar[str] = "mean over weight draws and n of the soft pullback of s_w at x + n"


@dataclass(kw_only=True)
class IntegratedPullback(Softened, IntegratedGradients):
    """The mean soft pullback on the line from a baseline, times the difference. Claims no completeness."""

    source: ClassVar[str] = "Semantic Pullbacks, reference code of 2026-08"
    formula: ClassVar[str] = "(x - b) * integral_0^1 of the soft pullback at b + t (x - b) dt"
    completeness: ClassVar[str | None] = None
