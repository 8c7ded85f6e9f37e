"""From rows of a store to a folder with modes and loadings: resumable, and in bounded memory."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from backlight.contributions.decomposed import (
    FITTED,
    HELD_OUT,
    LOADINGS,
    REPORT,
    RUN,
    STATISTICS,
    Decomposed,
    open_decomposed,
)
from backlight.decompositions import decomposition as by_name
from backlight.decompositions.decomposition import (
    CONFIG,
    Decomposition,
    Progress,
    plain_settings,
)
from backlight.decompositions.folder import (
    make_folder,
    read_json,
    write_json,
    write_tensors,
)
from backlight.decompositions.scaling import Scaled, global_std
from backlight.decompositions.scores import Scores
from backlight.errors import InputError
from backlight.evaluation.identity import differences, names_hash, plain, versions
from backlight.evaluation.journal import whole
from backlight.store.record import locked
from backlight.store.rows import Chosen, Rows, pieces

if TYPE_CHECKING:
    from backlight.store.store import Store

LOCK, WORK = ".lock", "work"


def decompose(
    store: Store | Rows,
    site: str,
    method: str | Decomposition = "ThresholdSAE",
    out: str | os.PathLike[str] = "out",
    *,
    quantity: str = "contributions",
    sign: str = "positive",
    modes: int | str | None = None,
    held_out: float = 0.2,
    seed: int = 0,
    labels: np.ndarray | None = None,
    device: str | torch.device = "cpu",
    progress: Progress | None = None,
    **settings: Any,
) -> Decomposed:
    """Fit modes to a site's rows, and write them with the loadings of every row.

    Rows are divided by the standard deviation of all entries of those that are fitted, without centring (the paper's).
    A run that was stopped, also by a kill, goes on from its last checkpoint; on a CPU the result is that of one that
    was not, bit for bit. A folder that is finished is read.

    Args:
        store: a `Store`, or rows `[n, C]`; then `site`, `quantity` and `sign` are names that are recorded.
        method: a name of `DECOMPOSITIONS`, with a preset as in "ThresholdSAE:reference", or one with its settings.
        out: the folder, of this one decomposition.
        modes: their number, or a multiple of the channels, "3x"; None is the method's.
        held_out: the share of rows, drawn by `seed`, that are scored and not fitted; 0 is none.
        labels: of the rows, where the method needs them; None is the store's.
        progress: called after each pass.
        settings: of the method.

    Raises:
        InputError: settings or rows that do not fit; a folder with other settings, or in use by another process.
        UnknownNameError: an unknown method, preset, setting, site, quantity or sign.
    """
    one = chosen(method, modes, seed, settings)
    whole_rows = store if isinstance(store, Rows) else store.rows(site, quantity, sign)
    split_rows(whole_rows.shape[0], held_out, seed)
    one.check(whole_rows.shape[0], whole_rows.shape[1])  # before rows are read
    if "labels" in one.needs:
        labels = _labels(store, labels, whole_rows.shape[0])
    described = {"site": site, "quantity": quantity, "sign": sign, "data": _data(store)}
    found = decompose_rows(
        one,
        whole_rows,
        out,
        described,
        source=None if isinstance(store, Rows) else store.folder,
        held_out=held_out,
        seed=seed,
        labels=labels,
        device=device,
        progress=progress,
    )
    found._store = None if isinstance(store, Rows) else store
    return found


def decompose_rows(
    one: Decomposition,
    rows: Rows,
    out: str | os.PathLike[str],
    described: Mapping[str, Any],
    *,
    source: Path | None = None,
    held_out: float = 0.2,
    seed: int = 0,
    groups: np.ndarray | None = None,
    scaled: bool = True,
    labels: np.ndarray | None = None,
    device: str | torch.device = "cpu",
    progress: Progress | None = None,
) -> Decomposed:
    """Fit a decomposition to any rows, and write its folder: `decompose` with what it finds in a store given.

    Args:
        described: what the rows are, as plain values that decide them: `site`, `quantity`, `sign`, `data`.
        source: the store they come from, to be found again.
        groups: `[n]`, of the rows; a group is held out whole, or fitted whole. None: each row is its own.
        scaled: divide rows by the standard deviation of all entries of those that are fitted; False: rows as they are.

    Raises:
        InputError: as `decompose`.
    """
    split_rows(rows.shape[0], held_out, seed, groups)
    one.check(rows.shape[0], rows.shape[1])  # before a folder is made
    identity = {
        **described,
        "method": type(one).__name__,
        "settings": plain_settings(one),
        "held_out": float(held_out),
        "seed": seed,
        **({} if scaled else {"scaled": False}),
        **({} if groups is None else {"groups": hashlib.sha256(groups.astype(np.int64).tobytes()).hexdigest()}),
    }
    if "labels" in one.needs and labels is not None:
        identity["labels"] = hashlib.sha256(labels.tobytes()).hexdigest()
    place = make_folder(Path(out))
    with _alone(place):
        _begin(place, identity, source)
        if not (place / REPORT).exists():
            flags = split_rows(rows.shape[0], held_out, seed, groups)
            _Run(one, rows, labels, place, flags, scaled, torch.device(device), progress).run()
    return open_decomposed(place)


def chosen(method: str | Decomposition, modes: int | str | None, seed: int, settings: dict[str, Any]) -> Decomposition:
    """The decomposition by its name and settings. Raises `UnknownNameError` for a name or setting that is unknown."""
    from backlight.errors import UnknownNameError

    if isinstance(method, Decomposition):
        if settings or modes is not None:
            raise InputError(f"settings of {type(method).__name__} are given twice: with it, and beside it")
        return type(method)(**method.settings())
    name, _, preset = method.partition(":")
    cls = by_name(name)
    known = cls().settings()
    for given in settings:
        if given not in known:
            raise UnknownNameError(f"setting of {cls.__name__}", given, known)
    own = {"seed": seed, **({} if modes is None else {"n_modes": modes}), **settings}
    return cls.preset(preset, **own) if preset else cls(**own)


def split_rows(n: int, share: float, seed: int, groups: np.ndarray | None = None) -> np.ndarray:
    """Which of n rows are held out, drawn by the seed: `[n]`, true for `share` of them, rounded; at least one is not.

    `groups`: `[n]`, numbers; the share is of the groups, and a group's rows are held out, or not, all together.

    Raises:
        InputError: a seed below 0, or a share that is not in [0, 1), or leaves no row to hold out or none to fit.
    """
    if groups is not None:
        found, members = np.unique(groups, return_inverse=True)
        return split_rows(len(found), share, seed)[members]
    if seed < 0:
        raise InputError(f"a seed is a number from 0 on, got {seed}")
    if not 0 <= share < 1:
        raise InputError(f"the share of rows that are held out lies in [0, 1), got {share}")
    count = round(share * n)
    if share and not 0 < count < n:
        raise InputError(
            f"{share} of {n} rows is {count}: there is nothing to hold out, or nothing to fit; "
            "a share of 0 holds none out"
        )
    flags = np.zeros(n, dtype=bool)
    flags[np.random.default_rng((seed, 7)).permutation(n)[:count]] = True
    return flags


@dataclass
class _Run:
    """One decomposition on its way."""

    one: Decomposition
    rows: Rows
    labels: np.ndarray | None
    place: Path
    flags: np.ndarray  # the rows that are held out
    scaled: bool
    device: torch.device
    progress: Progress | None

    def run(self) -> None:
        """Scale, fit, then encode every row; `report.json` comes last."""
        flags = self.flags
        fitted, held_out = np.flatnonzero(~flags), np.flatnonzero(flags)
        training = Chosen(self.rows, fitted) if len(held_out) else self.rows
        scale = global_std(training) if self.scaled else 1.0
        self._fit(
            Scaled(training, scale),
            Scaled(Chosen(self.rows, held_out), scale) if len(held_out) else None,
            None if self.labels is None else self.labels[fitted],
        )
        scores = self._encode(Scaled(self.rows, scale), flags)
        with whole(self.place / HELD_OUT) as partial, partial.open("wb") as file:
            np.save(file, flags)
        if (self.place / WORK).exists():
            for path in (self.place / WORK).iterdir():
                path.unlink()
            (self.place / WORK).rmdir()
        self._report(scale, scores)

    def _fit(self, rows: Rows, held_out: Rows | None, labels: np.ndarray | None) -> None:
        """Fit, or read what was fitted before the run was stopped."""
        folder = self.place / FITTED
        if (folder / CONFIG).exists():
            self.one = Decomposition.load(folder)
            return
        self.one.fit(
            rows, held_out=held_out, labels=labels, folder=self.place / WORK, progress=self.progress, device=self.device
        )
        self.one.save(folder)

    def _encode(self, rows: Rows, flags: np.ndarray) -> dict[str, Scores]:
        """Write the loadings of all rows; the scores of those that were fitted and of those that were held out."""
        self.one.to(self.device)
        modes, n = self.one.modes, rows.shape[0]
        parts = {"fitted": Scores(), "held_out": Scores()}
        with whole(self.place / LOADINGS) as partial:
            array = np.lib.format.open_memmap(partial, mode="w+", dtype=np.float32, shape=(n, len(modes)))
            for start, piece in pieces(rows):
                x = piece.to(modes)
                z = self.one.encode(x)
                array[start : start + len(x)] = z.cpu().numpy()
                decoded, mask = self.one.reconstruct(x, z), torch.from_numpy(flags[start : start + len(x)]).to(x.device)
                for scores, own in ((parts["fitted"], ~mask), (parts["held_out"], mask)):
                    if own.any():
                        scores.add(x[own], decoded[own], z[own], modes)
            array.flush()
            del array
        self.one.to("cpu")
        return {name: scores for name, scores in parts.items() if scores.rows}

    def _report(self, scale: float, scores: dict[str, Scores]) -> None:
        alive = torch.stack([found.alive for found in scores.values()]).any(0)
        told = scores.get("held_out", scores["fitted"])
        statistics = {"alive": alive, "frequency": told.frequency, "explained": told.explained}
        write_tensors(self.place / STATISTICS, statistics)
        report = {
            "rows": self.rows.shape[0],
            "channels": self.rows.shape[1],
            "scale": scale,
            "modes": len(alive),
            "alive": int(alive.sum()),
            "dead_share": 1 - float(alive.float().mean()),
            "fitted": scores["fitted"].record(),
            "held_out": scores["held_out"].record() if "held_out" in scores else None,
            "last_epoch": asdict(self.one.history[-1]) if self.one.history else None,
            "versions": versions(),
        }
        write_json(self.place / REPORT, report)


def _begin(place: Path, identity: dict[str, Any], store: Path | None) -> None:
    """Write `run.json`, or compare it. Raises `InputError` where the folder is of another decomposition."""
    identity = plain(identity)
    if (place / RUN).exists():
        found = differences(read_json(place / RUN).get("identity"), identity)
        if found:
            raise InputError(
                f"{str(place)!r} holds a decomposition of other settings: {'; '.join(found[:6])}"
                f"{' and more' * (len(found) > 6)}. Give another folder, or the same settings"
            )
    elif any(path.name not in (LOCK, f".{RUN}.partial") for path in place.iterdir()):
        raise InputError(f"{str(place)!r} holds other files: give an empty folder, or one that does not exist")
    for left in place.rglob(".*.partial"):
        left.unlink()
    write_json(place / RUN, {"identity": identity, "store": None if store is None else str(store.absolute())})


def _data(store: Store | Rows) -> dict[str, Any]:
    """What decides the rows: the store's identity and names, or the rows' entries."""
    if not isinstance(store, Rows):
        return {"store": plain(store.identity), "names": names_hash(store.names)}
    entries = hashlib.sha256(str(store.shape).encode())
    for _, piece in pieces(store):
        entries.update(piece.contiguous().numpy().tobytes())
    return {"rows": list(store.shape), "entries": entries.hexdigest()}


def _labels(store: Store | Rows, labels: np.ndarray | None, n: int) -> np.ndarray:
    if labels is None and not isinstance(store, Rows):
        labels = store.column("label")
    if labels is None:
        raise InputError("this decomposition needs labels: give labels=, one a row")
    found = np.asarray(labels, dtype=np.int64)
    if found.shape != (n,):
        raise InputError(f"expected a label for each of {n} rows, got {list(found.shape)}")
    return found


@contextmanager
def _alone(place: Path) -> Iterator[None]:
    """Raise `InputError` where another process works in the folder."""
    try:
        with locked(place / LOCK):
            yield
    except BlockingIOError:
        raise InputError(f"another process works in {str(place)!r}") from None
