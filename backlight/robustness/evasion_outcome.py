"""What an evasion attack came to: pictures, outputs, how far they moved."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from backlight.robustness.outcome import PredictionChange
from backlight.shapes import Bool, Float, Int

if TYPE_CHECKING:
    from backlight.robustness.evasion import Adversary

LEVELS = 255  # steps of an 8-bit channel


@dataclass(frozen=True)
class Evasion:
    """The outcome of `evade`, for N pictures.

    `image`, `original`: pictures in [0, 1], `[N, C, H, W]`; `inputs`: the former as the network takes it, for maps and
    graphs. `label`: `[N]`, the class to be left; `to`: the one to be reached, or None. `prediction`: the outputs of the
    network before and after. `losses`: `[n_steps, N]`, what the attack descends, at the point each step started from;
    NaN after a picture has stopped. `steps`: `[N]`, how many were taken.
    """

    image: Float[Tensor, "N *shape"]
    original: Float[Tensor, "N *shape"]
    inputs: Float[Tensor, "N *shape"]
    label: Int[Tensor, "N"]
    to: Int[Tensor, "N"] | None
    prediction: PredictionChange
    losses: Float[Tensor, "steps N"]
    steps: Int[Tensor, "N"]
    adversary: Adversary

    @property
    def reached(self) -> Bool[Tensor, "N"]:
        """Whether the network now sees the class `to`; without one, whether it sees another than `label`."""
        found = self.prediction.after.argmax(1)
        return found != self.label if self.to is None else found == self.to

    @property
    def linf(self) -> Float[Tensor, "N"]:
        """The largest change of a channel of a pixel, in [0, 1]: 1/255 is one level of an 8-bit picture."""
        return self._change.abs().amax(1)

    @property
    def l2(self) -> Float[Tensor, "N"]:
        """The l2 norm of the change over all entries, with pictures in [0, 1]."""
        return self._change.norm(dim=1)

    @property
    def changed(self) -> Float[Tensor, "N"]:
        """The share of entries that changed at all."""
        return (self._change != 0).double().mean(1)

    def probability(self, index: Int[Tensor, "N"]) -> tuple[Float[Tensor, "N"], Float[Tensor, "N"]]:
        """The softmax probability of a class for each picture: before, and after."""
        column = index.to(self.image.device).unsqueeze(1)
        before, after = (
            outputs.double().softmax(1).gather(1, column).squeeze(1)
            for outputs in (self.prediction.before, self.prediction.after)
        )
        return before, after

    @property
    def _change(self) -> Float[Tensor, "N entries"]:
        return (self.image.double() - self.original.double()).flatten(1)


def levels(pictures: Float[Tensor, "N *shape"]) -> Float[Tensor, "N *shape"]:
    """Pictures in [0, 1] in the whole numbers of 8-bit ones, in float64: what saving them as PNG keeps."""
    return (pictures.double() * LEVELS).round().clamp(0, LEVELS)


def of_levels(whole: Float[Tensor, "N *shape"], like: Tensor) -> Float[Tensor, "N *shape"]:
    """8-bit pictures in [0, 1], bit for bit what `Preprocessing.image` gives of them."""
    return whole.to(torch.promote_types(like.dtype, torch.float32)).div(LEVELS).to(like.dtype)
