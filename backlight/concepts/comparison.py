"""Which dictionary tells a layer best: relative error and sparsity of held-out vectors, under the same coder."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from backlight.concepts.bank import Bank
from backlight.concepts.comparison_tables import COMPARISON, Compared, Comparison, write_tables
from backlight.contributions.decompose import chosen, split_rows
from backlight.decompositions import Decomposition
from backlight.decompositions.checkpoints import content
from backlight.decompositions.codes import Coder, Lasso
from backlight.decompositions.decomposition import CONFIG, plain_settings
from backlight.decompositions.folder import make_folder, read_json, write_json
from backlight.decompositions.scores import Scores
from backlight.errors import InputError
from backlight.evaluation.identity import differences, names_hash, plain, versions
from backlight.store.arrays import part
from backlight.store.record import locked
from backlight.store.rows import Chosen, Rows, TensorRows, pieces

EXTRACTORS = ("BisectingKMeans", "SparseDictionaryLearning", "ReLUSAE")  # of Table III
RESULT, FITTED, WORK, LOCK, RUN = "result.json", "fitted", "work", ".lock", "run.json"
CODED = 1024  # rows that are coded at once
OWN = "own encoder"

Told = Callable[[str, str, str], None]


class _Coded(Protocol):
    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]: ...


def compare(
    rows: Bank | Mapping[str, Rows | Tensor | np.ndarray],
    extractors: Sequence[str | Decomposition] = EXTRACTORS,
    out: str | os.PathLike[str] = "comparison",
    *,
    sites: Sequence[str] | None = None,
    modes: int | str | None = "8x",
    coders: Sequence[Coder] = (Lasso(penalty=0.1, unit=True),),
    held_out: float = 0.2,
    seed: int = 0,
    device: str | torch.device = "cpu",
    progress: Told | None = None,
) -> Comparison:
    """Table III of the iERF framework for any layers: each extractor's dictionary of each, and how well it tells rows.

    Rel-l2 is the mean over rows of |x - x_hat| / |x|, the l0 ratio 1 - |u|_0 / K: of rows that were not fitted, by the
    same coders for all dictionaries, and by each dictionary's own encoder. (The paper codes centroids by the LASSO and
    SAEs by their encoders, on rows that it does not say were held out.)

    A run that was stopped, also by a kill, goes on where it was: a layer and extractor at a time, a fit within it from
    its checkpoint. `comparison.md`, `.csv` and `.json` are written anew after each.

    Args:
        rows: a bank, whose images are held out whole, or rows `[n, C]` by site.
        extractors: names of `DECOMPOSITIONS`, with a preset as in "MatryoshkaSAE:bussmann", or ones with settings.
        modes: of every extractor that is given by name: a number, or a multiple of the channels; None is its own.
        coders: of `backlight.decompositions.codes`.
        held_out: the share of rows, or of a bank's images, that are scored and not fitted, drawn by `seed`.
        progress: called with site, extractor, and what is being done.

    Raises:
        InputError: nothing to compare, rows that do not fit, or a folder of another comparison.
        UnknownNameError: an unknown extractor or site.
    """
    if not 0 < held_out < 1:
        raise InputError(f"the share of rows that are held out lies between 0 and 1, got {held_out}")
    ones = _named(extractors, modes, seed)
    names = [type(one).__name__ for one in coders]
    if not ones or not coders or len(set(names)) < len(names):
        raise InputError("give at least one extractor, and one coder of each kind at most once")
    chosen_sites = list(sites if sites is not None else rows.sites if isinstance(rows, Bank) else rows)
    given = {site: _rows(rows, site) for site in chosen_sites}
    folder = make_folder(Path(out))
    try:
        with locked(folder / LOCK):
            identity = _identity(rows, given, ones, coders, held_out, seed)
            _begin(folder, identity)
            found: list[Compared] = []
            for site, one in ((site, one) for site in given for one in ones):
                own, groups = given[site]
                task = _Task(site, ones[one], one, folder / part(site) / part(one), torch.device(device), progress)
                found += task.run(own, split_rows(own.shape[0], held_out, seed, groups), coders)
                done = Comparison(tuple(found), identity, folder)
                write_tables(done)
    except BlockingIOError:
        raise InputError(f"another process writes to {str(folder)!r}") from None
    return done


def open_comparison(folder: str | os.PathLike[str]) -> Comparison:
    """What `compare` wrote, as far as it is. Raises `InputError` where there is nothing."""
    found = read_json(Path(folder) / COMPARISON)
    return Comparison(tuple(Compared(**one) for one in found["rows"]), found["identity"], Path(folder))


@dataclass
class _Task:
    """One extractor of one layer."""

    site: str
    one: Decomposition
    name: str
    place: Path
    device: torch.device
    progress: Told | None

    def run(self, rows: Rows, flags: np.ndarray, coders: Sequence[Coder]) -> list[Compared]:
        """What was found before, or a fit and the scores of every coder."""
        if (self.place / RESULT).exists():
            return [Compared(**one) for one in read_json(self.place / RESULT)["rows"]]
        make_folder(self.place)
        training, others = Chosen(rows, np.flatnonzero(~flags)), Chosen(rows, np.flatnonzero(flags))
        fitted, seconds = self._fitted(training)
        fitted.to(self.device)
        found = []
        for name, coded in self._codings(fitted, coders).items():
            self._tell(f"codes: {name}")
            scores = _scored(fitted, others, coded)
            record = scores.record()
            count = len(fitted.modes)
            found.append(
                Compared(
                    site=self.site,
                    extractor=self.name,
                    coder=name,
                    channels=rows.shape[1],
                    modes=count,
                    fitted=training.shape[0],
                    held_out=others.shape[0],
                    relative=record["relative"],
                    ratio=1 - scores.l0 / count,
                    l0=scores.l0,
                    r2=record["r2"],
                    alive=int(scores.alive.sum()),
                    seconds=seconds,
                )
            )
        write_json(self.place / RESULT, {"rows": [asdict(one) for one in found]})
        return found

    def _fitted(self, rows: Rows) -> tuple[Decomposition, float | None]:
        """The dictionary, and the seconds of its fit; None where they were of several sessions."""
        if (self.place / FITTED / CONFIG).exists():
            return Decomposition.load(self.place / FITTED), None
        self._tell("fit")
        begun, start = (self.place / WORK).exists(), time.monotonic()
        self.one.fit(rows, folder=self.place / WORK, device=self.device, progress=self._epoch)
        seconds = None if begun else time.monotonic() - start
        self.one.save(self.place / FITTED)
        for path in (self.place / WORK).iterdir():
            path.unlink()
        (self.place / WORK).rmdir()
        return self.one, seconds

    def _epoch(self, epoch: Any) -> None:
        self._tell(f"pass {epoch.number} of {epoch.total}, R2 {epoch.r2:.3f}")

    def _tell(self, what: str) -> None:
        if self.progress is not None:
            self.progress(self.site, self.name, what)

    def _codings(self, fitted: Decomposition, coders: Sequence[Coder]) -> dict[str, _Coded]:
        def own(x: Tensor) -> tuple[Tensor, Tensor]:
            z = fitted.encode(x)
            return z, fitted.reconstruct(x, z)

        def by(coder: Coder) -> _Coded:
            def coded(x: Tensor) -> tuple[Tensor, Tensor]:
                z = coder.encode(x, fitted)
                return z, fitted.decode(z)

            return coded

        return {**{type(one).__name__: by(one) for one in coders}, OWN: own}


def _scored(fitted: Decomposition, rows: Rows, coded: _Coded) -> Scores:
    found, modes = Scores(), fitted.modes
    for _, piece in pieces(rows, CODED):
        x = piece.to(modes)
        z, decoded = coded(x)
        found.add(x, decoded, z, modes)
    return found


def _named(extractors: Sequence[str | Decomposition], modes: int | str | None, seed: int) -> dict[str, Decomposition]:
    """By the name they have in the tables; a second one of a class is numbered."""
    found: dict[str, Decomposition] = {}
    for given in extractors:
        one = chosen(given, modes, seed, {}) if isinstance(given, str) else given
        name = base = given if isinstance(given, str) else type(one).__name__
        number = 1
        while name in found:
            name, number = f"{base} {number + 1}", number + 1
        if "labels" in one.needs:
            raise InputError(f"{base} needs labels, which a comparison has none of")
        found[name] = one
    return found


def _rows(rows: Bank | Mapping[str, Rows | Tensor | np.ndarray], site: str) -> tuple[Rows, np.ndarray | None]:
    if isinstance(rows, Bank):
        found, images = rows.rows(site), rows.image(site).numpy()
        return found, images
    if site not in rows:
        raise InputError(f"no rows of the site {site!r}; there are {', '.join(rows)}")
    one = rows[site]
    return (TensorRows(one) if isinstance(one, (Tensor, np.ndarray)) else one), None


def _identity(
    rows: Bank | Mapping[str, Rows | Tensor | np.ndarray],
    given: Mapping[str, tuple[Rows, np.ndarray | None]],
    ones: Mapping[str, Decomposition],
    coders: Sequence[Coder],
    held_out: float,
    seed: int,
) -> dict[str, Any]:
    """What decides the numbers: a bank by what made it, rows by their entries."""
    if isinstance(rows, Bank):
        data: Any = {"bank": plain(rows.identity), "images": names_hash(rows.images), "model": rows.model_name}
    else:
        data = {site: content(one) for site, (one, _) in given.items()}
    return plain(
        {
            "data": data,
            "sites": {site: list(one.shape) for site, (one, _) in given.items()},
            "extractors": {name: {"class": type(one).__name__, **plain_settings(one)} for name, one in ones.items()},
            "coders": {type(one).__name__: asdict(one) for one in coders},  # type: ignore[call-overload]
            "held_out": held_out,
            "seed": seed,
        }
    )


def _begin(folder: Path, identity: dict[str, Any]) -> None:
    if (folder / RUN).exists():
        found = differences(read_json(folder / RUN)["identity"], identity)
        if found:
            raise InputError(f"{str(folder)!r} holds another comparison: {'; '.join(found[:6])}. Give another folder")
        return
    write_json(folder / RUN, {"identity": identity, "versions": versions()})
