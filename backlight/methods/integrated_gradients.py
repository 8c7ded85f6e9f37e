"""IntegratedGradients: the mean gradient on the line from a baseline, times the difference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from backlight.engine.paths import Line
from backlight.methods.method import Method


@dataclass(kw_only=True)
class IntegratedGradients(Method):
    """The mean gradient on the straight line from a baseline to the input, times their difference.

    `baseline`: zero by default; see `backlight.engine.paths.baseline_like`. `rule`: gausslegendre (as in Captum),
    trapezoid, riemann_left, riemann_middle, riemann_right.
    """

    source: ClassVar[str] = "Sundararajan, Taly, Yan 2017"
    formula: ClassVar[str] = "(x - b) * integral_0^1 grad s(b + t (x - b)) dt"
    completeness: ClassVar[str | None] = "line"
    passes: ClassVar[str] = "n_steps"
    readout: ClassVar[str] = "difference"
    reads_sites: ClassVar[bool] = False  # hidden units take a path of their own: backlight.contribute

    n_steps: int = 50
    rule: str = "gausslegendre"
    baseline: Any = None

    def path(self) -> Line:
        return Line(self.n_steps, self.rule, self.baseline)
