"""The maps that are measured: of one method or several, brought to the shape of the samples."""

from __future__ import annotations

import torch
from torch import Tensor

from backlight.errors import InputError
from backlight.metrics.correlation import precise
from backlight.shapes import Float


def stacked(attributions: Tensor, inputs: Float[Tensor, "N C *space"]) -> tuple[Float[Tensor, "M N C *space"], bool]:
    """Maps of M methods, and whether the axis of methods was added here.

    `attributions`: `[N, C, *space]`, `[N, 1, *space]` (one value a position stands for every channel), or either with a
    leading axis of methods. A map with an entry that is not finite becomes NaN throughout, and so will its scores: it
    has none, and the others keep theirs.

    Raises:
        InputError: another shape.
    """
    single = attributions.ndim == inputs.ndim
    maps = attributions[None] if single else attributions
    fits = maps.ndim == inputs.ndim + 1 and maps.shape[1] == len(inputs) and maps.shape[3:] == inputs.shape[2:]
    if not fits or maps.shape[2] not in (1, inputs.shape[1]):
        raise InputError(
            f"expected attributions {list(inputs.shape)}, with one channel or all, and perhaps an axis of methods "
            f"before, got {list(attributions.shape)}"
        )
    known = finite(maps, 2)
    if not bool(known.all()):
        maps = torch.where(known.reshape(*known.shape, *(1,) * (maps.ndim - 2)), maps, torch.nan)
    return maps.detach().to(inputs.device).expand(-1, -1, inputs.shape[1], *(-1,) * (inputs.ndim - 2)), single


def finite(maps: Tensor, axis: int) -> Tensor:
    """Whether all entries from this axis on are finite, for each of those before."""
    return maps.isfinite().flatten(axis).all(-1)


def positions(maps: Float[Tensor, "*M N C H W"]) -> Float[Tensor, "*M N H W"]:
    """One signed value a position: the sum over channels, in double precision."""
    return (maps.cpu() if maps.device.type == "mps" else maps).detach().sum(-3, dtype=torch.float64)


def region_sums(values: Float[Tensor, "*rows S"], regions: Tensor, count: int) -> Float[Tensor, "*rows count"]:
    """Sums of `values` over numbered regions, in double precision. `regions`: `[S]`, -1 where there is none."""
    flat = precise(values).reshape(-1, values.shape[-1])
    sums = torch.zeros(len(flat), count + 1, dtype=flat.dtype, device=flat.device)
    sums.index_add_(1, torch.where(regions < 0, count, regions).to(flat.device), flat)
    return sums[:, :count].reshape(*values.shape[:-1], count)
