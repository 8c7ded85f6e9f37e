"""What the command line says: results on stdout, everything else on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

LINE_EVERY = 60.0  # seconds between lines of news where there is no terminal for a bar


def messages() -> Console:
    """The console on stderr, made anew: tests and notebooks exchange the stream."""
    return Console(stderr=True, highlight=False, soft_wrap=True)


def report_error(error: BaseException, place: object = None) -> None:
    """One line on stderr: `backlight: error: ...`, with the place (a file) where the message does not name it."""
    text = str(error) or type(error).__name__
    if place is not None and str(place) not in text:
        text = f"{place}: {text}"
    line = " ".join(text.split())
    print(f"backlight: error: {line}", file=sys.stderr, flush=True)


def say(text: str) -> None:
    """One line of news on stderr."""
    messages().print(escape(text))


def print_json(value: Any) -> None:
    """Strict JSON on stdout."""
    print(json.dumps(value, indent=2, ensure_ascii=True, allow_nan=False), flush=True)


@contextmanager
def progress(total: int, what: str) -> Iterator[Callable[[str], None]]:
    """A bar on stderr where it is a terminal; call what it yields with a word on each step that begins."""
    console = messages()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=total)
        begun = 0

        def step(word: str) -> None:
            nonlocal begun
            bar.update(task, description=escape(word), completed=begun)
            begun += 1

        yield step
