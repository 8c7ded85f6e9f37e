"""What a dictionary does to rows before it encodes them, and undoes after: codes and modes stay in the rows' units."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from backlight.decompositions.scaling import Moments
from backlight.shapes import Float
from backlight.store.rows import Chosen, Rows, pieces

NORMALISATIONS = ("none", "global", "token")
EPSILON = 1e-5  # beside a row's standard deviation
SAMPLE = 8192  # rows that a median and a mean of means are taken over


@dataclass(frozen=True)
class Normalised:
    """Rows as the encoder sees them: x = `level` + `scale` `rows`."""

    rows: Float[Tensor, "n C"]
    level: Tensor | float
    scale: Tensor | float

    def restored(self, decoded: Float[Tensor, "n C"]) -> Float[Tensor, "n C"]:
        """What normalised rows are in the rows' units."""
        return decoded if isinstance(self.scale, float) else self.level + self.scale * decoded


def normalised(x: Float[Tensor, "n C"], name: str, scale: Tensor | None) -> Normalised:
    """Rows, by a normalisation's name. What rows are divided by has no gradient.

    "global": divided by one number, with which their mean squared length is 1. "token": each row less its mean, and
    divided by its standard deviation (with n - 1) plus 1e-5.
    """
    if name == "global":
        assert scale is not None
        return Normalised(x / scale, 0.0, scale)
    if name == "token":
        with torch.no_grad():
            level = x.mean(1, keepdim=True)
            spread = (x - level).square().sum(1, keepdim=True) / max(x.shape[1] - 1, 1)
            own = spread.sqrt() + EPSILON
        return Normalised((x - level) / own, level, own)
    return Normalised(x, 0.0, 1.0)


def root_mean_square(found: Moments) -> float:
    """The root of the rows' mean squared length; 1 where all rows are 0."""
    square = float(found.squares.sum() / found.n + found.mean.square().sum())
    return square**0.5 or 1.0


def sampled(rows: Rows, draw: torch.Generator) -> Float[Tensor, "n C"]:
    """`SAMPLE` of the rows, or all of fewer."""
    if rows.shape[0] > SAMPLE:
        rows = Chosen(rows, torch.randperm(rows.shape[0], generator=draw)[:SAMPLE].sort().values.numpy())
    return torch.cat([piece for _, piece in pieces(rows)])


def geometric_median(x: Float[Tensor, "n C"], rounds: int = 100, tolerance: float = 1e-7) -> Float[Tensor, "C"]:
    """The point with the least sum of distances to rows, by Weiszfeld's iteration from their mean, in float64."""
    wide = x.double()
    found = wide.mean(0)
    for _ in range(rounds):
        distance = (wide - found).norm(dim=1).clamp(min=1e-12)
        moved = (wide / distance[:, None]).sum(0) / (1 / distance).sum()
        if float((moved - found).norm()) <= tolerance * float(found.norm()):
            break
        found = moved
    return found.to(x.dtype)
