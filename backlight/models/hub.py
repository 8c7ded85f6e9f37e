"""Fetching weights: one clear error when that fails, and soon."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from backlight.errors import BacklightError, ModelError

FIX = "give them with weights=FILE (--weights FILE), or ask for random ones with pretrained=False"


@contextmanager
def fetching(name: str) -> Iterator[None]:
    """Fetch weights inside; whatever goes wrong becomes one `ModelError` that says what to do."""
    try:
        with _offline_when_unreachable():
            yield
    except BacklightError:
        raise
    except Exception as error:  # urllib, httpx, the hub and the file system each raise their own kinds
        lines = str(error).strip().splitlines() or [""]
        why = f"{type(error).__name__}: {lines[0]}" if len(lines[0]) < 160 else type(error).__name__
        raise ModelError(f"cannot fetch the weights of {name!r} ({why}); {FIX}") from None


@contextmanager
def _offline_when_unreachable() -> Iterator[None]:
    """Let the Hugging Face hub use its cache at once where its host has no address: it would retry for a minute."""
    try:
        from huggingface_hub import constants
    except ModuleNotFoundError:
        yield
        return
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or not _has_address(constants.ENDPOINT)
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _has_address(url: str) -> bool:
    if any(os.environ.get(key) for key in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return True  # the proxy looks names up
    try:
        socket.getaddrinfo(urlsplit(url).hostname, 443)
    except OSError:
        return False
    return True
