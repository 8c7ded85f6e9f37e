"""Correlation of columns (loadings of modes, channels) with boolean masks (classes, concepts)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from backlight.errors import InputError
from backlight.shapes import Bool, Float
from backlight.store.rows import Rows, pieces


@dataclass(frozen=True)
class Correlation:
    """`r[c, m]`: Pearson's correlation of column c with mask m, in [-1, 1].

    A column that is constant over the samples has no correlation, nor has a mask that holds all of them or none: r is 0
    there, and `constant [C]`, `trivial [M]` say which they are.
    """

    r: Float[Tensor, "C M"]
    constant: Bool[Tensor, "C"]
    trivial: Bool[Tensor, "M"]


def correlate(rows: Rows, masks: Bool[Tensor, "n M"]) -> Float[Tensor, "C M"]:
    """Pearson's correlation of every column with every mask, float64; 0 for constant ones (CODEC, section 10.2)."""
    return correlation(rows, masks).r


def correlation(rows: Rows, masks: Bool[Tensor, "n M"], weights: Float[Tensor, "n"] | None = None) -> Correlation:
    """Pearson's correlation with population variances, and what had none; rows are read once, in pieces.

    Columns are shifted by their first entry, so that sums of squares do not cancel and a constant column is
    constant exactly; sums are float64. Samples with equal masks are summed first: with masks of classes and of concepts
    made of them, the cost is that of one pass over the rows, not one for each mask.

    Args:
        rows: `[n, C]`.
        masks: `[n, M]`: does the sample belong to the class, or the concept?
        weights: how often a sample counts, >= 0 (0 and 1: a part of the samples; counts: a bootstrap draw).

    Raises:
        InputError: another number of masks or weights than of rows, weights that are negative or all 0, or columns
            with NaN or infinite entries.
    """
    sums = _Sums(rows.shape, masks, weights)
    for start, piece in pieces(rows):
        sums.add(start, piece.double())
    return sums.correlation()


class _Sums:
    """Weighted sums of shifted columns, their squares, and, over samples with equal masks, the columns again."""

    def __init__(self, shape: tuple[int, int], masks: Tensor, weights: Tensor | None) -> None:
        count, columns = shape
        if masks.ndim != 2 or len(masks) != count:
            raise InputError(f"expected a mask for each of {count} rows, [{count}, M], got {list(masks.shape)}")
        given = torch.ones(count) if weights is None else weights.cpu()
        if given.shape != (count,) or not bool((given >= 0).all()) or not bool((given > 0).any()):
            raise InputError(f"expected {count} weights >= 0, not all 0, got {list(given.shape)}")
        self.weights = given.double()
        self.groups, self.members = torch.unique(masks.cpu(), dim=0, return_inverse=True)
        self.masks = masks.cpu()
        self.grouped = len(self.groups) <= max(masks.shape[1], 1)
        self.shift: Tensor | None = None
        self.low, self.high = torch.full((columns,), torch.inf).double(), torch.full((columns,), -torch.inf).double()
        self.total, self.squares = torch.zeros(columns).double(), torch.zeros(columns).double()
        self.cross = torch.zeros(len(self.groups) if self.grouped else masks.shape[1], columns).double()

    def add(self, start: int, piece: Tensor) -> None:
        weights = self.weights[start : start + len(piece)]
        if not bool(torch.isfinite(piece).all()):
            columns = (~torch.isfinite(piece)).any(0).nonzero().flatten().tolist()
            raise InputError(f"columns with NaN or infinite entries have no correlation: {columns[:8]}")
        counted = weights > 0
        if not bool(counted.any()):
            return
        self.shift = piece[counted][0] if self.shift is None else self.shift
        moved = piece - self.shift
        self.low = torch.minimum(self.low, moved[counted].amin(0))
        self.high = torch.maximum(self.high, moved[counted].amax(0))
        weighted = moved * weights[:, None]
        self.total += weighted.sum(0)
        self.squares += (weighted * moved).sum(0)
        if self.grouped:
            self.cross.index_add_(0, self.members[start : start + len(piece)], weighted)
        else:
            self.cross += self.masks[start : start + len(piece)].double().T @ weighted

    def correlation(self) -> Correlation:
        n, masks = self.weights.sum(), self.masks.double()
        cross = self.groups.double().T @ self.cross if self.grouped else self.cross
        share = (self.weights @ masks) / n
        mean = self.total / n
        variance = (self.squares / n - mean**2).clamp_min(0)
        counted = self.masks[self.weights > 0]
        trivial = counted.all(0) | ~counted.any(0)
        constant = self.low == self.high
        covariance = cross.T / n - mean[:, None] * share
        scale = variance.sqrt()[:, None] * (share * (1 - share)).clamp_min(0).sqrt()
        r = torch.where(scale > 0, covariance / scale, 0.0).clamp(-1, 1)
        return Correlation(r.masked_fill(constant[:, None] | trivial, 0.0), constant, trivial)
