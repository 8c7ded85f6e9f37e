"""Run with a folder: banks, dictionaries and codes in processes that are killed before files that fall into place.

A process that imports torch once forks those that are killed: at `KILLS` files from the first to the last, then again
half way there. Prints JSON: before which file each was killed.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import zarr  # so that those that are forked have it
from concept_banks import fitted, pictures, small

from backlight.concepts import concepts_codes
from backlight.concepts.bank import Bank

torch.set_num_threads(1)
assert zarr
concepts_codes.PIECE = 3
KILLS = 3


def killed(work: Callable[[], Any], event: int | None) -> bool:
    """Whether a process of its own was killed before the given file fell into place; None: it is not."""
    child = os.fork()
    if not child:
        try:
            if event is not None:
                _kill_before(event)
            work()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise SystemExit("a process failed")
    return os.WIFSIGNALED(status)


def _kill_before(event: int) -> None:
    _count(lambda done: os.kill(os.getpid(), signal.SIGKILL) if done > event else None)


def _count(tell: Callable[[int], Any]) -> None:
    """Call with the number of files that fell into place, before each does."""
    replace, done = os.replace, [0]

    def watched(*arguments: Any, **settings: Any) -> Any:
        done[0] += 1
        tell(done[0])
        return replace(*arguments, **settings)

    os.replace = watched


def _counted(work: Callable[[Path], Any], out: Path, note: Path) -> None:
    _count(lambda done: note.write_text(str(done)))
    work(out)


def main(folder: Path) -> dict[str, list[int]]:
    bank = folder / "bank-whole"
    works: dict[str, Callable[[Path], Any]] = {
        "bank": lambda place: small(place, pictures(5), sites="act2"),
        "concepts": lambda place: fitted(Bank.open(bank), place),
    }
    found = {}
    for name, work in works.items():
        note = folder / f"{name}.txt"
        assert not killed(lambda: _counted(work, folder / f"{name}-whole", note), None)  # noqa: B023
        total = int(note.read_text())
        found[name] = sorted({round(share * (total - 1) / (KILLS - 1)) for share in range(KILLS)})
        for event in found[name]:
            out = folder / f"{name}-{event}"
            assert killed(lambda: work(out), event)  # noqa: B023
            killed(lambda: work(out), event // 2)  # noqa: B023
            assert not killed(lambda: work(out), None)  # noqa: B023
    return found


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]))))
