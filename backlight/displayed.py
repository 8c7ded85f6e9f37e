"""What results look like in a notebook and in a console. The drawing itself is `backlight.viz`'s, fetched on use."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any

import numpy as np
from torch import Tensor, nn

FEW, LONG, MOST = 4, 60, 400  # entries, characters of one, and characters in all that a short repr shows


class Displayed:
    """A result that notebooks draw: `_repr_html_`, and a `repr` with shapes in place of numbers.

    Dataclasses take the latter with `repr=False`.
    """

    def _repr_html_(self) -> str:
        from backlight.viz.rich_display import html_of

        return html_of(self)

    def __repr__(self) -> str:
        said = ", ".join(_told(self))
        return f"{type(self).__name__}({said if len(said) <= MOST else said[: MOST - 1] + '…'})"


def _told(result: Any) -> Iterator[str]:
    for one in fields(result):
        value = getattr(result, one.name)
        if one.repr and value is not None and not (isinstance(value, (Mapping, tuple, list)) and not value):
            yield f"{one.name}={short(value)}"


def short(value: Any, inside: bool = False) -> str:
    """A value in some words: tensors by type and shape, modules by class, containers by their first entries."""
    if isinstance(value, (Tensor, np.ndarray)):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    if isinstance(value, nn.Module):
        return type(value).__name__
    if isinstance(value, (Mapping, tuple, list)) and inside and len(value) > FEW:
        return f"<{len(value)} entries>"
    if isinstance(value, Mapping):
        some = [f"{key}: {short(entry, True)}" for key, entry in list(value.items())[:FEW]]
        return "{" + ", ".join([*some, *_more(len(value))]) + "}"
    if isinstance(value, (tuple, list)):
        some = [short(entry, True) for entry in value[:FEW]]
        return "[" + ", ".join([*some, *_more(len(value))]) + "]"
    if isinstance(value, (float, np.floating)):
        return f"{value:.4g}"
    if isinstance(value, str):
        return repr(value if len(value) <= LONG else value[: LONG - 1] + "…")
    text = repr(value)
    return text if len(text) <= LONG and "\n" not in text and " at 0x" not in text else f"{type(value).__name__}(...)"


def _more(count: int) -> list[str]:
    return [f"... {count - FEW} more"] if count > FEW else []
