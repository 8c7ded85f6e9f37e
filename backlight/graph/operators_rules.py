"""Operators that carry the score back by a rule set of the engine: relevance rules, soft pullbacks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from backlight.engine.rules import GRADIENT, RuleSet
from backlight.engine.segment import Segment
from backlight.errors import InputError
from backlight.graph.coded import Coded
from backlight.graph.operators_base import Ends, Operator, Passes
from backlight.graph.operators_gradient import mean_gradients
from backlight.graph.scores import Scores
from backlight.rules import DEFAULT_TEMPERATURE, soft_pullback
from backlight.rules.attn_lrp import attn_lrp
from backlight.rules.composites import named_composite
from backlight.rules.temperature import TemperatureSetting


@dataclass(frozen=True, kw_only=True)
class RuleTimesInput(Operator):
    """The cotangent under a rule set, where everything is there. One forward pass, one backward pass a score.

    `held`: the norm in the score's cosine is held, as these rules hold the deviation of a layer norm, so that the
    relevance that sets out is S. False: its gradient, which is orthogonal to every PFV, so that none sets out in all.
    """

    source: ClassVar[str] = "relevance as value times modified gradient"

    made: Callable[[], RuleSet] = field(default=lambda: GRADIENT)
    held: bool = True

    def rules(self) -> RuleSet:
        return self.made()

    def multipliers(self, segment: Segment, coded: Coded, ends: Ends, scores: Scores, passes: Passes) -> Tensor:
        return mean_gradients(segment, coded, ends, scores, passes, [1.0], [1.0], self.batch_size, self.held)


@dataclass(frozen=True, kw_only=True)
class LRP(RuleTimesInput):
    """Layer-wise relevance propagation, by a composite without a rule of its own for the first layer.

    `composite`: see `backlight.rules.composites`; `epsilon_plus` has z+ for convolutions and epsilon for linear layers.
    """

    source: ClassVar[str] = "Bach et al. 2015; composites: Montavon et al. 2019"

    composite: str = "epsilon_plus"
    epsilon: float = 1e-6
    gamma: float = 0.25

    def rules(self) -> RuleSet:
        from backlight.rules.composites import lrp

        chosen = named_composite(self.composite, self.epsilon, self.gamma)
        if chosen.first is not None:
            raise InputError(
                f"the composite {self.composite!r} has a rule for pixels, and a hidden layer has none: "
                "choose one without, for example 'epsilon_plus'"
            )
        return lrp(chosen)


@dataclass(frozen=True, kw_only=True)
class LRPEpsilon(LRP):
    """LRP with the epsilon rule in every layer: in piecewise linear networks, gradient times input."""

    composite: str = "epsilon"


@dataclass(frozen=True, kw_only=True)
class AttnLRP(RuleTimesInput):
    """Relevance in transformers: q and k get a quarter, v half of their gradients, activations f(z) / z."""

    source: ClassVar[str] = "Achtibat et al. 2024; as modified gradients, Arras et al. 2025"

    def rules(self) -> RuleSet:
        return attn_lrp()


@dataclass(frozen=True, kw_only=True)
class SoftPullback(RuleTimesInput):
    """The adjoint of the dynamic linear operator, with softened gates and routes."""

    source: ClassVar[str] = "Semantic Pullbacks, section 3.2, equation 5"

    temperature: TemperatureSetting = DEFAULT_TEMPERATURE

    def rules(self) -> RuleSet:
        return soft_pullback(self.temperature)
