"""LRP: layer-wise relevance propagation, with composites of rules by the kind of layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from backlight.engine.attribution import Attribution, attribute
from backlight.engine.evaluation import input_sites, resolve_sites
from backlight.engine.paths import Inputs
from backlight.engine.rules import RuleSet
from backlight.engine.sites import INPUT
from backlight.errors import UncoveredOperationError
from backlight.methods.method import Method
from backlight.rules.composites import Composite, lrp, named_composite
from backlight.rules.first_layer import InputRelevance


@dataclass(kw_only=True)
class LRP(Method):
    """Relevance at the input, or at `sites`: what each layer's rule shares out of the score, back to the entries.

    `composite`: `epsilon`, `epsilon_plus` (z+ for convolutions, epsilon for linear layers), `epsilon_plus_flat`,
    `epsilon_alpha2_beta1`, `epsilon_alpha2_beta1_flat`, `epsilon_gamma_box`, `gamma`, `zplus` (z+ for all layers), or a
    `Composite`. `epsilon`, `gamma`: of the rules of that name. `low`, `high`: the z-box, bounds of the first layer's
    input; None: the least and largest value of each image and channel.

    With `bias=True`, relevance and what biases and stabilisers absorb sum to the score. For transformers: `AttnLRP`.
    """

    source: ClassVar[str] = "Bach et al. 2015; composites: Montavon et al. 2019, Kohlbrenner et al. 2020"
    formula: ClassVar[str] = "R_i = sum_j z_ij / (sum_i z_ij) R_j, contributions z_ij = w_ij x_i weighed by the rule"
    readout: ClassVar[str] = "value"
    completeness: ClassVar[str | None] = "bias"

    composite: str | Composite = "epsilon_plus"
    epsilon: float = 1e-6
    gamma: float = 0.25
    low: Any = None
    high: Any = None

    def rules(self) -> RuleSet:
        return self._rules(None)

    def _rules(self, record: InputRelevance | None) -> RuleSet:
        return lrp(self.composite, self.epsilon, self.gamma, self.low, self.high, record)

    def explain(
        self,
        inputs: Tensor | Inputs,
        target: Any = None,
        *,
        sites: str | tuple[str, ...] = INPUT,
        bias: bool = False,
        **settings: Any,
    ) -> Attribution:
        """The relevance, of the shape of the inputs or sites; settings as in `engine.attribute`.

        Raises:
            UncoveredOperationError: the composite has a rule for the first layer, and none gets the model's input.
            InputError: inputs outside of the z-box; a site between the input and such a first layer.
        """
        chosen = self.composite if isinstance(self.composite, Composite) else named_composite(self.composite)
        if chosen.first is None:
            return super().explain(inputs, target, sites=sites, bias=bias, **settings)
        given, record = (inputs,) if isinstance(inputs, Tensor) else tuple(inputs), InputRelevance()
        wanted = resolve_sites(sites, given)
        # the first layer is known from what becomes of the input
        leaves = [name for name, x in zip(input_sites(given), given, strict=True) if x.is_floating_point()]
        try:
            found = attribute(
                self.model, inputs, target, rules=self._rules(record), path=self.path(), readout=record.read,
                sites=tuple(dict.fromkeys((*wanted, *leaves))), bias=bias, strict=self.strict, **settings,
            )  # fmt: skip
        finally:
            record.clear()
        self._close(found, record, wanted, leaves)
        return found

    def _close(self, found: Attribution, record: InputRelevance, wanted: tuple[str, ...], leaves: list[str]) -> None:
        """Keep what was asked for; where that is the inputs, say what is left of the score."""
        if not record.answered and set(wanted) & set(leaves):
            raise UncoveredOperationError(
                f"no linear layer or convolution gets the model's input, moved or rescaled at most: the composite "
                f"{self.composite!r} has a rule for it; choose one without, for example 'epsilon_plus'"
            )
        found.values = {name: found.values[name] for name in wanted}
        if found.bias is not None and found.scores is not None and set(wanted) == set(leaves):
            share = sum(value.flatten(1).sum(1) for value in found.values.values())
            found.residual = (found.scores - share - found.bias).detach()
