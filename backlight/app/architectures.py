"""The libraries of architectures, imported by one thread alone.

Their modules import each other, and another thread that asks for them meanwhile would find them half there.
"""

from __future__ import annotations

import threading
from contextlib import suppress

_ONE = threading.Lock()


def imported() -> None:
    """Wait until timm and torchvision are imported, where they are installed; the first caller does it."""
    with _ONE:
        for name in ("timm", "torchvision.models"):
            with suppress(ImportError):
                __import__(name)
