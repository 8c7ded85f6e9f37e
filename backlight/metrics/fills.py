"""What a removed region is filled with: numbers of each sample, drawn or taken from it."""

from __future__ import annotations

import torch
from torch import Tensor

from backlight.errors import UnknownNameError
from backlight.metrics.draws import Seed, uniform
from backlight.shapes import Float

Fill = float | str
FILLS = ("uniform", "min", "mean", "max")


def filled(
    fill: Fill, inputs: Float[Tensor, "N C *space"], count: int, seed: Seed, low: float = -1.0, high: float = 1.0
) -> Float[Tensor, "N count"]:
    """`count` numbers for each sample: a constant, "uniform" draws from [low, high], or its "min", "mean" or "max".

    Raises:
        UnknownNameError: another name.
    """
    if not isinstance(fill, str):
        return torch.full((len(inputs), count), float(fill), dtype=inputs.dtype, device=inputs.device)
    if fill == "uniform":
        return uniform(seed, (count,), low, high, inputs)
    if fill not in FILLS:
        raise UnknownNameError("fill", fill, FILLS)
    flat = inputs.flatten(1)
    value = flat.mean(1) if fill == "mean" else flat.amin(1) if fill == "min" else flat.amax(1)
    return value[:, None].expand(-1, count)
