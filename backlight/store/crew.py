"""Several workers at once: who computes which block, and what happens where one dies."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

from backlight.errors import BacklightError
from backlight.evaluation.evaluation import Skipped
from backlight.store.arrays import Layout
from backlight.store.worker import First

ATTEMPTS = 3  # workers that a block may cost


class ExtractionError(BacklightError, RuntimeError):
    """Workers died again and again at the same samples. Fix: see the message; what is finished is kept."""


@dataclass(frozen=True)
class Task:
    """What a worker is to do: a block, or (`layout` None) to find out which arrays it will need."""

    block: int
    layout: Layout | None
    probing: bool = False


@dataclass(frozen=True)
class News:
    """Of one worker: it did some samples, finished a task, failed (`error`), or died (`death`).

    The first `finished` of a worker says that it is there.
    """

    worker: int
    samples: int = 0
    skipped: list[Skipped] = field(default_factory=list)
    finished: bool = False
    result: Any = None
    error: BaseException | None = None
    death: str | None = None


class Workers(Protocol):
    """Processes that do tasks."""

    def hire(self) -> int:
        """Begin another worker; its number."""
        ...

    def give(self, worker: int, task: Task) -> None:
        """Send a task to a worker that has none."""
        ...

    def news(self) -> Iterable[News]:
        """Wait until there are some."""
        ...

    def close(self) -> None:
        """End all of them, also those at work."""
        ...


class Crew:
    """Hands blocks to workers until all are done.

    `begin`: called once, in a new store, with what its first samples tell; `tell`: with samples done and skipped.
    """

    def __init__(self, workers: Workers, size: int, begin: Callable[[First], None], tell: Callable[..., None]) -> None:
        self.workers, self.size, self.begin, self.tell = workers, size, begin, tell
        self.queue: deque[int] = deque()
        self.tasks: dict[int, Task | None] = {}
        self.starting: set[int] = set()  # of a cluster that is full, some may never come
        self.fruitless = 0  # deaths since something was finished
        self.partial: Counter[int] = Counter()  # samples of a task under way, which are lost where its worker dies
        self.deaths: dict[int, list[str]] = {}
        self.layout: Layout | None = None

    def run(self, todo: Iterable[int], layout: Layout | None) -> None:
        """Compute these blocks.

        Raises:
            ExtractionError: at the end, blocks at which `ATTEMPTS` workers died; the others are done.
            BaseException: what a collector raised; blocks that were under way are lost.
        """
        self.queue, self.layout = deque(todo), layout
        try:
            for _ in range(min(self.size, len(self.queue))):
                self.starting.add(self.workers.hire())
            while self.queue or any(self.tasks.values()):
                self._hand_out()
                for news in self.workers.news():
                    self._heed(news)
        finally:
            self.workers.close()
        lost = {block: said for block, said in self.deaths.items() if len(said) >= ATTEMPTS}
        if lost:
            block, said = next(iter(lost.items()))
            raise ExtractionError(
                f"{len(said)} workers died at block {block} ({said[-1]})"
                + (f", and so at blocks {', '.join(map(str, list(lost)[1:]))}" if len(lost) > 1 else "")
                + "; the other blocks are finished. The same call tries these again; a smaller batch size or fewer "
                "workers need less memory"
            )

    def _hand_out(self) -> None:
        for worker, task in self.tasks.items():
            if task is not None or not self.queue:
                continue
            probing = self.layout is None
            if probing and any(other is not None for other in self.tasks.values()):
                return  # the arrays are made from one worker's first samples; the others wait for them
            given = Task(self.queue.popleft(), self.layout, probing)
            self.tasks[worker] = given
            self.workers.give(worker, given)

    def _heed(self, news: News) -> None:
        if news.error is not None:
            raise news.error
        if news.samples or news.skipped:
            self.partial[news.worker] += news.samples
            self.tell(news.samples, news.skipped)
        if news.death is not None:
            self._replace(news.worker, news.death)
        elif news.finished and news.worker in self.starting:
            self.starting.remove(news.worker)
            self.tasks[news.worker] = None
        elif news.finished:
            self.fruitless = 0
            task, self.tasks[news.worker] = self.tasks[news.worker], None
            self.partial[news.worker] = 0
            if task is not None and task.probing:
                self._probed(news.worker, task.block, news.result)

    def _probed(self, worker: int, block: int, first: First | None) -> None:
        if first is not None:
            self.begin(first)
            self.layout = first.layout
        self.tasks[worker] = Task(block, self.layout)  # the worker has its first batch already
        self.workers.give(worker, Task(block, self.layout))

    def _replace(self, worker: int, death: str) -> None:
        self.starting.discard(worker)
        task = self.tasks.pop(worker, None)
        self.tell(-self.partial.pop(worker, 0), [])
        self.fruitless += 1
        if task is not None:
            said = self.deaths.setdefault(task.block, [])
            said.append(death)
            if len(said) < ATTEMPTS:
                self.queue.appendleft(task.block)
        if self.fruitless >= ATTEMPTS * max(2, self.size):
            raise ExtractionError(
                f"{self.fruitless} workers died one after the other ({death}), and none finished anything. In a "
                'script, call extract inside `if __name__ == "__main__":`; a smaller batch size or fewer workers need '
                "less memory"
            )
        if self.queue:
            self.starting.add(self.workers.hire())
