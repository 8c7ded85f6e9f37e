"""Workers that are actors of a Ray cluster.

Actors, not Ray Data's `map_batches`: a data set that loses a worker too often ends as a whole, and the blocks under way
with it; here a block that kills its workers is put aside and the others are finished, by the same rules as in processes
of one machine. Nothing flows between the blocks, which is what Ray Data would be for.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterable
from typing import Any

from backlight.errors import InputError, MissingExtraError
from backlight.store.crew import News, Task
from backlight.store.processes import at_work, done, portable
from backlight.store.worker import Job, Worker, torch_threads


class RayWorker:
    """One actor: a worker in a process of the cluster, whose file system has the store and the samples."""

    def __init__(self, job: bytes, number: int) -> None:
        self._pickled, self._number = job, number

    def begin(self) -> list[News]:
        """Open the job. An error here is told, where one in `__init__` would look like a death."""
        try:
            job: Job = pickle.loads(self._pickled)
            if not job.folder.is_dir():
                raise InputError(
                    f"a node of the cluster does not see {str(job.folder)!r}: a store for Ray lies on a shared disk"
                )
        except Exception as error:  # whatever an object's own unpickling raises
            return [News(self._number, error=portable(error))]
        self._worker = Worker(job, self._number)
        return [News(self._number, finished=True)]

    def do(self, task: Task) -> list[News]:
        """Do a task; all its news at once."""
        said: list[News] = []
        job = self._worker.job
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
        self._job = ray.put(_pickled(job))
        options = {"num_cpus": job.threads, **job.collector.resources}
        remote: Any = ray.remote
        self._class = remote(max_restarts=0, **options)(RayWorker)
        self._actors: list[Any] = []
        self._results: dict[Any, int] = {}

    def hire(self) -> int:
        """Begin another actor; it waits where the cluster is full."""
        number, actor = len(self._actors), self._class.remote(self._job, len(self._actors))
        self._actors.append(actor)
        self._results[actor.begin.remote()] = number
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
            yield News(worker, death=" ".join(str(error).split())[:300])

    def close(self) -> None:
        """End all actors, and the cluster where it was begun here."""
        for actor in self._actors:
            self._ray.kill(actor)
        if self._began:
            self._ray.shutdown()


def _pickled(job: Job) -> bytes:
    """The job as bytes; also where its classes are of a script or notebook."""
    from ray import cloudpickle

    try:
        found: bytes = cloudpickle.dumps(job)
    except Exception as error:  # whatever an object's own pickling raises
        raise InputError(f"the samples or the collector cannot be sent to the cluster: {error}") from None
    return found
