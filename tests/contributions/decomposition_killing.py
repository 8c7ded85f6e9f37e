"""A decomposition in a process that kills itself after a number of durable writes: `FOLDER METHOD WRITES`."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

import torch
from decomposition_data import planted

from backlight.decompositions import checkpoints, folder
from backlight.evaluation import journal
from backlight.store.rows import TensorRows

module = import_module("backlight.contributions.decompose")  # the function of that name hides it
SETTINGS = {
    "ThresholdSAE:revived": {"epochs": 4, "revive_every": 2, "modes": 12, "schedule": "plateau"},
    "TopKSAE": {"epochs": 3, "modes": 60, "k": 1, "auxiliary": 0.5},
    "MatryoshkaSAE": {"steps": 5, "pass_steps": 2, "batch_size": 30, "modes": 20, "k": 2, "random_prefixes": 3},
    "NMF": {"epochs": 3, "modes": 6},
    "KMeans": {"epochs": 3, "modes": 6, "tolerance": 0.0},
    "PCA": {"modes": 6},
}


def run(place: Path, method: str) -> None:
    """Decompose the planted rows."""
    x, _ = planted(120, channels=12)
    module.decompose(TensorRows(x), "site", method, place, **SETTINGS[method])


def kill_in(place: Path, method: str, writes: int) -> bool:
    """In a fork that is killed at its write number `writes`, before, amid or after it; whether it was killed."""
    child = os.fork()
    if not child:
        left = [writes]

        @contextmanager
        def deadly(path: Path) -> Iterator[Path]:
            left[0] -= 1
            if left[0] == 0 and writes % 3 == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            with whole(path) as partial:
                yield partial
                if left[0] == 0 and writes % 3 == 1:
                    os.kill(os.getpid(), signal.SIGKILL)
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)

        whole = journal.whole
        journal.whole = folder.whole = module.whole = deadly
        run(place, method)
        os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    torch.set_num_threads(1)
    checkpoints.SHARE = float("inf")  # a checkpoint after each pass, whatever it costs
    root = Path(sys.argv[1])
    kills = 0
    for method in SETTINGS:
        name = method.partition(":")[0]
        run(root / f"{name}-whole", method)
        writes = 0
        while True:
            writes += 1
            place = root / f"{name}-{writes}"
            if not kill_in(place, method, writes):
                break
            kills += 1
            # killed again, amid what it goes on with
            kill_in(place, method, 2)
            run(place, method)
    print(kills)
