"""Grids of square patches over positions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from backlight.errors import InputError
from backlight.shapes import Float, Int


def pixels(patch: float, inputs: Float[Tensor, "N C H W"]) -> int:
    """The side of a patch in pixels: whole numbers as they are, fractions below 1 of the shorter side.

    Raises:
        InputError: images of another rank, or a side that is not positive or does not fit.
    """
    if inputs.ndim != 4:
        raise InputError(f"patches lie on images [N, C, H, W], got {list(inputs.shape)}")
    shorter = min(inputs.shape[2:])
    if not 0 < patch <= shorter:
        raise InputError(f"a patch of {patch} does not fit images of {list(inputs.shape[2:])}")
    return max(1, round(patch * shorter if patch < 1 else patch))


def grid(size: Sequence[int], patch: int, device: torch.device | None = None) -> tuple[Int[Tensor, "H W"], int]:
    """The raster number of the patch that each position lies in, and how many patches there are.

    Patches at the right and lower border are smaller where `patch` does not divide the size.

    Raises:
        InputError: a patch that is not between 1 and the larger side.
    """
    if not 1 <= patch <= max(size):
        raise InputError(f"a patch of {patch} does not fit positions {list(size)}")
    across = -(-size[1] // patch)
    rows = torch.arange(size[0], device=device) // patch
    columns = torch.arange(size[1], device=device) // patch
    return rows[:, None] * across + columns, -(-size[0] // patch) * across
