"""The interactive app: a local web page over the public API. `build` makes the page, `serve` runs it.

Nothing is computed here that the library does not compute; gradio (extra `app`) is imported when the room is used.
"""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    if name not in ("build", "serve"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from backlight.app import server

    return getattr(server, name)


__all__ = ["build", "serve"]
