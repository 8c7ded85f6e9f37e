"""Codes of a bank's vectors on disk: written in pieces that a kill does no harm to, and read by row or by image."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from backlight.contributions.decomposed import ArrayRows
from backlight.decompositions import Decomposition
from backlight.decompositions.codes import Amortised
from backlight.decompositions.folder import make_folder, read_json, write_json, write_tensors
from backlight.decompositions.scores import Scores
from backlight.errors import InputError
from backlight.evaluation.identity import versions
from backlight.evaluation.journal import whole
from backlight.shapes import Float
from backlight.store.rows import READ, Rows

CODES, GROWING, DONE = "codes.npy", "codes.growing.npy", "done.json"
REPORT, STATISTICS = "report.json", "concepts.safetensors"
PIECE = 1024  # rows that are coded together, and lost together where a run is killed

Told = Callable[[int, int], None]


class Coder(Protocol):
    """What turns rows into codes of a dictionary: `encode(x [n, C], dictionary) -> [n, K]`; a row at a time."""

    def encode(self, x: Tensor, dictionary: Decomposition) -> Tensor: ...


def write_codes(
    dictionary: Decomposition,
    rows: Rows,
    coder: Coder,
    folder: Path,
    identity: dict[str, Any],
    held_out: np.ndarray | None = None,
    device: torch.device | None = None,
    progress: Told | None = None,
) -> None:
    """Code all rows into `codes.npy`, then score them; `report.json` comes last. A call after a kill goes on.

    Raises:
        InputError: a folder with codes of other rows, or by other settings.
    """
    place = make_folder(folder)
    about = json.loads(json.dumps(identity))
    if (place / DONE).exists() and read_json(place / DONE)["identity"] != about:
        raise InputError(
            f"{str(place)!r} holds codes of other rows, or by another coder or dictionary: give another folder"
        )
    if (place / REPORT).exists():
        return
    here = device or torch.device("cpu")
    dictionary.to(here)
    try:
        if not (place / CODES).exists():
            _encode(dictionary, rows, coder, place, about, progress or (lambda done, total: None))
        tell = dictionary.reconstruct if isinstance(coder, Amortised) else lambda x, z: dictionary.decode(z)
        scores = _scored(tell, dictionary.modes, rows, ArrayRows(place / CODES), held_out)
    finally:
        dictionary.to("cpu")
    told = scores.get("held_out", scores["fitted"])
    alive = torch.stack([one.alive for one in scores.values()]).any(0)
    write_tensors(place / STATISTICS, {"alive": alive, "frequency": told.frequency, "explained": told.explained})
    records = {name: one.record() for name, one in scores.items()}
    write_json(place / REPORT, {"identity": about, "alive": int(alive.sum()), **records, "versions": versions()})


def _encode(
    dictionary: Decomposition, rows: Rows, coder: Coder, place: Path, identity: dict[str, Any], progress: Told
) -> None:
    """Fill `codes.growing.npy` piece by piece, noting after each how far it is; then give it its name."""
    n, modes = rows.shape[0], dictionary.modes
    growing, done = place / GROWING, 0
    if growing.exists() and (place / DONE).exists():
        done = int(read_json(place / DONE)["rows"])
        array = np.lib.format.open_memmap(growing, mode="r+")
    else:
        with whole(growing) as partial:
            array = np.lib.format.open_memmap(partial, mode="w+", dtype=np.float32, shape=(n, len(modes)))
            array.flush()
            del array
        array = np.lib.format.open_memmap(growing, mode="r+")
        write_json(place / DONE, {"identity": identity, "rows": 0})
    for start in range(done, n, PIECE):
        progress(start, n)
        x = rows.read(start, min(start + PIECE, n)).to(modes)
        array[start : start + len(x)] = coder.encode(x, dictionary).detach().float().cpu().numpy()
        array.flush()
        write_json(place / DONE, {"identity": identity, "rows": start + len(x)})
    progress(n, n)
    del array
    growing.replace(place / CODES)


def _scored(
    tell: Callable[[Tensor, Tensor], Tensor], modes: Tensor, rows: Rows, codes: Rows, held_out: np.ndarray | None
) -> dict[str, Scores]:
    """Scores of the rows that were fitted (all, where nobody says) and of those that were held out.

    `tell`: what a row is told as by its codes; the encoder's own may need the row's level too.
    """
    flags = np.zeros(rows.shape[0], dtype=bool) if held_out is None else held_out
    parts = {"fitted": Scores(), "held_out": Scores()}
    for start in range(0, rows.shape[0], PIECE):
        stop = min(start + PIECE, rows.shape[0])
        x, z = rows.read(start, stop).to(modes), codes.read(start, stop).to(modes)
        decoded, mask = tell(x, z), torch.from_numpy(flags[start:stop]).to(x.device)
        for scores, own in ((parts["fitted"], ~mask), (parts["held_out"], mask)):
            if own.any():
                scores.add(x[own], decoded[own], z[own], modes)
    return {name: scores for name, scores in parts.items() if scores.rows}


class LargestOfImage:
    """Of rows `[n, K]` in the order of images, the largest entry of each image: `[images, K]`; 0 where it has no row.

    `image`: `[n]`, the image of each row, ascending.
    """

    def __init__(self, rows: Rows, image: np.ndarray, images: int) -> None:
        self._rows, self._image, self._images = rows, image, images

    @property
    def shape(self) -> tuple[int, int]:
        return self._images, self._rows.shape[1]

    def span(self, image: int) -> tuple[int, int]:
        """The rows of an image."""
        low, high = np.searchsorted(self._image, [image, image + 1])
        return int(low), int(high)

    def read(self, start: int, stop: int) -> Float[Tensor, "n K"]:
        stop = min(stop, self._images)
        out = torch.full((stop - start, self._rows.shape[1]), -torch.inf)
        first, last = (int(one) for one in np.searchsorted(self._image, [start, stop]))
        for low in range(first, last, READ):
            high = min(low + READ, last)
            places, firsts = np.unique(self._image[low:high] - start, return_index=True)
            largest = torch.from_numpy(np.maximum.reduceat(self._rows.read(low, high).numpy(), firsts))
            out[places] = torch.maximum(out[places], largest)
        return out.where(out > -torch.inf, 0)
