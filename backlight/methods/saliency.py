"""Saliency: the gradient of the score."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from backlight.methods.method import Method


@dataclass(kw_only=True)
class Saliency(Method):
    """The gradient of the score in the input, with its sign.

    Where Captum's `Saliency` takes the absolute value, this one does not; `.abs()` does.
    """

    source: ClassVar[str] = "Simonyan, Vedaldi, Zisserman 2014"
    formula: ClassVar[str] = "grad s(x)"
