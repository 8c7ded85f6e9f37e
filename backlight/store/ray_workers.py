"""Workers that are actors of a Ray cluster.

Actors, not Ray Data's `map_batches`: a data set that loses a worker too often ends as a whole, and the blocks under way
with it; here a block that kills its workers is put aside and the others are finished, by the same rules as in processes
of one machine. Nothing flows between the blocks, which is what Ray Data would be for.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from backlight.errors import InputError, MissingExtraError
from backlight.store.crew import News, Task
from backlight.store.processes import at_work, done
from backlight.store.worker import Job, Worker, torch_threads


class RayWorker:
    """One actor: a worker in a process of the cluster, whose file system has the store and the samples."""

    def __init__(self, job: Job, number: int) -> None:
        self._worker = Worker(job, number)

    def begun(self) -> list[News]:
        """Say so."""
        return [News(self._worker.number, finished=True)]

    def do(self, task: Task) -> list[News]:
        """Do a task; all its news at once."""
        said: list[News] = []
        job = self._worker.job
        if not job.folder.is_dir():
            wrong = f"a node of the cluster does not see {str(job.folder)!r}: a store for Ray lies on a shared disk"
            return [News(self._worker.number, error=InputError(wrong))]
        with torch_threads(job.threads), at_work(job.folder):
            said.append(done(self._worker, task, said.append))
        return said


class RayWorkers:
    """Actors of the cluster that `ray.init()` finds, else of one that it begins on this machine.

    Raises:
        MissingExtraError: Ray is not installed.
    """

    def __init__(self, job: Job) -> None:
        try:
            import ray
        except ModuleNotFoundError:
            raise MissingExtraError("ray", "ray") from None
        self._ray, self._began = ray, not ray.is_initialized()
        if self._began:
            ray.init(log_to_driver=False)
        self._job = ray.put(job)
        options = {"num_cpus": job.threads, **job.collector.resources}
        remote: Any = ray.remote
        self._class = remote(max_restarts=0, **options)(RayWorker)
        self._actors: list[Any] = []
        self._results: dict[Any, int] = {}

    def hire(self) -> int:
        """Begin another actor; it waits where the cluster is full."""
        number, actor = len(self._actors), self._class.remote(self._job, len(self._actors))
        self._actors.append(actor)
        self._results[actor.begun.remote()] = number
        return number

    def give(self, worker: int, task: Task) -> None:
        """Send a task."""
        self._results[self._actors[worker].do.remote(task)] = worker

    def news(self) -> Iterable[News]:
        """Wait for an actor to begin, to end a task, or to die."""
        (ended, *_), _ = self._ray.wait(list(self._results))
        worker = self._results.pop(ended)
        try:
            yield from self._ray.get(ended)
        except self._ray.exceptions.RayActorError as error:
            yield News(worker, death=str(error).strip().splitlines()[0].rstrip("."))
        except self._ray.exceptions.RayTaskError as error:
            yield News(worker, error=error.cause if isinstance(error.cause, Exception) else error)

    def close(self) -> None:
        """End all actors, and the cluster where it was begun here."""
        for actor in self._actors:
            self._ray.kill(actor)
        if self._began:
            self._ray.shutdown()
