"""The settings of the manipulation attack, and the two sets of them that were published."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from backlight.errors import InputError, UnknownNameError
from backlight.robustness.smoothing import schedule
from backlight.shapes import Float

NORMS, OUTPUTS, POOLS = ("sum", "mean"), ("logits", "softmax"), ("sum_abs", "abs_sum")


@dataclass(frozen=True)
class Attack:
    """L = a |phi(x_adv) - phi_target|^2 + b |F(x_adv) - F(x)|^2, minimised by Adam (Kingma and Ba 2015) from x.

    - `explanation_weight`, `output_weight`: a and b. `norm`: squares are summed (`sum`) or averaged (`mean`) over the
      positions of a map and over the entries of an output.
    - `output`: F, the model's `logits`, or their `softmax`. `smooth_output`: F is that of the smoothed network at the
      step's beta, as the map is; otherwise F is the network's own. F(x) is always the network's own.
    - `pool`: how channels become one, the sum of absolute values (`sum_abs`) or the absolute sum (`abs_sum`).
      `normalise`: phi is divided by its sum.
    - `lr`: Adam's rate, in units of the input. `n_steps`: the most steps.
    - `stop_mse`: a sample stops when the mean squared difference of x_adv and x, in units of the input, reaches it.
    - `bound`: the most that a channel of a pixel changes, in pixel units, where an image has values in [0, 1].
      `clamp`: keep x_adv in the box of valid images.
    - `beta`: of the softplus that takes the place of ReLUs while the attack runs (`backlight.robustness.Smoothed`): a
      number, a pair (first, last) that grows geometrically, None for no smoothing; "auto": (10, 100) where the method
      passes a kink by a rule that is a step there, None elsewhere. Maps are always reported of the network as it is.

    Raises:
        InputError, UnknownNameError: a setting out of its range.
    """

    explanation_weight: float = 1e11
    output_weight: float = 1e6
    lr: float = 1e-3
    n_steps: int = 1500
    norm: str = "sum"
    output: str = "logits"
    smooth_output: bool = False
    pool: str = "sum_abs"
    normalise: bool = True
    stop_mse: float | None = None
    bound: float | None = None
    clamp: bool = True
    beta: float | tuple[float, float] | str | None = "auto"

    def __post_init__(self) -> None:
        choices = (("norm", NORMS), ("output", OUTPUTS), ("pool", POOLS))
        for name, known in choices:
            if getattr(self, name) not in known:
                raise UnknownNameError(name, getattr(self, name), known)
        for name in ("explanation_weight", "output_weight"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(f"{name} is a finite number, 0 at least, got {getattr(self, name)}")
        for name in ("lr", "stop_mse", "bound"):
            if getattr(self, name) is not None and not 0 < getattr(self, name) < math.inf:
                raise InputError(f"{name} is positive and finite, got {getattr(self, name)}")
        if self.n_steps < 1:
            raise InputError(f"n_steps must be at least 1, got {self.n_steps}")
        if isinstance(self.beta, str):
            if self.beta != "auto":
                raise UnknownNameError("beta", self.beta, ["auto"], "or a number, a pair, None")
        else:
            schedule(self.beta, 0, 1)

    def with_settings(self, **settings: Any) -> Attack:
        """The same attack with other settings.

        Raises:
            UnknownNameError: a setting that there is none of.
        """
        names = [field.name for field in fields(self)]
        for name in settings:
            if name not in names:
                raise UnknownNameError("setting of an attack", name, names)
        return replace(self, **settings)

    def reduced(self, h: Float[Tensor, "N *shape"]) -> Float[Tensor, "N *space"]:
        """phi, the map of an attribution `[N, C, *space]`, of at least single precision; `[N, D]` has no channels."""
        h = h.to(torch.promote_types(h.dtype, torch.float32))
        if h.ndim > 2 and self.pool == "abs_sum":
            h = h.sum(1)
        h = h.abs().sum(1) if h.ndim > 2 and self.pool == "sum_abs" else h.abs()
        return self.normalised(h) if self.normalise else h

    def normalised(self, phi: Float[Tensor, "N *space"]) -> Float[Tensor, "N *space"]:
        """Divided by its sum; a map of zeros stays one."""
        total = phi.flatten(1).sum(1).reshape(-1, *(1,) * (phi.ndim - 1))
        return phi / torch.where(total > 0, total, 1)

    def read(self, outputs: Float[Tensor, "N *K"]) -> Float[Tensor, "N *K"]:
        """F, from the model's outputs."""
        outputs = outputs.to(torch.promote_types(outputs.dtype, torch.float32))
        return outputs.softmax(1) if self.output == "softmax" else outputs

    def distance(self, a: Float[Tensor, "N *shape"], b: Float[Tensor, "N *shape"]) -> Float[Tensor, "N"]:
        """|a - b|^2 of each sample, summed or averaged."""
        squares = (a - b).square().flatten(1)
        return squares.sum(1) if self.norm == "sum" else squares.mean(1)


# Kim, Han, Kwak 2026 (iERF). Unstated there, and chosen here: Adam, n_steps, that phi sums to 1, that x_adv is a valid
# image, and what takes the place of a ReLU's second derivative.
PAPER = Attack(
    explanation_weight=1e11, output_weight=1e6, lr=1e-3, norm="sum", output="logits", stop_mse=1e-3, bound=8 / 255
)
# the public code of Dombrowski et al. 2019
REFERENCE = Attack(
    explanation_weight=1e11,
    output_weight=1e6,
    lr=2e-4,
    n_steps=1500,
    norm="mean",
    output="softmax",
    smooth_output=True,
)
PRESETS = {"paper": PAPER, "reference": REFERENCE}


def as_attack(preset: str | Attack, **settings: Any) -> Attack:
    """A preset by name, or an attack, with other settings where given.

    Raises:
        UnknownNameError: a preset or a setting that there is none of.
    """
    if not isinstance(preset, Attack):
        if preset not in PRESETS:
            raise UnknownNameError("preset", preset, PRESETS)
        preset = PRESETS[preset]
    return preset.with_settings(**settings)
