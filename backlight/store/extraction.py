"""Extraction: what a collector computes of many samples, into a store that a kill at any point does no harm to."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from backlight.errors import InputError, UnknownNameError
from backlight.evaluation.evaluation import Skipped
from backlight.evaluation.identity import versions
from backlight.evaluation.samples import Samples
from backlight.store.arrays import Arrays
from backlight.store.crew import Crew, Workers
from backlight.store.marks import read_marks, unfinished
from backlight.store.processes import AT_WORK, Processes
from backlight.store.record import ARRAYS, MARKS, Record, locked
from backlight.store.store import Store
from backlight.store.worker import Collector, First, Job, Worker, torch_threads
from backlight.store.writing import check_dtype, make_folder

ENGINES = ("process", "ray")
BLOCK, BATCH = 128, 8
PATIENCE = 10.0  # seconds that the workers of a killed call have to end


@dataclass(frozen=True)
class Progress:
    """What is done: `done` of `total` samples, `rate` of them a second in this call; what was skipped just now."""

    done: int
    total: int
    rate: float = 0.0
    skipped: tuple[Skipped, ...] = ()


def _silent(_: Progress) -> None:
    pass


def extract(
    collector: Collector,
    samples: Samples,
    folder: str | os.PathLike[str],
    *,
    engine: str = "process",
    workers: int = 1,
    threads: int | None = None,
    batch_size: int = BATCH,
    block: int = BLOCK,
    dtype: str = "float32",
    progress: Callable[[Progress], None] = _silent,
) -> Store:
    """Compute of every sample what the collector says, and write it to the store in `folder`, block by block.

    After a kill at any point the same call goes on; at most the blocks under way (one a worker) are computed again. The
    finished store is the same, bit for bit on CPUs of one kind, whatever was interrupted and however many workers there
    were: batches and their threads are the same. A sample that cannot be read is skipped and listed, and tried again
    when its file has changed; so is one whose numbers are not finite. More samples later, of which these are the first,
    are added. Memory: of a batch, and of a block's rows.

    Args:
        collector: see `Collector`; of the house: `backlight.contributions.ContributionCollector`.
        samples: with names, in an order of which a smaller number is a prefix.
        engine: "process": this one, or `workers` new ones on this machine; "ray": actors of a Ray cluster, whose nodes
            all see `folder` and the samples.
        threads: of torch in each process; None: what the store began with, else the present number over `workers`.
        batch_size: samples that are computed together. block: samples that are finished together, and lost together
            where a call is killed; rounded up to whole batches.
        dtype: "float32" or "float16" of rows and maps.
        progress: called after each batch, from a Ray cluster after each block.

    Raises:
        InputError: no sample, or none that can be read; a folder that another process writes to, or that holds a store
            of other settings, data or order.
        ExtractionError: workers died again and again at the same samples; the others are finished.
        MissingExtraError: zarr, or Ray, is not installed.
    """
    _check(samples, engine, workers, threads, batch_size, block, dtype)
    path = Path(folder).absolute()
    block = -(-block // batch_size) * batch_size
    make_folder(path)
    with _alone(path):
        settings = {"batch_size": batch_size, "block": block, "dtype": dtype}
        record = _record(path, collector, samples, settings)
        marks = read_marks(path / MARKS)
        todo = unfinished(marks, samples, block)
        if todo:
            record.about = dict(collector.about)
            threads = _begin(path, record, engine, workers, threads, len(samples.names), len(marks))
            job = Job(path, collector, samples, batch_size, block, dtype, threads)
            told = _Told(len(samples.names), sum(min(block, len(samples.names) - n * block) for n in todo), progress)
            _compute(job, record, todo, engine, workers, told)
        if record.layout is None:
            reason = next((why for mark in read_marks(path / MARKS).values() for why in mark.skipped.values()), "")
            raise InputError(f"none of the {len(samples.names)} samples could be read: {reason}")
    return Store.open(folder)


def _compute(job: Job, record: Record, todo: Sequence[int], engine: str, workers: int, told: _Told) -> None:
    def begin(first: First) -> None:
        record.sites, record.layout = first.sites, first.layout
        Arrays(job.folder / ARRAYS, first.layout, writing=True).create(record.samples)
        record.write(job.folder)

    if record.layout is not None:
        Arrays(job.folder / ARRAYS, record.layout, writing=True).create(record.samples)
    if engine == "process" and workers == 1:
        worker = Worker(job)
        with torch_threads(job.threads):
            for block in todo:
                if record.layout is None and (first := worker.first(block)) is not None:
                    begin(first)
                worker.run(block, record.layout, told)
        return
    found: Workers = Processes(job)
    if engine == "ray":
        from backlight.store.ray_workers import RayWorkers

        found = RayWorkers(job)
    Crew(found, workers, begin, told).run(todo, record.layout)


class _Told:
    """Counts samples, and tells how many there are and how fast they come."""

    def __init__(self, total: int, left: int, progress: Callable[[Progress], None]) -> None:
        self._total, self._done, self._progress = total, total - left, progress
        self._before, self._begun = self._done, time.monotonic()
        progress(Progress(self._done, total))

    def __call__(self, samples: int, skipped: list[Skipped]) -> None:
        self._done += samples
        seconds = max(time.monotonic() - self._begun, 1e-9)
        rate = max(0, self._done - self._before) / seconds
        self._progress(Progress(self._done, self._total, rate, tuple(skipped)))


def _check(
    samples: Samples, engine: str, workers: int, threads: int | None, batch_size: int, block: int, dtype: str
) -> None:
    if engine not in ENGINES:
        raise UnknownNameError("engine", engine, ENGINES)
    check_dtype(dtype)
    sizes = {"workers": workers, "threads": threads, "batch_size": batch_size, "block": block}
    for name, size in sizes.items():
        if size is not None and size < 1:
            raise InputError(f"{name} must be at least 1, got {size}")
    if not samples.names or len(set(samples.names)) != len(samples.names):
        raise InputError("samples need names, each once" if samples.names else "there are no samples")


def _record(folder: Path, collector: Collector, samples: Samples, settings: dict[str, Any]) -> Record:
    """The folder's record, or a new one. Raises `InputError` where the settings are others."""
    identity = {
        "backlight": versions()["backlight"],
        "data": samples.fingerprint,
        **collector.identity,
        "extraction": settings,
    }
    identity = json.loads(json.dumps(identity))
    record = Record.read(folder)
    if record is None:
        if any((folder / MARKS).glob("[0-9]*.json")):
            raise InputError(f"{str(folder)!r} has finished blocks without a store.json: give another folder")
        return Record(identity)
    record.check(folder, identity)
    return record


def _begin(
    folder: Path, record: Record, engine: str, workers: int, threads: int | None, samples: int, done: int
) -> int:
    """Note that a call begins, with what need not be the same as before; torch's threads in each process."""
    if threads is None:
        earlier = [session["threads"] for session in record.sessions]
        threads = earlier[0] if earlier else max(1, torch.get_num_threads() // workers)
    record.samples = max(record.samples, samples)
    session = {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "samples": samples,
        "blocks_before": done,
        "engine": engine,
        "workers": workers,
        "threads": threads,
        "versions": versions(),
    }
    record.sessions.append(session)
    record.write(folder)
    return threads


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Only one call writes to a store, and none of the workers of an earlier one that was killed."""
    with ExitStack() as held:
        try:
            held.enter_context(locked(folder / ".lock"))
        except BlockingIOError:
            raise InputError(f"another process extracts to {str(folder)!r}") from None
        _wait_for_workers(folder)
        yield


def _wait_for_workers(folder: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            with locked(folder / AT_WORK):
                return
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise InputError(
                    f"workers of an extraction that was killed still write to {str(folder)!r}: end them first"
                ) from None
        time.sleep(0.05)


__all__ = ["Progress", "extract"]
