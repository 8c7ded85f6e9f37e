"""What of a map is relevance: which part of its values, of positions or of single entries, one method at a time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from backlight.errors import InputError, UnknownNameError
from backlight.metrics.correlation import precise
from backlight.metrics.maps import finite, positions, stacked
from backlight.shapes import Bool, Float

PARTS = ("positive", "absolute")
UNITS = ("position", "feature")


def part_of(values: Float[Tensor, "*S"], part: str) -> Float[Tensor, "*S"]:
    """The "positive" part, or "absolute" values. Raises `UnknownNameError` for another part."""
    if part not in PARTS:
        raise UnknownNameError("part of a map", part, PARTS)
    return values.clamp(min=0) if part == "positive" else values.abs()


def of_each_method(
    score: Callable[[Tensor], Tensor],
    attributions: Tensor,
    unit: str = "position",
    masks: Bool[Tensor, "N H W"] | None = None,
) -> Float[Tensor, "*M N"]:
    """`score(values)`, `[N, C, H, W]` in double precision to `[N]`, of each method in turn: one is in memory at a time.

    NaN where a map has an entry that is not finite.

    Args:
        attributions: `[N, C, H, W]`, or with a leading axis of methods.
        unit: "position", the signed sum over channels (C = 1); "feature", every entry by itself.
        masks: that the maps must lie on.

    Raises:
        InputError: maps of another shape, or not of the masks'; masks that are not bool `[N, H, W]`.
        UnknownNameError: another unit.
    """
    if unit not in UNITS:
        raise UnknownNameError("unit", unit, UNITS)
    if attributions.ndim not in (4, 5) or not attributions.numel():
        raise InputError(f"expected maps [N, C, H, W] or [M, N, C, H, W], got {list(attributions.shape)}")
    count, channels, *sides = attributions.shape[-4:]
    shape = (count, channels, *sides) if masks is None else (len(masks), channels, *masks.shape[1:])
    maps, single = stacked(attributions, torch.zeros((), device=attributions.device).expand(shape))
    values = (positions(of_method)[:, None] if unit == "position" else precise(of_method) for of_method in maps)
    scores = [torch.where(finite(one, 1), score(one), torch.nan).double().cpu() for one in values]
    return scores[0] if single else torch.stack(scores)
