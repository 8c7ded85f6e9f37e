"""Marks: which blocks of a store are finished. A mark appears when all of its block is on the disk."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from backlight.errors import ImageError, InputError
from backlight.evaluation.journal import write_text
from backlight.evaluation.samples import Samples


@dataclass(frozen=True)
class Mark:
    """A finished block: its samples from position `start`.

    `names` and `contents` (hashes of what each was made of, "" where that could not be read): of all of them;
    `skipped`: why some have no row.
    """

    start: int
    names: list[str]
    contents: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)

    def positions(self) -> list[int]:
        """Where the samples with a row stand."""
        return [place for place, name in enumerate(self.names, self.start) if name not in self.skipped]


def write_mark(folder: Path, block: int, mark: Mark) -> None:
    """Write a block's mark, whole or not at all."""
    write_text(folder / f"{block:08d}.json", json.dumps(asdict(mark), ensure_ascii=False, indent=1) + "\n")


def read_marks(folder: Path) -> dict[int, Mark]:
    """The finished blocks, in order. Raises `InputError` for a mark that cannot be read."""
    found = {}
    for path in sorted(folder.glob("*.json")):
        if path.name.startswith("."):
            continue
        try:
            found[int(path.stem)] = Mark(**json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise InputError(f"cannot read {str(path)!r}; remove it to compute its block again: {error}") from None
    return found


def unfinished(marks: Mapping[int, Mark], samples: Samples, block: int) -> list[int]:
    """The blocks that are to be computed: without a mark, shorter than now, or with a skipped sample that has changed.

    Raises:
        InputError: a finished sample stands elsewhere now, or has changed since.
    """
    names = samples.names
    changed: list[str] = []
    todo = [number for number in range(-(-len(names) // block)) if number not in marks]
    for number, mark in marks.items():
        now = names[mark.start : mark.start + block]
        _check_order(mark, now)
        before = dict(zip(mark.names, mark.contents, strict=False))
        other = [name for name in now if name in before and content(samples, name) != before[name]]
        changed += [name for name in other if name not in mark.skipped]
        if len(now) > len(mark.names) or (other and len(now) == len(mark.names)):  # fewer would take rows away
            todo.append(number)
    if changed:
        more = f" and {len(changed) - 6} more" * (len(changed) > 6)
        raise InputError(
            f"the store holds rows of samples that have changed since: {', '.join(map(repr, changed[:6]))}{more}. "
            "Give another folder, or bring them back"
        )
    return sorted(todo)


def content(samples: Samples, name: str) -> str:
    """A hash of what a sample is made of; "" where that cannot be read."""
    try:
        return samples.content(name)
    except ImageError:
        return ""


def _check_order(mark: Mark, now: Sequence[str]) -> None:
    for place, (old, new) in enumerate(zip(mark.names, now, strict=False), mark.start):
        if old != new:
            raise InputError(f"sample {place} is {old!r} in the store, and {new!r} now: give another folder")
