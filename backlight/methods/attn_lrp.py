"""AttnLRP and CP-LRP: relevance of transformers, as activation times modified gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from backlight.engine.rules import RuleSet
from backlight.methods.method import Method
from backlight.rules.attn_lrp import attn_lrp, cp_lrp


@dataclass(kw_only=True)
class AttnLRP(Method):
    """Relevance at the input, or at `sites`, with its sign: value times the cotangent under AttnLRP's rules.

    Plain AttnLRP, epsilon -> 0, without gamma. Not conservative: the softmax of an attention absorbs relevance, or adds
    to it, and so do biases. Tokens: `attribute(..., readout="token_norm")`, or `TokenFields`.
    """

    source: ClassVar[str] = "Achtibat et al. 2024; as modified gradients, Arras et al. 2025"
    formula: ClassVar[str] = "x * g; q, k get 1/4, v 1/2 of their gradients, activations f(z)/z, deviations are held"
    readout: ClassVar[str] = "value"

    def rules(self) -> RuleSet:
        return attn_lrp()


@dataclass(kw_only=True)
class CPLRP(Method):
    """Relevance as in AttnLRP, with the attention weights held: values get all, queries and keys nothing.

    With `bias=True`, relevance and the share of the biases sum to the score.
    """

    source: ClassVar[str] = "Ali et al. 2022"
    formula: ClassVar[str] = "x * g; q, k are held, activations f(z)/z, deviations are held"
    readout: ClassVar[str] = "value"
    completeness: ClassVar[str | None] = "bias"

    def rules(self) -> RuleSet:
        return cp_lrp()
