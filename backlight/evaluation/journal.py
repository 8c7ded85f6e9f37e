"""The journal: rows of an evaluation on disk, written as they come, whole or not at all.

A folder holds `run.json`, what decides the numbers; `results.parquet`, the rows that were merged; and `parts/`, a
Parquet file for each group of samples since. A file appears under its name when all of it is on the disk, and a
sample's rows are all in one file: a process that is killed loses the group it works on, and nothing else.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from backlight.errors import ImageError, InputError, MissingExtraError
from backlight.evaluation.identity import differences

RUN, RESULTS, PARTS = "run.json", "results.parquet", "parts"
KEY, COST = ("sample", "method"), ("seconds", "forwards", "backwards")
MERGE_EVERY = 256  # parts; a journal of a long run is then no heap of small files
_FAILURES = b"backlight.failures"


@dataclass(frozen=True)
class Failure:
    """A method, or a metric of a method, that has no value at a sample. `metric`: "" where there is no map."""

    sample: str
    method: str
    metric: str
    reason: str


class Journal:
    """The rows of one folder, for one process at a time: `with Journal(folder, identity, metrics) as journal`.

    `identity`: plain values; where the folder has others, that is an error that says which. `metrics`: the names of
    their columns. `done`: the samples that have rows, and the hash of what each was made of.

    Raises:
        InputError: another identity, another process at work in the folder, or a file that cannot be read.
        MissingExtraError: pyarrow is not installed.
    """

    def __init__(self, folder: str | os.PathLike[str], identity: Mapping[str, Any], metrics: Sequence[str]) -> None:
        _arrow()
        self.folder, self.identity, self.metrics = Path(folder), json.loads(json.dumps(identity)), list(metrics)
        self.done: dict[str, str] = {}
        self.run: dict[str, Any] = {}
        self._lock: Any = None
        self._number = 0

    def __enter__(self) -> Journal:
        _make_folder(self.folder / PARTS)
        self._lock = _locked(self.folder)
        try:
            self._open()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            self._lock.close()  # which ends the lock
            self._lock = None

    def _open(self) -> None:
        for left in (*self.folder.glob(".*.partial"), *(self.folder / PARTS).glob(".*.partial")):
            left.unlink(missing_ok=True)
        run = read_run(self.folder)
        if run is None:
            self.run = {"identity": self.identity, "sessions": []}
            if (self.folder / RESULTS).exists() or any((self.folder / PARTS).glob("*.parquet")):
                raise InputError(f"{str(self.folder)!r} has results without a {RUN}: give another folder")
            self.write_run()
        else:
            refuse_others(self.folder, run, self.identity)
            self.run = run
        table, _ = read_rows(self.folder)
        columns = [] if table is None else [table.column(name).to_pylist() for name in ("sample", "data")]
        self.done = dict(zip(*columns, strict=True)) if columns else {}
        self._number = 1 + max((int(path.stem) for path in _parts(self.folder)), default=-1)

    def write_run(self) -> None:
        """Write `run.json` anew."""
        write_text(self.folder / RUN, json.dumps(self.run, indent=2, ensure_ascii=False) + "\n")

    def unchanged(self, names: Iterable[str], content: Callable[[str], str]) -> None:
        """Raise `InputError` where samples that have rows are no more made of what they were; it names them."""
        changed = []
        for name in (name for name in names if name in self.done):
            try:
                changed += [] if content(name) == self.done[name] else [repr(name)]
            except ImageError as error:
                changed.append(f"{name!r} ({error})")
        if changed:
            raise InputError(
                f"{str(self.folder)!r} holds numbers of samples that have changed since: {', '.join(changed[:6])}"
                f"{f' and {len(changed) - 6} more' * (len(changed) > 6)}. Give another folder, or bring them back"
            )

    def append(self, rows: Sequence[Mapping[str, Any]], failures: Sequence[Failure] = ()) -> None:
        """Rows of new samples, all or none of them."""
        pyarrow, _ = _arrow()
        new = {row["sample"]: row["data"] for row in rows}
        if twice := new.keys() & self.done.keys():
            raise InputError(f"the sample {min(twice)!r} has its rows already")
        table = pyarrow.Table.from_pylist(list(rows), schema=_schema(self.metrics))
        _write_table(self.folder / PARTS / f"{self._number:08d}.parquet", table, failures)
        self.done |= new
        self._number += 1
        if self._number % MERGE_EVERY == 0:
            self.merge()

    def merge(self, order: Sequence[str] = ()) -> None:
        """Bring all rows into `results.parquet`; `order`: of the samples."""
        table, failures = read_rows(self.folder)
        if table is None:
            return
        if order:
            places = {name: place for place, name in enumerate(order)}
            samples = table.column("sample").to_pylist()
            rows = sorted(range(len(samples)), key=lambda row: places.get(samples[row], len(places)))
            table = table.take(_arrow()[0].array(rows, _arrow()[0].int64()))
            failures.sort(key=lambda one: places.get(one.sample, len(places)))
        _write_table(self.folder / RESULTS, table, failures)
        for path in _parts(self.folder):  # killed here, the next one finds these samples twice, and takes them once
            path.unlink()


def refuse_others(folder: str | os.PathLike[str], run: Mapping[str, Any] | None, identity: Mapping[str, Any]) -> None:
    """Raise `InputError` where a folder's `run.json` has another identity; it says which settings differ."""
    found = [] if run is None else differences(run["identity"], json.loads(json.dumps(identity)))
    if found:
        raise InputError(
            f"{str(folder)!r} holds an evaluation with other settings: {'; '.join(found[:6])}"
            f"{' and more' * (len(found) > 6)}. Give another folder, or the same settings"
        )


def read_run(folder: str | os.PathLike[str]) -> dict[str, Any] | None:
    """`run.json`; None where there is none. Raises `InputError` where it cannot be read."""
    path = Path(folder) / RUN
    if not path.exists():
        return None
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {str(path)!r}: {error}") from None
    if not isinstance(run, dict) or not {"identity", "sessions"} <= set(run):
        raise InputError(f"{str(path)!r} is not the run.json of an evaluation")
    return run


def read_rows(folder: str | os.PathLike[str]) -> tuple[Any, list[Failure]]:
    """All rows of a folder as a `pyarrow.Table`, None where there are none; and what failed.

    Raises:
        InputError: a file that cannot be read.
    """
    pyarrow, parquet = _arrow()
    folder, tables, failures, seen = Path(folder), [], [], set[str]()
    for path in (folder / RESULTS, *_parts(folder)):
        if not path.exists():
            continue
        try:
            table = parquet.read_table(path)
        except (OSError, pyarrow.ArrowException) as error:
            raise InputError(f"cannot read {str(path)!r}; remove it to compute its samples again: {error}") from None
        samples = table.column("sample").to_pylist()
        new = [row for row, name in enumerate(samples) if name not in seen]
        fresh = set(samples) - seen
        noted = json.loads((table.schema.metadata or {}).get(_FAILURES, b"[]"))
        failures += [Failure(*one) for one in noted if one[0] in fresh]
        tables.append(table if len(new) == len(samples) else table.take(pyarrow.array(new, pyarrow.int64())))
        seen |= fresh
    return (pyarrow.concat_tables(tables) if tables else None), failures


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A path to write to, which takes the place of `path` once all of it is on the disk."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        yield partial
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
        _sync_folder(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    with whole(path) as partial:
        partial.write_text(text, encoding="utf-8", newline="")


def _write_table(path: Path, table: Any, failures: Iterable[Failure]) -> None:
    _, parquet = _arrow()
    noted = json.dumps([astuple(one) for one in failures]).encode()
    with whole(path) as partial:
        parquet.write_table(table.replace_schema_metadata({_FAILURES: noted}), partial)


def _schema(metrics: Sequence[str]) -> Any:
    pyarrow, _ = _arrow()
    text, number, whole_number = pyarrow.string(), pyarrow.float64(), pyarrow.int64()
    kinds = {"sample": text, "method": text, "target": whole_number, "predicted": whole_number, "score": number}
    kinds |= {"data": text} | dict.fromkeys((*metrics, *COST), number)
    return pyarrow.schema(list(kinds.items()))


def _parts(folder: Path) -> list[Path]:
    return sorted(path for path in (folder / PARTS).glob("*.parquet") if not path.name.startswith("."))


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write to {str(folder)!r}: {error.strerror}") from None


def _locked(folder: Path) -> Any:
    """A file that is locked as long as it is open, also where the process is killed."""
    file = (folder / PARTS / ".lock").open("w")
    try:
        import fcntl
    except ImportError:  # Windows has no such lock
        return file
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise InputError(f"another process writes to {str(folder)!r}") from None
    return file


def _sync_folder(folder: Path) -> None:
    with suppress(OSError):  # where folders cannot be opened
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _arrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ModuleNotFoundError:
        raise MissingExtraError("pyarrow", "evaluation") from None
    return pyarrow, parquet
