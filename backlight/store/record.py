"""`store.json`: what a store holds, and what decided its numbers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from backlight.errors import InputError
from backlight.evaluation.identity import differences
from backlight.evaluation.journal import write_text
from backlight.store.arrays import Layout

STORE, ARRAYS, MARKS = "store.json", "arrays.zarr", "marks"
FORMAT = 1


@dataclass
class Record:
    """`identity` must be the same where an extraction goes on; `about` (paths, names) and `sessions` need not.

    `sites` and `layout` are there once the first samples were computed; `samples`: how many there are to be.
    """

    identity: dict[str, Any]
    about: dict[str, Any] = field(default_factory=dict)
    samples: int = 0
    sites: list[str] = field(default_factory=list)
    layout: Layout | None = None
    sessions: list[dict[str, Any]] = field(default_factory=list)

    def write(self, folder: Path) -> None:
        """Write `store.json` anew, whole or not at all."""
        plain = {"format": FORMAT, **vars(self), "layout": None if self.layout is None else self.layout.plain()}
        write_text(folder / STORE, json.dumps(plain, indent=1, ensure_ascii=False) + "\n")

    @classmethod
    def read(cls, folder: Path) -> Record | None:
        """The record of a folder; None where there is none.

        Raises:
            InputError: it cannot be read, or is of another format.
        """
        path = folder / STORE
        if not path.is_file():
            return None
        try:
            plain = json.loads(path.read_text(encoding="utf-8"))
            number = plain.pop("format")
            if number != FORMAT:
                raise InputError(f"{str(folder)!r} is a store of format {number}; this Backlight reads format {FORMAT}")
            layout = plain.pop("layout")
            return cls(**plain, layout=None if layout is None else Layout.from_plain(layout))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{str(path)!r} is not the {STORE} of a store: {error}") from None

    def check(self, folder: Path, identity: Mapping[str, Any]) -> None:
        """Raise `InputError` where a folder's store was made by other settings, saying which."""
        found = differences(self.identity, identity)
        if found:
            raise InputError(
                f"{str(folder)!r} holds a store of other settings: {'; '.join(found[:6])}"
                f"{' and more' * (len(found) > 6)}. Give another folder, or the same settings"
            )


@contextmanager
def locked(path: Path, shared: bool = False) -> Iterator[None]:
    """Hold a lock that ends with the process, also where that is killed; where the file system has none, pass.

    Raises:
        BlockingIOError: another process holds it.
    """
    with path.open("a") as file:
        try:
            import fcntl
        except ImportError:  # Windows has no such lock
            yield
            return
        try:
            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            raise
        except OSError:  # some file systems of clusters have none
            pass
        yield
