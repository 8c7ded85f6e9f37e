"""What the user is told when something goes wrong: one sentence, never a stack trace."""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import gradio as gr

from backlight.app.architectures import imported
from backlight.errors import BacklightError

LOG = logging.getLogger(__name__)
UNFORESEEN = "Something went wrong that was not foreseen; the server's log says what. Other inputs may work."
NO_MEMORY = "The computation needs more memory than there is: choose a smaller model, or fewer steps or samples."


def sentence(error: BaseException) -> str:
    """What a user is told of an error: its own words where Backlight raised it on purpose, in one line.

    Anything else is logged on the server with its stack trace, and told as one general sentence.
    """
    if isinstance(error, BacklightError):
        words = " ".join(str(error).split())
        return words[:1].upper() + words[1:]
    if isinstance(error, MemoryError) or "out of memory" in str(error).lower():
        LOG.error("out of memory", exc_info=error)
        return NO_MEMORY
    LOG.error("unforeseen error in the app", exc_info=error)
    return UNFORESEEN


@contextmanager
def telling() -> Iterator[None]:
    """Errors raised inside become `gr.Error`s with one sentence."""
    imported()
    try:
        yield
    except gr.Error:
        raise
    except Exception as error:
        raise gr.Error(sentence(error), title="Not done", duration=None, print_exception=False) from None


def told(function: Callable[..., Any]) -> Callable[..., Any]:
    """A listener, function or generator, whose errors reach the user as one sentence."""
    if inspect.isgeneratorfunction(function):

        @functools.wraps(function)
        def generator(*args: Any, **kwargs: Any) -> Any:
            with telling():
                yield from function(*args, **kwargs)

        return generator

    @functools.wraps(function)
    def plain(*args: Any, **kwargs: Any) -> Any:
        with telling():
            return function(*args, **kwargs)

    return plain
