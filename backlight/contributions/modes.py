"""What modes mean: their channels, samples, classes and concepts."""

from __future__ import annotations

import torch
from torch import Tensor

from backlight.errors import InputError
from backlight.shapes import Float, Int


def top_channels(
    mode: Float[Tensor, "C"], *, share: float | None = None, count: int | None = None
) -> Int[Tensor, "top"]:
    """The channels with a mode's largest signed entries, descending: int(C * share) of them, at least one, or `count`.

    Equal entries stay in the order of the channels.

    Raises:
        InputError: neither or both of `share` and `count`, a share outside (0, 1], a count outside 1..C.
    """
    channels = len(mode)
    if (share is None) == (count is None):
        raise InputError(f"expected a share or a count of channels, one of them, got {share=}, {count=}")
    if share is not None:
        if not 0 < share <= 1:
            raise InputError(f"expected a share of the channels in (0, 1], got {share}")
        count = max(1, int(channels * share + 1e-9))  # 100 * 0.29 is 28.999...
    assert count is not None
    if not 1 <= count <= channels:
        raise InputError(f"expected a count of channels in 1..{channels}, got {count}")
    return torch.argsort(mode, descending=True, stable=True)[:count]
