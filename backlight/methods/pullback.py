"""Pullback: the adjoint of the dynamic linear operator, hard, soft, and in its predecessor's form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from backlight.engine.rules import RuleSet
from backlight.methods.method import Method
from backlight.rules import DEFAULT_TEMPERATURE, excitation_pullback, pullback, soft_pullback
from backlight.rules.temperature import TemperatureSetting


@dataclass(kw_only=True)
class Pullback(Method):
    """The adjoint of the network's dynamic linear operator: gates, statistics and attention weights are held.

    With `bias=True`, <x, pullback> plus the share of the biases is the score exactly (appendix D).
    """

    source: ClassVar[str] = "Semantic Pullbacks, section 2.2, equation 4"
    formula: ClassVar[str] = "W(x)^T e_c, where s(x) = W(x) x + bias"
    completeness: ClassVar[str | None] = "bias"

    def rules(self) -> RuleSet:
        return pullback()


@dataclass(kw_only=True)
class Softened(Method):
    """A method under the soft pullback's rules. `temperature`: see `backlight.rules.temperature`."""

    temperature: TemperatureSetting = DEFAULT_TEMPERATURE

    def rules(self) -> RuleSet:
        return soft_pullback(self.temperature)


@dataclass(kw_only=True)
class SoftPullback(Softened):
    """The pullback with softened gates and routes: one backward pass in place of an average over a neighbourhood.

    `temperature`: see `backlight.rules.temperature`.
    """

    source: ClassVar[str] = "Semantic Pullbacks, section 3.2, equation 5, appendix A"
    formula: ClassVar[str] = "the pullback with gates G(z / tau) and max-pool weights softmax(z / tau)"


@dataclass(kw_only=True)
class ExcitationPullback(Method):
    """The predecessor of the soft pullback: logistic gates and the gradient of soft pooling, one T = 0.3."""

    source: ClassVar[str] = "Excitation Pullbacks (2025)"
    formula: ClassVar[str] = "the pullback with ReLU gates sigma(z / T) and soft pooling's gradient"

    temperature: TemperatureSetting = "excitation"

    def rules(self) -> RuleSet:
        return excitation_pullback(self.temperature)
