"""Rows: a matrix, one row a sample, that may be larger than memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from backlight.errors import InputError
from backlight.shapes import Float

READ = 4096  # rows read at once
BUFFERED = 4  # reads that are shuffled together


@runtime_checkable
class Rows(Protocol):
    """A matrix `[n, C]` that is read in pieces, in float32 on the CPU.

    `shape`: (n, C). `read(start, stop)`: rows `start..stop`, in order; what is read stays in memory only as long as the
    caller holds it.
    """

    @property
    def shape(self) -> tuple[int, int]: ...

    def read(self, start: int, stop: int) -> Float[Tensor, "n C"]: ...


class TensorRows:
    """Rows that are in memory already. Raises `InputError` for what is no matrix."""

    def __init__(self, rows: Tensor | np.ndarray) -> None:
        found = torch.as_tensor(rows)
        if found.ndim != 2 or not len(found):
            raise InputError(f"rows are a matrix [n, C] with n >= 1, got {list(found.shape)}")
        self._rows = found.detach().cpu()

    @property
    def shape(self) -> tuple[int, int]:
        return self._rows.shape[0], self._rows.shape[1]

    def read(self, start: int, stop: int) -> Float[Tensor, "n C"]:
        return self._rows[start:stop].float()


class Chosen:
    """Some of the rows of others, in ascending order. `positions`: which."""

    def __init__(self, rows: Rows, positions: Sequence[int] | np.ndarray) -> None:
        self.positions = np.asarray(positions, dtype=np.int64)
        if self.positions.ndim != 1 or not len(self.positions) or (np.diff(self.positions) <= 0).any():
            raise InputError("positions of rows are distinct numbers in ascending order, at least one")
        if self.positions[0] < 0 or self.positions[-1] >= rows.shape[0]:
            raise InputError(f"positions {self.positions[0]}..{self.positions[-1]} of {rows.shape[0]} rows")
        self._rows = rows

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.positions), self._rows.shape[1]

    def read(self, start: int, stop: int) -> Float[Tensor, "n C"]:
        wanted = self.positions[start:stop]
        parts = []
        while len(wanted):  # one read for what lies close together
            near = int(np.searchsorted(wanted, wanted[0] + READ))
            block = self._rows.read(int(wanted[0]), int(wanted[near - 1]) + 1)
            parts.append(block[torch.from_numpy(wanted[:near] - wanted[0])])
            wanted = wanted[near:]
        return torch.cat(parts) if parts else torch.zeros(0, self.shape[1])


def pieces(rows: Rows, size: int = READ) -> Iterator[tuple[int, Float[Tensor, "n C"]]]:
    """(start, rows) of consecutive pieces, all rows once and in order."""
    for start in range(0, rows.shape[0], size):
        yield start, rows.read(start, min(start + size, rows.shape[0]))


def shuffled(
    rows: Rows, batch_size: int, seed: int, epoch: int = 0, read: int = READ
) -> Iterator[Float[Tensor, "n C"]]:
    """All rows once, in batches, in an order that depends on `seed` and `epoch` alone.

    Rows are read in pieces of `read`, the pieces in random order, and `BUFFERED` of them are shuffled together: as
    random as a full shuffle for fewer than `BUFFERED * read` rows, and in bounded memory for more.
    """
    draw = np.random.default_rng((seed, epoch))
    starts = draw.permutation(np.arange(0, rows.shape[0], read))
    left: Tensor | None = None
    for first in range(0, len(starts), BUFFERED):
        group = [rows.read(int(s), min(int(s) + read, rows.shape[0])) for s in starts[first : first + BUFFERED]]
        buffer = torch.cat(group)
        buffer = buffer[torch.from_numpy(draw.permutation(len(buffer)))]
        if left is not None:
            buffer = torch.cat((left, buffer))
        whole = len(buffer) - len(buffer) % batch_size
        yield from buffer[:whole].split(batch_size) if whole else ()
        left = buffer[whole:]
    if left is not None and len(left):
        yield left
