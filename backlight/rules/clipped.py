"""Deconvnet and guided backpropagation: only positive cotangents pass an activation.

Deconvnet (Zeiler and Fergus 2014): delta_z = max(delta_y, 0). Guided backpropagation (Springenberg et al. 2015):
delta_z = max(delta_y, 0) a'(z), which for ReLU is the product of both masks. The papers know ReLU only; other
activations are answered by the same formulas.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from backlight.engine.rules import Call


@dataclass(frozen=True)
class DeconvnetRule:
    """delta_z = max(delta_y, 0)."""

    label: str = "deconvnet"

    def __call__(self, call: Call) -> Any:
        return call.adjoint(lambda z, y, cotangent: cotangent.clamp(min=0), keep="")


@dataclass(frozen=True)
class GuidedRule:
    """delta_z = max(delta_y, 0) a'(z)."""

    label: str = "guided"

    def __call__(self, call: Call) -> Any:
        result: Tensor = call.original()
        phase = call.run.phase
        result.register_hook(lambda cotangent: cotangent.clamp(min=0) if phase.explaining else cotangent)
        return result
