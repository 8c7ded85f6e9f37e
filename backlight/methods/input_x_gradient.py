"""InputXGradient: the gradient times the input."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from backlight.methods.method import Method


@dataclass(kw_only=True)
class InputXGradient(Method):
    """The gradient times the input: the first-order share of each entry, from a baseline of zero."""

    source: ClassVar[str] = "Shrikumar et al. 2016"
    formula: ClassVar[str] = "x * grad s(x)"
    readout: ClassVar[str] = "value"
