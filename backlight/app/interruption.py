"""Computations that run a network as it is: they, too, stop where nobody waits for them any more."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from backlight.app.computation import Watch


@contextmanager
def stoppable(watch: Watch) -> Iterator[None]:
    """Raise `Stopped` where a stopped computation calls the next module, of whatever network, on this thread."""
    here = threading.current_thread()

    def look(module: nn.Module, args: Any) -> None:
        if threading.current_thread() is here:
            watch.check()

    hook = register_module_forward_pre_hook(look)  # temporary, and of this thread's calls alone
    try:
        yield
    finally:
        hook.remove()
