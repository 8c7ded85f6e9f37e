"""GuidedBackprop and Deconvnet: only positive cotangents pass an activation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from backlight.engine.rules import RuleSet
from backlight.methods.method import Method
from backlight.rules import deconvnet, guided


@dataclass(kw_only=True)
class GuidedBackprop(Method):
    """Gradients, of which only the positive part passes each activation. Sharp, and nearly blind to the class."""

    source: ClassVar[str] = "Springenberg et al. 2015"
    formula: ClassVar[str] = "delta_z = max(delta_y, 0) a'(z)"

    def rules(self) -> RuleSet:
        return guided()


@dataclass(kw_only=True)
class Deconvnet(Method):
    """Cotangents, of which only the positive part passes each activation, whether it was active or not."""

    source: ClassVar[str] = "Zeiler and Fergus 2014"
    formula: ClassVar[str] = "delta_z = max(delta_y, 0)"

    def rules(self) -> RuleSet:
        return deconvnet()
