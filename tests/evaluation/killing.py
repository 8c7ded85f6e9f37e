"""Run with a folder: evaluations in processes of their own that are killed, at every write and at random times.

A process that imports torch once forks those that are killed, so that a kill costs milliseconds. Prints JSON: by
folder, how many processes were killed in it before one came through.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from small_run import Numbered, metrics, run

from backlight.evaluation import journal

torch.set_num_threads(1)
journal.MERGE_EVERY = 2  # so that the kills hit merges, too


def killed(work: Callable[[], Any], after: float | None = None) -> bool:
    """Whether a process of its own was killed, by itself or by us, before it was done."""
    child = os.fork()
    if not child:
        try:
            work()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    if after is not None:
        time.sleep(after)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise SystemExit("an evaluation failed")
    return os.WIFSIGNALED(status)


def until(event: int, out: Path) -> Callable[[], Any]:
    """The evaluation, killed before the given one of its calls to the file system."""
    left = [event]

    def watched(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **settings: Any) -> Any:
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **settings)

        return call

    def work() -> None:
        for owner, name in ((os, "replace"), (os, "fsync"), (Path, "unlink")):
            setattr(owner, name, watched(getattr(owner, name)))
        short(out, 2)

    return work


def short(out: Path, images_at_once: int) -> None:
    cheap = {"signed": metrics()["signed"]}
    run(out, Numbered(4), metrics=cheap, images_at_once=images_at_once, controls=False, negatives=False)


def main(folder: Path) -> dict[str, int]:
    short(folder / "whole", 2)  # also imports what a run needs, once for all
    found: dict[str, int] = {}
    event = 0
    while killed(until(event, out := folder / f"write-{event:03d}")):
        if event % 4 == 0:
            killed(until(event // 2, out))  # again, on the way to go on
        assert not killed(lambda out=out: short(out, 3))
        found[out.name] = 1
        event += 1
    draws, out = random.Random(0), folder / "times"
    found[out.name] = sum(killed(lambda: short(out, 1), draws.uniform(0.0, 0.1)) for _ in range(20))
    assert not killed(lambda: short(out, 2))
    return found


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]))))
