"""Maps with one value a position: brought to the size of the input."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F

from backlight.shapes import Float

_MODES = {1: "linear", 2: "bilinear", 3: "trilinear"}


def resized(values: Float[Tensor, "N K *space"], size: Sequence[int]) -> Float[Tensor, "N K *size"]:
    """Maps at another size, by (bi)linear interpolation between the centres of cells; unchanged at the same size."""
    if tuple(values.shape[2:]) == tuple(size):
        return values
    return F.interpolate(values, tuple(size), mode=_MODES[values.ndim - 2], align_corners=False)
