"""Workers that are processes of this machine."""

from __future__ import annotations

import os
import pickle
import signal
import threading
import time
import traceback
from collections.abc import Iterable
from contextlib import suppress
from multiprocessing import connection, get_all_start_methods, get_context, parent_process
from pathlib import Path
from typing import Any

from backlight.errors import BacklightError, InputError
from backlight.store.crew import News, Task
from backlight.store.record import locked
from backlight.store.worker import Job, Worker, torch_threads

AT_WORK = ".workers"  # locked, shared, by every worker


class Processes:
    """Workers in new processes, each with its own network. Raises `InputError` for a job that cannot be pickled."""

    def __init__(self, job: Job) -> None:
        self._job, self._context = pickled(job), _context()
        self._pipes: dict[int, Any] = {}
        self._processes: dict[int, Any] = {}
        self._hired = 0

    def hire(self) -> int:
        """Begin another worker."""
        number, self._hired = self._hired, self._hired + 1
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=_serve, args=(self._job, number, theirs), daemon=True)
        process.start()
        theirs.close()  # so that its end is seen here
        self._pipes[number], self._processes[number] = ours, process
        return number

    def give(self, worker: int, task: Task) -> None:
        """Send a task; where the worker is dead, `news` says so."""
        with suppress(OSError):
            self._pipes[worker].send(task)

    def news(self) -> Iterable[News]:
        """Wait for messages, and for ends of processes."""
        numbers = {pipe: number for number, pipe in self._pipes.items()}
        ready: list[Any] = connection.wait(list(numbers))
        for pipe in ready:
            number = numbers[pipe]
            try:
                yield pipe.recv()
            except (EOFError, OSError):
                process = self._processes.pop(number)
                self._pipes.pop(number).close()
                process.join()
                yield News(number, death=_death(process.exitcode))

    def close(self) -> None:
        """End all workers: those without a task by themselves, the others by force."""
        for pipe in self._pipes.values():
            pipe.close()
        deadline = time.monotonic() + 1.0
        for process in self._processes.values():
            process.join(max(0.0, deadline - time.monotonic()))
            process.terminate()
        for process in self._processes.values():
            process.join()


def _context() -> Any:
    """Never a fork of this process, whose threads and CUDA do not survive one: of a server that imports torch once."""
    if "forkserver" not in get_all_start_methods():
        return get_context("spawn")
    context = get_context("forkserver")
    context.set_forkserver_preload(["backlight.store.processes"])
    return context


def pickled(job: Job) -> bytes:
    """The job as bytes. Raises `InputError` where that cannot be, with the reason."""
    try:
        return pickle.dumps(job)
    except Exception as error:  # whatever an object's own pickling raises
        raise InputError(
            f"the samples or the collector cannot be sent to another process ({error}): define their classes and "
            "functions in a module, at its top level"
        ) from None


def _serve(job: bytes, number: int, pipe: Any) -> None:
    """The life of a worker: one task after the other, until the pipe or the parent ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends this process
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        loaded: Job = pickle.loads(job)
        worker = Worker(loaded, number)
        with torch_threads(loaded.threads), at_work(loaded.folder):
            pipe.send(News(number, finished=True))
            while True:
                pipe.send(done(worker, pipe.recv(), pipe.send))
    except EOFError:
        pass
    except Exception as error:  # a job that cannot be unpickled here
        pipe.send(News(number, error=portable(error)))


def done(worker: Worker, task: Task, send: Any) -> News:
    """Do a task; `send` takes the news on the way."""
    try:
        result: Any
        if task.probing:
            result = worker.first(task.block)
        else:
            result = worker.run(
                task.block, task.layout, lambda samples, skipped: send(News(worker.number, samples, skipped))
            )
        return News(worker.number, finished=True, result=result)
    except Exception as error:
        return News(worker.number, error=portable(error))


def portable(error: Exception) -> Exception:
    """The error, or where it does not survive pickling, one that says the same; with its traceback as a note."""
    said = traceback.format_exc()
    try:
        found = pickle.loads(pickle.dumps(error))
    except Exception:  # as above
        found = (BacklightError if isinstance(error, BacklightError) else RuntimeError)(str(error))
    if not isinstance(found, BacklightError):
        found.add_note(f"in a worker:\n{said}")
    return found


def at_work(folder: Path) -> Any:
    """A lock that all workers of a store share, and that ends with them."""
    return locked(folder / AT_WORK, shared=True)


def _death(code: int | None) -> str:
    if code is not None and code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else str(-code)
        return f"killed by {name}" + (", as systems do that run out of memory" if name == "SIGKILL" else "")
    return f"it ended with status {code}"


def _end_with_parent() -> None:
    """Else a worker whose parent was killed would go on writing, beside those of the next call."""
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)
