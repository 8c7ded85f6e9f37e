"""Vectors of positions as rows of a matrix: what is kept by position, `[n, P, C]`, read as `[n * P, C]`."""

from __future__ import annotations

import numpy as np
import torch

from backlight.errors import InputError
from backlight.shapes import Float
from backlight.store.arrays import Arrays
from backlight.store.store import gathered


class PointwiseRows:
    """Rows of an array `[n, P, C]` of a store: row r is position r % P of sample r // P.

    `places`: of the samples in the array. `chosen`: the numbers of the rows that are wanted, ascending; None: all.

    Raises:
        InputError: numbers that do not ascend, or that are no rows.
    """

    def __init__(self, arrays: Arrays, key: str, places: np.ndarray, chosen: np.ndarray | None = None) -> None:
        self._arrays, self._key, self._places = arrays, key, places
        self._positions, self._width = arrays.layout.shapes[key]
        count = len(places) * self._positions
        odd = chosen is not None and len(chosen) and (chosen[0] < 0 or chosen[-1] >= count)
        if chosen is not None and (odd or (np.diff(chosen) <= 0).any()):
            raise InputError(f"numbers of rows ascend from 0 to {count - 1}, got {chosen[:3]}...{chosen[-3:]}")
        self._chosen, self._count = chosen, count if chosen is None else len(chosen)

    @property
    def shape(self) -> tuple[int, int]:
        return self._count, self._width

    def read(self, start: int, stop: int) -> Float[torch.Tensor, "n C"]:
        stop = min(stop, self._count)
        wanted = np.arange(start, stop) if self._chosen is None else self._chosen[start:stop]
        samples, rows = np.unique(wanted // self._positions, return_inverse=True)
        out = np.empty((len(wanted), self._width), dtype=np.float32)
        for first, block in gathered(self._arrays, self._key, self._places[samples]):
            here = (rows >= first) & (rows < first + len(block))
            out[here] = block[rows[here] - first, wanted[here] % self._positions]
        return torch.from_numpy(out)
