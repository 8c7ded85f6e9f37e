"""The shape that all methods share: settings, then `attribute(inputs, target)`, as in Captum."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

from torch import Tensor, nn

from backlight.engine.attribution import Attribution, Path, attribute
from backlight.engine.paths import Inputs, Point
from backlight.engine.rules import GRADIENT, RuleSet
from backlight.engine.sites import INPUT


@dataclass(kw_only=True)
class Method:
    """A composition of rules, path and readout. Subclasses set the settings, the three slots, and what they claim.

    `source`: the paper. `formula`: what is computed. `completeness`: "line" where attributions sum to the difference of
    scores between input and baseline, "bias" where they sum, with the share of the biases, to the score; None where
    nothing is claimed. `passes`: forward and backward passes a sample, in terms of the settings. `positions`: whether
    the attribution has one value a position, `[N, 1, H, W]`, and not one an entry of the input. `reads_sites`: whether
    `sites` may name hidden ones; a method that reads at a layer of its own has a setting for it. `engine`: whether the
    engine does the work; adapters of other libraries have no coverage table, and `passes` counts their least forward
    passes.
    """

    source: ClassVar[str] = ""
    formula: ClassVar[str] = ""
    completeness: ClassVar[str | None] = None
    passes: ClassVar[str] = "1"
    readout: ClassVar[str] = "cotangent"
    moves_input: ClassVar[bool] = False
    positions: ClassVar[bool] = False
    reads_sites: ClassVar[bool] = True
    engine: ClassVar[bool] = True

    model: nn.Module = field(kw_only=False)
    strict: bool = True

    def rules(self) -> RuleSet:
        """How cotangents travel back."""
        return GRADIENT

    def path(self) -> Path:
        """Where the explanation is evaluated."""
        return Point()

    def explain(
        self,
        inputs: Tensor | Inputs,
        target: Any = None,
        *,
        sites: str | tuple[str, ...] = INPUT,
        additional_forward_args: Any = (),
        internal_batch_size: int | None = None,
        create_graph: bool = False,
        bias: bool = False,
    ) -> Attribution:
        """The attribution with its scores, completeness residual, coverage table and cost; see `engine.attribute`."""
        return attribute(
            self.model,
            inputs,
            target,
            rules=self.rules(),
            path=self.path(),
            sites=sites,
            readout=self.readout,
            bias=bias,
            strict=self.strict,
            create_graph=create_graph,
            internal_batch_size=internal_batch_size,
            additional_forward_args=additional_forward_args,
        )

    def attribute(self, inputs: Tensor | Inputs, target: Any = None, **settings: Any) -> Tensor | tuple[Tensor, ...]:
        """The attribution of each input, of its shape; settings as in `explain`.

        Returns:
            A tensor, or a tuple of them where several inputs or several sites were given.

        Raises:
            BacklightError: inputs, targets or operations that do not fit; the message says which.
        """
        values = tuple(self.explain(inputs, target, **settings).values.values())
        several = isinstance(inputs, tuple) or not isinstance(settings.get("sites", INPUT), str)
        return values if several else values[0]

    @classmethod
    def settings(cls) -> dict[str, Any]:
        """`{name: default}` of the settings that a user may choose."""
        return {f.name: f.default for f in fields(cls) if f.name != "model"}
