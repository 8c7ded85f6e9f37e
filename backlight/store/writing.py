"""Writing a store: the record, the arrays, and block by block what was computed, each with its mark at last."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from backlight.errors import InputError, UnknownNameError
from backlight.store.arrays import Arrays, Layout
from backlight.store.collected import DTYPES, LABEL, Collected
from backlight.store.marks import Mark, write_mark
from backlight.store.record import ARRAYS, MARKS, Record


def make_folder(folder: Path) -> None:
    """Make a store's folders. Raises `InputError` where that cannot be."""
    try:
        (folder / MARKS).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write to {str(folder)!r}: {error.strerror}") from None


def check_dtype(dtype: str) -> None:
    """Raise `UnknownNameError` for a type that stores do not have."""
    if dtype not in DTYPES:
        raise UnknownNameError("dtype of a store", dtype, DTYPES)


def write_whole(
    folder: Path, collected: Collected, names: Sequence[str] | None, identity: Mapping[str, Any], block: int, dtype: str
) -> None:
    """Write what is in memory to a new store.

    Raises:
        InputError: a folder that holds a store; names that are not one a sample, each once.
    """
    check_dtype(dtype)
    if Record.read(folder) is not None:
        raise InputError(f"{str(folder)!r} holds a store already: give another folder")
    arrays = with_label(collected).arrays(dtype)
    count = len(next(iter(arrays.values())))
    called = [str(place) for place in range(count)] if names is None else list(names)
    if len(set(called)) != count or len(called) != count or not count:
        raise InputError(f"expected {count} distinct names, one a sample, got {len(called)}")
    make_folder(folder)
    layout = Layout.of(arrays, min(block, 8) if block % min(block, 8) == 0 else block, block)
    found = Arrays(folder / ARRAYS, layout, writing=True)
    found.create(count)
    Record(dict(identity), {}, count, list(collected.sites), layout).write(folder)
    for start in range(0, count, block):
        piece = BlockWriter(found, start, min(block, count - start))
        piece.add(list(range(min(block, count - start))), {k: a[start : start + block] for k, a in arrays.items()})
        piece.finish()
        write_mark(folder / MARKS, start // block, Mark(start, called[start : start + block]))


def with_label(collected: Collected, labels: Sequence[int | None] | None = None) -> Collected:
    """The same with a column "label"; -1 where there is none."""
    if LABEL in collected.columns:
        return collected
    given = [None] * len(collected) if labels is None else labels
    column = torch.tensor([-1 if label is None else label for label in given], dtype=torch.int64)
    return Collected(
        collected.rows,
        collected.positions,
        {LABEL: column, **collected.columns},
        collected.residuals,
        collected.logits,
        collected.entries,
    )


class BlockWriter:
    """The arrays of one block, written chunk by chunk as its samples come, in order. Skipped ones stay empty."""

    def __init__(self, arrays: Arrays, start: int, count: int) -> None:
        self._arrays, self._start, self._count = arrays, start, count
        self._held = {key: _Held(arrays, key, start, count) for key in arrays.layout.shapes}

    def add(self, places: Sequence[int], arrays: Mapping[str, np.ndarray]) -> None:
        """What was computed of the samples at these places of the block. Raises `InputError`: another layout."""
        self._arrays.layout.check(arrays)
        for key, array in arrays.items():
            self._held[key].add(places, array)

    def finish(self) -> None:
        """Write what is left."""
        for held in self._held.values():
            held.finish()


class _Held:
    """The rows of one array that do not fill a chunk yet."""

    def __init__(self, arrays: Arrays, key: str, start: int, count: int) -> None:
        self._arrays, self._key, self._start, self._count = arrays, key, start, count
        self._size = arrays.layout.chunks[key]
        self._written, self._rows = 0, self._empty(0)

    def add(self, places: Sequence[int], values: np.ndarray) -> None:
        for place, value in zip(places, values, strict=True):
            while place >= self._written + self._size:
                self._flush()
            self._rows[place - self._written] = value

    def finish(self) -> None:
        while self._written < self._count:
            self._flush()

    def _flush(self) -> None:
        self._arrays.write(self._key, self._start + self._written, self._rows)
        self._written += len(self._rows)
        self._rows = self._empty(self._written)

    def _empty(self, written: int) -> np.ndarray:
        layout = self._arrays.layout
        dtype = np.dtype(layout.dtypes[self._key])
        shape = (max(0, min(self._size, self._count - written)), *layout.shapes[self._key])
        return np.full(shape, np.nan if dtype.kind == "f" else -1, dtype)
