"""A store: what was computed of many samples, on disk, read in pieces."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from backlight.errors import InputError, UnknownNameError
from backlight.evaluation.evaluation import Skipped
from backlight.evaluation.identity import combined_hash, tensor_hash
from backlight.shapes import Float
from backlight.store.arrays import Arrays, part
from backlight.store.collected import (
    LABEL,
    LOGITS,
    NEGATIVE,
    POSITIONS,
    POSITIVE,
    SAMPLES,
    SITES,
    Collected,
    column_key,
    residual_key,
    row_key,
)
from backlight.store.marks import read_marks
from backlight.store.record import ARRAYS, MARKS, STORE, Record
from backlight.store.rows import Rows

SIGNS = ("positive", "negative", "sum", "concat")


class Store:
    """The finished samples of a store, in the samples' order. `Store.open` reads one; `extract` makes one.

    A store that is being written can be read: what is finished when it is opened.

    Attributes:
        folder: where it lies.
        sites: addresses, as `backlight layers` prints them.
        names: of the finished samples.
        skipped: samples that could not be read, and why.
        identity: what decided the numbers, as plain values; `about`: what did not, such as paths.
        samples: how many there are to be, the skipped ones too.
        sessions: of each call that wrote to it: when, by which versions, workers and threads.
    """

    def __init__(self, folder: Path, record: Record) -> None:
        if record.layout is None:
            raise InputError(f"no sample of the store {str(folder)!r} is finished yet")
        self.folder, self.identity, self.about = folder, record.identity, record.about
        self.sites, self.samples, self.sessions = tuple(record.sites), record.samples, record.sessions
        marks = read_marks(folder / MARKS).values()
        places = [(place, mark.names[place - mark.start]) for mark in marks for place in mark.positions()]
        self.names = [name for _, name in places]
        self.skipped = [Skipped(name, reason) for mark in marks for name, reason in mark.skipped.items()]
        if not places:
            raise InputError(f"no sample of the store {str(folder)!r} is finished yet")
        self._places = np.array([place for place, _ in places], dtype=np.int64)
        self._layout = record.layout
        self._arrays = Arrays(folder / ARRAYS, record.layout)

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> Store:
        """The store in a folder.

        Raises:
            InputError: there is none, it is of another format or damaged, or no sample of it is finished.
            MissingExtraError: zarr is not installed.
        """
        record = Record.read(Path(folder))
        if record is None:
            there = "there is no such folder" if not Path(folder).is_dir() else f"it has no {STORE}"
            raise InputError(f"{str(folder)!r} is no store: {there}. `backlight extract` makes one")
        return cls(Path(folder), record)

    @classmethod
    def of(
        cls,
        folder: str | os.PathLike[str],
        sites: Mapping[str, Tensor | np.ndarray | Mapping[str, Any]],
        *,
        names: Sequence[str] | None = None,
        columns: Mapping[str, Any] | None = None,
        logits: Tensor | np.ndarray | None = None,
        residuals: Mapping[str, Any] | None = None,
        identity: Mapping[str, Any] | None = None,
        block: int = 128,
        dtype: str = "float32",
    ) -> Store:
        """Write arrays that are in memory to a new store.

        Args:
            sites: by address, rows `[n, C]` (contributions), or by quantity: rows, or a pair of their positive and
                negative parts. Rows alone are split by their sign. Tensors with more axes are kept by position too,
                `[n, C, ...]`, and split before the sum.
            identity: what decided the numbers; a hash of the numbers is added.
            names: "0", "1", ... by default; `columns`: `[n]` each; without "label" there is none (-1).
        """
        from backlight.store.writing import write_whole

        quantities = {
            site: dict(given) if isinstance(given, Mapping) else {"contributions": given}
            for site, given in sites.items()
        }
        rows, positions = {}, {}
        for site, found in quantities.items():
            for quantity, value in found.items():
                if isinstance(value, tuple):
                    rows[site, quantity] = torch.as_tensor(value[0]), torch.as_tensor(value[1])
                    continue
                signed = torch.as_tensor(value)
                if signed.ndim < 2:
                    raise InputError(f"rows are [n, C] or [n, C, ...], got {list(signed.shape)} at {site!r}")
                rows[site, quantity] = split(signed)
                if signed.ndim > 2:
                    positions[site, quantity] = signed
        given = {name: torch.as_tensor(value) for name, value in (columns or {}).items()}
        collected = Collected(
            rows,
            positions,
            given,
            {site: torch.as_tensor(value) for site, value in (residuals or {}).items()},
            None if logits is None else torch.as_tensor(logits),
        )
        values = [*(half for pair in rows.values() for half in pair), *given.values()]
        about = {"content": combined_hash(*map(tensor_hash, values)), **(identity or {})}
        write_whole(Path(folder), collected, names, about, block, dtype)
        return cls.open(folder)

    def __len__(self) -> int:
        return len(self.names)

    def __repr__(self) -> str:
        return f"Store({str(self.folder)!r}, {len(self)} samples, {len(self.sites)} sites)"

    def quantities(self, site: str) -> tuple[str, ...]:
        """What is stored of a site: of contributions, activations, gradients."""
        prefix = f"{SITES}/{part(self._site(site))}/"
        keys = [key.removeprefix(prefix).split("/") for key in self._layout.shapes if key.startswith(prefix)]
        return tuple(dict.fromkeys(parts[0] for parts in keys if len(parts) == 2))

    def rows(self, site: str, quantity: str = "contributions", sign: str = "sum") -> Rows:
        """A matrix `[n, C]`, a row a finished sample. `sign`: positive, negative (<= 0), their sum, or concat: both.

        Raises:
            UnknownNameError: a site, quantity or sign that is not there.
        """
        if sign not in SIGNS:
            raise UnknownNameError("sign", sign, SIGNS)
        self._quantity(site, quantity)
        wanted = {"positive": (POSITIVE,), "negative": (NEGATIVE,)}.get(sign, (POSITIVE, NEGATIVE))
        keys = [row_key(site, quantity, one) for one in wanted]
        return StoredRows(self._arrays, keys, self._places, added=sign == "sum")

    def maps(self, site: str, quantity: str, rows: Sequence[int] | slice) -> Float[Tensor, "n *site"]:
        """What is kept by position, `[n, *site's shape]`, of the given rows (their numbers, in any order).

        Raises:
            UnknownNameError: a site or quantity that is not there; InputError: it is not kept by position.
        """
        self._quantity(site, quantity)
        key = row_key(site, quantity, POSITIONS)
        if key not in self._layout.shapes:
            raise InputError(f"the {quantity} of {site!r} are not kept by position: extract them with --positions")
        wanted = np.arange(len(self))[rows] if isinstance(rows, slice) else np.asarray(rows, dtype=np.int64)
        parts = [torch.from_numpy(self._arrays.read(key, int(one), int(one) + 1)) for one in self._places[wanted]]
        return torch.cat(parts).float() if parts else torch.zeros(0, *self._layout.shapes[key])

    def pointwise(self, site: str, quantity: str, chosen: np.ndarray | None = None) -> Rows:
        """What is kept by position, `[n, P, C]`, as rows `[n * P, C]`: row r is position r % P of sample r // P.

        Args:
            chosen: the numbers of the rows that are wanted, in ascending order; None: all.

        Raises:
            UnknownNameError: a site or quantity that is not there.
            InputError: it is not kept by position, with two axes; numbers that are no rows.
        """
        from backlight.store.pointwise import PointwiseRows

        self._quantity(site, quantity)
        key = row_key(site, quantity, POSITIONS)
        if len(self._layout.shapes.get(key, ())) != 2:
            raise InputError(f"the {quantity} of {site!r} are not kept by position, [n, P, C]")
        return PointwiseRows(self._arrays, key, self._places, chosen)

    def entries(self, site: str, quantity: str, name: str) -> np.ndarray:
        """Numbers that belong to what is kept by position, `[n, ...]`.

        Raises:
            UnknownNameError: a site, quantity or name that is not there.
        """
        self._quantity(site, quantity)
        prefix = row_key(site, quantity, "")
        known = [key.removeprefix(prefix) for key in self._layout.shapes if key.startswith(prefix)]
        if name not in known:
            raise UnknownNameError(f"entry of the {quantity} of {site!r}", name, known)
        return self._numbers(prefix + name)

    @property
    def contents(self) -> dict[str, str]:
        """A hash of what each finished sample was made of, by name."""
        marks = read_marks(self.folder / MARKS).values()
        known = {name: content for mark in marks for name, content in zip(mark.names, mark.contents, strict=False)}
        return {name: known.get(name, "") for name in self.names}

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the columns."""
        keys = [key.removeprefix(f"{SAMPLES}/") for key in self._layout.shapes if key.startswith(f"{SAMPLES}/")]
        return tuple(key for key in keys if key != LOGITS)

    def column(self, name: str) -> np.ndarray:
        """One number a finished sample: label (-1 where there is none), prediction, score, baseline_score.

        Raises:
            UnknownNameError: no such column.
        """
        if name not in self.columns:
            raise UnknownNameError("column", name, self.columns)
        return self._numbers(column_key(name))

    @property
    def labels(self) -> np.ndarray:
        """The column "label"."""
        return self.column(LABEL)

    @property
    def logits(self) -> Rows:
        """The network's outputs, `[n, K]`. Raises `InputError` where they are not stored."""
        if column_key(LOGITS) not in self._layout.shapes:
            raise InputError(f"the store {str(self.folder)!r} holds no logits")
        return StoredRows(self._arrays, [column_key(LOGITS)], self._places)

    def residual(self, site: str) -> np.ndarray:
        """What contributions at a site leave unexplained of score - baseline score, of each finished sample.

        Raises:
            UnknownNameError: no such site; InputError: it is not stored.
        """
        key = residual_key(self._site(site))
        if key not in self._layout.shapes:
            raise InputError(f"the store {str(self.folder)!r} holds no residual of {site!r}")
        return self._numbers(key)

    def _numbers(self, key: str) -> np.ndarray:
        return np.concatenate([block for _, block in gathered(self._arrays, key, self._places)])

    def _site(self, site: str) -> str:
        if site not in self.sites:
            raise UnknownNameError("site of the store", site, self.sites)
        return site

    def _quantity(self, site: str, quantity: str) -> None:
        if quantity not in self.quantities(site):
            raise UnknownNameError(f"quantity of {site!r} in the store", quantity, self.quantities(site))


class StoredRows:
    """Rows of a store. `added`: the arrays are added up, not put side by side."""

    def __init__(self, arrays: Arrays, keys: Sequence[str], places: np.ndarray, added: bool = False) -> None:
        self._arrays, self._keys, self._places, self._added = arrays, list(keys), places, added
        self._width = arrays.layout.shapes[self._keys[0]][0]

    @property
    def shape(self) -> tuple[int, int]:
        return len(self._places), self._width * (1 if self._added else len(self._keys))

    def read(self, start: int, stop: int) -> Float[Tensor, "n C"]:
        places = self._places[start:stop]
        out = torch.zeros(len(places), self.shape[1])
        for number, key in enumerate(self._keys):
            left = 0 if self._added else number * self._width
            for first, block in gathered(self._arrays, key, places):
                out[first : first + len(block), left : left + self._width] += torch.from_numpy(block)
        return out


def gathered(arrays: Arrays, key: str, places: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """(how many before, entries) at ascending positions of an array; one read for those that lie close together."""
    cuts = np.flatnonzero(np.diff(places) > arrays.layout.chunks[key]) + 1
    done = 0
    for group in np.split(places, cuts) if len(places) else ():
        yield done, arrays.read(key, int(group[0]), int(group[-1]) + 1)[group - group[0]]
        done += len(group)


def split(value: Float[Tensor, "n C *positions"]) -> tuple[Float[Tensor, "n C"], Float[Tensor, "n C"]]:
    """The positive and the negative part of each position, each summed over positions."""
    positive, negative = value.clamp(min=0), value.clamp(max=0)
    return (positive.flatten(2).sum(2), negative.flatten(2).sum(2)) if value.ndim > 2 else (positive, negative)
