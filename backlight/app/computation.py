"""A computation in a thread of its own, watched: it says what it does, and stops where nobody waits for it any more.

The engine uses hooks that are global to the process while it works, so one computation runs at a time: it holds the
lock of the workspace. A listener that is cancelled closes its generator; the computation ends at its next forward pass.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

from torch import Tensor

from backlight.models import LoadedModel
from backlight.models.pixels import PixelModel
from backlight.shapes import Float

T = TypeVar("T")
GLANCE = 0.1  # seconds between looks at what a computation says


class Stopped(BaseException):
    """Nobody waits for the result. Not an `Exception`: no handler on the way may take it for a failure of its own."""


class Watch:
    """What a computation tells of itself, and hears: `say` and `front` raise `Stopped` once it has been stopped."""

    def __init__(self) -> None:
        self.words = ""
        self._over = threading.Event()
        self._said = ""
        self._passes = 0

    def stop(self) -> None:
        """Ask the computation to end."""
        self._over.set()

    def check(self) -> None:
        """Raise `Stopped` where nobody waits any more."""
        if self._over.is_set():
            raise Stopped

    def say(self, words: str) -> None:
        """Tell what begins now, in a few words for the user."""
        self.check()
        self._said, self.words, self._passes = words, words, 0

    def passed(self) -> None:
        """Note a forward pass."""
        self.check()
        self._passes += 1
        if self._passes > 1:
            self.words = f"{self._said}: pass {self._passes}".removeprefix(": ")

    def front(self, loaded: LoadedModel) -> PixelModel:
        """The network behind a front that takes pictures in [-1, 1], which notes every pass."""
        return WatchedModel(loaded, self)


class WatchedModel(PixelModel):
    """`PixelModel`, told of to a watch at every forward pass. It holds the shared network and never writes to it."""

    def __init__(self, loaded: LoadedModel, watch: Watch) -> None:
        super().__init__(loaded.model, loaded.preprocessing.mean, loaded.preprocessing.std)
        self.watch = watch

    def forward(self, x: Float[Tensor, "N 3 H W"]) -> Any:
        self.watch.passed()
        return super().forward(x)


class Running(Generic[T]):
    """A computation that runs while its words are iterated over; then `result` is what it gave, or raises what it did.

    running = Running(workspace.lock, lambda watch: ...)
    for words in running:
        yield words
    running.result
    """

    def __init__(self, lock: threading.Lock, work: Callable[[Watch], T]) -> None:
        self.watch = Watch()
        self._lock, self._work = lock, work
        self._results: list[T] = []
        self._error: BaseException | None = None
        self._done = threading.Event()

    def __iter__(self) -> Iterator[str]:
        thread = threading.Thread(target=self._run, name="backlight-computation", daemon=True)
        thread.start()
        told = None
        try:
            while not self._done.wait(GLANCE):
                if self.watch.words != told:
                    told = self.watch.words
                    yield told
        finally:  # also where the listener was cancelled: its generator is closed at the yield
            self.watch.stop()

    @property
    def result(self) -> T:
        """What the computation gave. Raises what it raised."""
        if self._error is not None:
            raise self._error
        return self._results[0]

    def _run(self) -> None:
        try:
            self.watch.words = "waiting for another computation"
            while not self._lock.acquire(timeout=GLANCE):
                self.watch.check()
            try:
                self.watch.words = "starting"
                self._results.append(self._work(self.watch))
            finally:
                self._lock.release()
        except BaseException as error:
            self._error = error
        finally:
            self._done.set()
