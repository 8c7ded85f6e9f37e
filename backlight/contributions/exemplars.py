"""The samples on which a mode is largest, and how often it is active."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from backlight.errors import InputError
from backlight.shapes import Float, Int
from backlight.store.rows import Rows, pieces


@dataclass(frozen=True)
class Exemplars:
    """Of each column (mode): `samples [K, top]`, the largest `loadings` first; ties in the samples' order.

    `active [K]`: the share of samples whose loading is not 0.
    """

    samples: Int[Tensor, "K top"]
    loadings: Float[Tensor, "K top"]
    active: Float[Tensor, "K"]


def exemplars(loadings: Rows, top: int = 8) -> Exemplars:
    """One pass; `min(top, n)` a column are held. Raises `InputError` for a top below 1."""
    if top < 1:
        raise InputError(f"top must be at least 1, got {top}")
    count, columns = loadings.shape
    best, where = torch.zeros(0, columns), torch.zeros(0, columns, dtype=torch.int64)
    active = torch.zeros(columns, dtype=torch.int64)
    for start, piece in pieces(loadings):
        places = torch.arange(start, start + len(piece))[:, None].expand(-1, columns)
        values, numbers = torch.cat([best, piece]), torch.cat([where, places])
        order = values.argsort(dim=0, descending=True, stable=True)[:top]
        best, where = values.gather(0, order), numbers.gather(0, order)
        active += (piece != 0).sum(0)
    return Exemplars(where.T, best.T, active.double() / count)
