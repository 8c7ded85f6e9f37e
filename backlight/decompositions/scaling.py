"""Rows as decompositions take them: divided by one number, and in memory where they fit."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from backlight.errors import InputError, NonFiniteError
from backlight.shapes import Float
from backlight.store.rows import Rows, TensorRows, pieces

KEPT = 2**30  # bytes of rows that are read once and kept


@dataclass(frozen=True)
class Scaled:
    """Rows of others, divided by `scale`."""

    rows: Rows
    scale: float

    @property
    def shape(self) -> tuple[int, int]:
        return self.rows.shape

    def read(self, start: int, stop: int) -> Float[Tensor, "n C"]:
        return self.rows.read(start, stop) / self.scale


@dataclass(frozen=True)
class Moments:
    """Of rows: `mean` of each channel; `squares`, the sum of squared differences from it; over `n` rows."""

    n: int
    mean: Float[Tensor, "C"]
    squares: Float[Tensor, "C"]

    @property
    def std(self) -> float:
        """The population standard deviation of all entries: one number."""
        spread = self.squares.sum() / self.n + ((self.mean - self.mean.mean()) ** 2).sum()
        return math.sqrt(float(spread) / len(self.mean))


def moments(rows: Rows) -> Moments:
    """Means and squared differences of the channels, by Chan's updates in float64, in one pass.

    Raises:
        NonFiniteError: an entry is NaN or infinite.
    """
    n, mean = 0, torch.zeros(rows.shape[1], dtype=torch.float64)
    squares = torch.zeros_like(mean)
    for start, read in pieces(rows):
        if not read.isfinite().all():
            row = int((~read.isfinite()).any(1).nonzero()[0])
            raise NonFiniteError(f"row {start + row} has entries that are NaN or infinite")
        piece = read.double()
        own = piece.mean(0)
        difference, total = own - mean, n + len(piece)
        squares += ((piece - own) ** 2).sum(0) + difference**2 * (n * len(piece) / total)
        mean += difference * (len(piece) / total)
        n = total
    return Moments(n, mean, squares)


def global_std(rows: Rows) -> float:
    """The population standard deviation of all entries, which the paper divides a matrix by, without centring.

    Raises:
        InputError: all entries are equal.
        NonFiniteError: an entry is NaN or infinite.
    """
    std = moments(rows).std
    if not std > 0:
        raise InputError(f"all entries of the {list(rows.shape)} rows are equal: there is nothing to decompose")
    return std


def refuse_negative(rows: Rows, fix: str) -> None:
    """Raise `InputError` where a row has negative entries, with what can be done."""
    for start, piece in pieces(rows):
        if (piece < 0).any():
            row = start + int((piece < 0).any(1).nonzero()[0])
            raise InputError(f"row {row} has negative entries: {fix}")


def kept(rows: Rows, limit: int = KEPT) -> Rows:
    """The rows in memory, where they take at most `limit` bytes; else as they are."""
    n, channels = rows.shape
    if isinstance(rows, TensorRows) or 4 * n * channels > limit:
        return rows
    return TensorRows(torch.cat([piece for _, piece in pieces(rows)]))
