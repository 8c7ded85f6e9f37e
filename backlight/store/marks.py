"""Marks: which blocks of a store are finished. A mark appears when all of its block is on the disk."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from backlight.errors import InputError
from backlight.evaluation.journal import write_text


@dataclass(frozen=True)
class Mark:
    """A finished block: the names of its samples from position `start`, and why some of them have no row."""

    start: int
    names: list[str]
    skipped: dict[str, str] = field(default_factory=dict)

    def positions(self) -> list[int]:
        """Where the samples with a row stand."""
        return [place for place, name in enumerate(self.names, self.start) if name not in self.skipped]


def write_mark(folder: Path, block: int, mark: Mark) -> None:
    """Write a block's mark, whole or not at all."""
    text = json.dumps({"start": mark.start, "names": mark.names, "skipped": mark.skipped}, ensure_ascii=False, indent=1)
    write_text(folder / f"{block:08d}.json", text + "\n")


def read_marks(folder: Path) -> dict[int, Mark]:
    """The finished blocks, in order. Raises `InputError` for a mark that cannot be read."""
    found = {}
    for path in sorted(folder.glob("*.json")):
        if path.name.startswith("."):
            continue
        try:
            plain = json.loads(path.read_text(encoding="utf-8"))
            found[int(path.stem)] = Mark(plain["start"], plain["names"], plain["skipped"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"cannot read {str(path)!r}; remove it to compute its block again: {error}") from None
    return found


def check_order(marks: dict[int, Mark], names: Sequence[str]) -> None:
    """Raise `InputError` where finished blocks hold other samples, or in another order."""
    for mark in marks.values():
        now = names[mark.start : mark.start + len(mark.names)]
        for place, (old, new) in enumerate(zip(mark.names, now, strict=False), mark.start):
            if old != new:
                raise InputError(f"sample {place} is {old!r} in the store, and {new!r} now: give another folder")
