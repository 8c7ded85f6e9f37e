"""What `decompose` wrote: modes, the loadings of every row, and how well they tell the rows."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from backlight.decompositions.decomposition import Decomposition
from backlight.decompositions.folder import read_json, read_tensors
from backlight.displayed import Displayed
from backlight.errors import InputError
from backlight.shapes import Bool, Float
from backlight.store.rows import Rows

if TYPE_CHECKING:
    from backlight.store.store import Store

RUN, REPORT = "run.json", "report.json"
FITTED, LOADINGS, HELD_OUT, STATISTICS = "decomposition", "loadings.npy", "held_out.npy", "modes.safetensors"


class ArrayRows:
    """Rows of a `.npy` file, read in pieces."""

    def __init__(self, path: Path) -> None:
        try:
            self._array = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise InputError(f"cannot read {str(path)!r}: {error}") from None

    @property
    def shape(self) -> tuple[int, int]:
        return self._array.shape[0], self._array.shape[1]

    def read(self, start: int, stop: int) -> Float[Tensor, "n K"]:
        return torch.from_numpy(np.array(self._array[start:stop], dtype=np.float32))


@dataclass(repr=False)
class Decomposed(Displayed):
    """A decomposition of a site's rows, with the loadings of all of them, in the order of the store.

    Attributes:
        folder: where it lies.
        decomposition: fitted; `modes` are its.
        site, quantity, sign: of the store's rows.
        scale: what rows are divided by before they are encoded.
        loadings: `[n, K]`, read in pieces.
        held_out: `[n]`, the rows that were not fitted.
        alive: `[K]`, modes that are on in at least one row.
        frequency: `[K]`, the share of rows a mode is on in; explained: `[K]`, the R2 that is lost without it; both of
            the held-out rows where there are some, of all others else.
        report: scores of the fitted and the held-out rows, numbers of modes, and the last epoch.
        store_folder: where the store lay; set it, where the store has moved.
    """

    folder: Path
    decomposition: Decomposition
    site: str
    quantity: str
    sign: str
    scale: float
    loadings: Rows
    held_out: np.ndarray
    alive: Bool[Tensor, "K"]
    frequency: Float[Tensor, "K"]
    explained: Float[Tensor, "K"]
    report: dict[str, Any]
    identity: dict[str, Any]
    store_folder: Path | None
    _store: Any = field(default=None, repr=False)

    @property
    def modes(self) -> Float[Tensor, "K C"]:
        """The dictionary, a mode a row, in units of `scale`."""
        return self.decomposition.modes

    @property
    def store(self) -> Store:
        """The store that the rows are of, opened when it is asked for.

        Raises:
            InputError: the rows were given without a store; or there is none any more, or another one.
        """
        from backlight.evaluation.identity import names_hash
        from backlight.store.store import Store

        if self.store_folder is None:
            raise InputError(f"{str(self.folder)!r} was made of rows without a store")
        if self._store is None or self._store.folder != self.store_folder:
            try:
                found = Store.open(self.store_folder)
            except InputError as error:
                raise InputError(f"{error}; where it has moved, give open_decomposed(folder, store=...)") from None
            if names_hash(found.names) != self.identity["data"]["names"]:
                raise InputError(f"the store {str(self.store_folder)!r} has not the samples that were decomposed")
            self._store = found
        return self._store


def open_decomposed(folder: str | os.PathLike[str], store: str | os.PathLike[str] | None = None) -> Decomposed:
    """What `decompose` wrote to a folder. `store`: where its store is now, if not where it was.

    Raises:
        InputError: nothing was decomposed there, or not to the end, or a file cannot be read.
    """
    place = Path(folder)
    if not (place / RUN).is_file():
        raise InputError(f"{str(place)!r} holds no decomposition: it has no {RUN}. `backlight decompose` makes one")
    if not (place / REPORT).is_file():
        raise InputError(f"the decomposition in {str(place)!r} is not finished: the same command goes on with it")
    run, report = read_json(place / RUN), read_json(place / REPORT)
    statistics, _ = read_tensors(place / STATISTICS)
    identity = run["identity"]
    moved = run.get("store") if store is None else os.fspath(store)
    return Decomposed(
        folder=place,
        decomposition=Decomposition.load(place / FITTED),
        site=identity["site"],
        quantity=identity["quantity"],
        sign=identity["sign"],
        scale=report["scale"],
        loadings=ArrayRows(place / LOADINGS),
        held_out=np.load(place / HELD_OUT, allow_pickle=False),
        alive=statistics["alive"],
        frequency=statistics["frequency"],
        explained=statistics["explained"],
        report=report,
        identity=identity,
        store_folder=None if moved is None else Path(moved),
    )
