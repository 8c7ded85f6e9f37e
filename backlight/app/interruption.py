"""Computations that run a network as it is: they, too, stop where nobody waits for them any more."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import gradio as gr
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from backlight.app.computation import Watch


@contextmanager
def stoppable(watch: Watch) -> Iterator[None]:
    """Raise `Stopped` where a stopped computation calls the next module, of whatever network, on this thread.

    The words of the watch count the seconds, so that whoever waits for them hears of a long step.
    """
    here = threading.current_thread()
    said = shown = watch.words
    begun = time.monotonic()

    def look(module: nn.Module, args: Any) -> None:
        nonlocal said, shown, begun
        if threading.current_thread() is not here:
            return
        watch.check()
        if watch.words != shown:
            said, begun = watch.words, time.monotonic()
        seconds = int(time.monotonic() - begun)
        shown = watch.words = f"{said}: {seconds} s" if seconds else said

    hook = register_module_forward_pre_hook(look)  # temporary, and of this thread's calls alone
    try:
        yield
    finally:
        hook.remove()


def underway(words: str) -> str:
    """What a computation is doing, as a line that `settled` knows from a result's."""
    return f"*{words}*"


def settled(line: str) -> Any:
    """What stands once a computation is over: its last line, or that it was stopped before it had one."""
    return "Stopped." if line.startswith("*") and line.endswith("*") else gr.skip()


def stops(button: gr.Button, events: Sequence[Any], status: gr.Markdown) -> None:
    """A button that cancels computations.

    The line below is settled only after a computation's end: said by the button itself, what the computation has said
    last would come after it, and stay.
    """
    button.click(None, None, None, cancels=list(events), queue=False, api_visibility="private")
    for event in events:
        event.then(settled, status, status, queue=False, show_progress="hidden", api_visibility="private")
