"""Run with a folder: extractions in processes of their own that are killed, before every file that falls into place.

A process that imports torch once forks those that are killed, so that a kill costs milliseconds. Prints JSON: by
folder, how many processes were killed in it before one came through. With `--all`: before every call to the file
system.
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
import zarr  # so that those that are forked have it
from small_extraction import Linear, Numbered, small

from backlight.store import durable

torch.set_num_threads(1)
assert zarr
assert durable


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
        raise SystemExit("an extraction failed")
    return os.WIFSIGNALED(status)


def run(out: Path, samples: int = 7) -> None:
    small(out, Numbered(samples, broken=(4,)), Linear(thin=True), batch_size=2, block=2)


def until(event: int, out: Path, every: bool, samples: int = 7) -> Callable[[], Any]:
    """The extraction, killed before the given one of its calls to the file system."""
    left = [event]

    def watched(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **settings: Any) -> Any:
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **settings)

        return call

    def work() -> None:
        for owner, name in ((os, "replace"), *([(os, "fsync"), (Path, "unlink"), (Path, "mkdir")] if every else [])):
            setattr(owner, name, watched(getattr(owner, name)))
        run(out, samples)

    return work


def main(folder: Path, every: bool) -> dict[str, int]:
    began = time.monotonic()
    assert not killed(lambda: run(folder / "whole"))
    took = time.monotonic() - began
    assert not killed(lambda: run(folder / "short", 3))
    found: dict[str, int] = {}
    event = 0
    while killed(until(event, out := folder / f"write-{event:03d}", every)):
        if event % 4 == 0:
            killed(until(event // 2, out, every))  # again, on the way to go on
        assert not killed(lambda out=out: run(out))
        found[out.name] = 1
        event += 1
    out = folder / "grown"  # while a block that was shorter is computed anew
    for event in range(0, 12, 2):
        assert not killed(lambda: run(out, 3)) or event
        killed(until(event, out, every))
    assert not killed(lambda: run(out))
    found[out.name] = 6
    draws = random.Random(0)
    for number, share in enumerate((0.0, *(draws.random() for _ in range(7)))):  # at 0 it is killed on any machine
        out = folder / f"time-{number}"
        found[out.name] = int(killed(lambda out=out: run(out), share * took))
        assert not killed(lambda out=out: run(out))
    return found


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), "--all" in sys.argv)))
