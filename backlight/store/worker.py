"""The work on one block of samples, in whatever process: load, collect, write, mark."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from backlight.data.labelled import Sample
from backlight.errors import ImageError, NonFiniteError
from backlight.evaluation.evaluation import Skipped
from backlight.evaluation.samples import Samples
from backlight.store.arrays import Arrays, Layout
from backlight.store.collected import NEGATIVE, POSITIONS, POSITIVE, Collected
from backlight.store.marks import Mark, content, write_mark
from backlight.store.record import ARRAYS, MARKS
from backlight.store.writing import BlockWriter, with_label


class Collecting(Protocol):
    """A collector at work: it has its network, and whatever else costs time and memory."""

    def collect(self, samples: Sequence[Sample]) -> Collected:
        """What is stored of some samples. A sample's numbers may depend on the batch it is in, but on nothing else."""
        ...


class Collector(Protocol):
    """What is computed of samples; it is sent to other processes, by pickling.

    `identity`: plain values that decide the numbers; where an extraction goes on they must be the same. `about`: plain
    values that do not, such as paths. `open(worker)`: called once in each process; `worker` counts them.
    `resources`: what Ray is to keep free for each of them, such as `{"num_gpus": 1}`.
    """

    @property
    def identity(self) -> Mapping[str, Any]: ...

    @property
    def about(self) -> Mapping[str, Any]: ...

    @property
    def resources(self) -> Mapping[str, float]: ...

    def open(self, worker: int) -> Collecting: ...


@dataclass(frozen=True)
class Job:
    """An extraction, as each of its processes knows it. `threads`: of torch, in each."""

    folder: Path
    collector: Collector
    samples: Samples
    batch_size: int
    block: int
    dtype: str
    threads: int


@dataclass(frozen=True)
class First:
    """What the first samples tell of a new store: its sites and arrays. None where no sample could be read."""

    sites: list[str]
    layout: Layout


Tell = Callable[[int, list[Skipped]], None]
_Batch = tuple[list[int], dict[str, np.ndarray], list[str]]


class Worker:
    """Computes blocks. The collector opens when the first one is asked for; batches are the same in every process."""

    def __init__(self, job: Job, number: int = 0) -> None:
        self.job, self.number = job, number
        self._collecting: Collecting | None = None
        self._kept: tuple[int, list[Sample], Collected] | None = None

    def first(self, block: int) -> First | None:
        """The arrays that a block will need, from its first readable batch, which is not computed again."""
        for start, names in self._batches(block):
            samples, collected = self._collected(list(self._readable(names, {})), {})
            if collected is not None:
                self._kept = start, samples, collected
                arrays = with_label(collected, [one.target for one in samples]).arrays(self.job.dtype)
                return First(list(collected.sites), Layout.of(arrays, self.job.batch_size, self.job.block))
        return None

    def run(self, block: int, layout: Layout | None, tell: Tell) -> int:
        """Compute a block, write it, and mark it when it is on the disk; how many samples it has.

        `layout`: None where no sample of any block could be read.
        """
        start = block * self.job.block
        names = list(self.job.samples.names[start : start + self.job.block])
        skipped: dict[str, str] = {}
        arrays = None if layout is None else Arrays(self.job.folder / ARRAYS, layout, writing=True)
        writer = None if arrays is None else BlockWriter(arrays, start, len(names))
        for first, group in self._batches(block):
            known = len(skipped)
            samples, collected = self._batch(first, group, skipped)
            if collected is not None and writer is not None:
                found = with_label(collected, [one.target for one in samples]).arrays(self.job.dtype)
                skipped |= _not_finite(samples, found)
                good = [row for row, one in enumerate(samples) if one.name not in skipped]
                places = [first - start + group.index(samples[row].name) for row in good]
                writer.add(places, {key: array[good] for key, array in found.items()})
            tell(len(group), [Skipped(*pair) for pair in list(skipped.items())[known:]])
        if writer is not None and len(skipped) < len(names):
            writer.finish()
        contents = [content(self.job.samples, name) for name in names]
        write_mark(self.job.folder / MARKS, block, Mark(start, names, contents, skipped))
        return len(names)

    def _batches(self, block: int) -> Iterator[tuple[int, list[str]]]:
        stop = min((block + 1) * self.job.block, len(self.job.samples.names))
        for start in range(block * self.job.block, stop, self.job.batch_size):
            yield start, list(self.job.samples.names[start : min(start + self.job.batch_size, stop)])

    def _batch(self, start: int, names: list[str], skipped: dict[str, str]) -> tuple[list[Sample], Collected | None]:
        kept, self._kept = self._kept, None
        if kept is not None and kept[0] == start:
            read = {one.name for one in kept[1]}
            list(self._readable([name for name in names if name not in read], skipped))  # for their reasons
            return kept[1], kept[2]
        return self._collected(list(self._readable(names, skipped)), skipped)

    def _readable(self, names: Sequence[str], skipped: dict[str, str]) -> Iterator[Sample]:
        for name in names:
            try:
                yield self.job.samples.load(name)
            except ImageError as error:
                skipped[name] = " ".join(str(error).split())

    def _collected(self, samples: list[Sample], skipped: dict[str, str]) -> tuple[list[Sample], Collected | None]:
        """The rows of samples; none where no sample has finite ones."""
        try:
            return samples, self._collect(samples) if samples else None
        except NonFiniteError as error:
            skipped |= dict.fromkeys((one.name for one in samples), " ".join(str(error).split()))
            return [], None

    def _collect(self, samples: list[Sample]) -> Collected:
        if self._collecting is None:
            self._collecting = self.job.collector.open(self.number)
        return self._collecting.collect(samples)


def _not_finite(samples: Sequence[Sample], arrays: Mapping[str, np.ndarray]) -> dict[str, str]:
    """The samples whose rows have NaN or infinite entries: they would spoil every statistic of the store."""
    found: dict[str, str] = {}
    for key, array in arrays.items():
        if not key.endswith((POSITIVE, NEGATIVE, POSITIONS)):
            continue
        finite = np.isfinite(array).reshape(len(array), -1).all(1)
        for row in np.flatnonzero(~finite):
            found.setdefault(samples[int(row)].name, f"{key} has NaN or infinite entries")
    return found


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Let torch use this many threads while the context lasts: sums depend on it, in their last bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
