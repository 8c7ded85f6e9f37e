"""The page "Errors": each exception with its cause, its fix, and an example whose message is what it raises here."""

from __future__ import annotations

import inspect
import re
import tempfile
import tomllib
import warnings
from functools import cache
from importlib import import_module
from pathlib import Path

import backlight.errors
from backlight.errors import BacklightError, BacklightWarning

DOCS = Path(__file__).resolve().parents[1]
ELSEWHERE = ("backlight.models.embedded", "backlight.store")  # rooms that define exceptions of their own


@cache
def entries() -> dict[str, dict[str, str]]:
    """What docs/errors.toml says, by exception."""
    return tomllib.loads((DOCS / "errors.toml").read_text(encoding="utf-8"))


def exceptions() -> dict[str, type[Exception]]:
    """Every public exception and warning of Backlight, by name."""
    rooms = [backlight.errors, *map(import_module, ELSEWHERE)]
    kinds = {name: kind for room in rooms for name, kind in vars(room).items() if inspect.isclass(kind)}
    return {name: kind for name, kind in kinds.items() if issubclass(kind, (BacklightError, BacklightWarning))}


def message(name: str) -> str:
    """What the example raises, as `print` shows it.

    Raises:
        AssertionError: it raises nothing, or something else.
    """
    kind = exceptions()[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            exec(entries()[name]["example"], {})
        except kind as error:
            if type(error) is kind or kind is BacklightError:
                return str(error)
    raise AssertionError(f"the example of {name} raises another error, or none")


def pages() -> dict[str, str]:
    """`{address: Markdown}`."""
    return {"errors.md": page()}


def page() -> str:
    """All exceptions on one page: one looks for them by name."""
    kinds = exceptions()
    parts = [
        "# Errors: cause and fix",
        "*Every error that Backlight raises on purpose is a `BacklightError` that says what was given, what was "
        "expected, and the nearest choice. The messages below are what the examples above them print.*",
    ]
    for name, entry in entries().items():
        kind = kinds[name]
        bases = ", ".join(f"`{base.__name__}`" for base in kind.__bases__)
        meaning = (inspect.getdoc(kind) or "").splitlines()[0]
        parts += [
            f"## {name}",
            f"{meaning} `from {entry.get('room', 'backlight.errors')} import {name}`; also a {bases}.",
            f"**Cause.** {entry['cause']}",
            f"**Fix.** {entry['fix']}",
            f"```python\n{entry['example'].strip()}\n```",
            f"```text\n{_without_folder(message(name))}\n```",
        ]
    return "\n\n".join(parts) + "\n"


def _without_folder(text: str) -> str:
    """Messages with a file's name do not show the folder for temporary files of who built the page."""
    return re.sub(re.escape(tempfile.gettempdir()) + r"/[^/\s]+/", "", text)
