"""Composites: relevance rules by the kind of layer (Montavon et al. 2019; Kohlbrenner et al. 2020).

A BatchNorm after a convolution or linear layer is folded into it on the fly: both are answered as one affine layer,
whose weights have the signs that matter to gamma, z+ and alpha-beta. A BatchNorm that follows something else is an
affine layer of its own, one input to one output. The rest is common to all composites: activations pass relevance (the
cotangent times a(z) / z), sums share it in proportion, max-pooling gives it to the winner; bounded gates, attention
weights and the deviations of normalisations are held.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from backlight.engine.operations import STRUCTURAL
from backlight.engine.rules import Call, Rule, RuleSet, needs_gradient
from backlight.errors import UnknownNameError
from backlight.rules.affine_layers import Diagonal, bound
from backlight.rules.attention import AttentionRule, SoftmaxRule
from backlight.rules.attn_lrp import relevance_rules
from backlight.rules.first_layer import FirstLayerRule, FlatRule, InputMark, InputRelevance, InputRule, ZBoxRule, seen
from backlight.rules.gates import GLURule
from backlight.rules.normalisation import read_norm
from backlight.rules.relevance import AffineMark, AffineRule, AlphaBetaRule, EpsilonRule, GammaRule, ZPlusRule


@dataclass(frozen=True)
class Composite:
    """Which rule answers for convolutions, linear layers, BatchNorms on their own, and, if another, the first layer.

    The first layer is any that gets the model's input, be it moved (padding, indexing) or rescaled entry by entry.
    """

    conv: AffineRule
    linear: AffineRule
    norm: AffineRule
    first: InputRule | None = None


def named_composite(
    name: str, epsilon: float = 1e-6, gamma: float = 0.25, low: Any = None, high: Any = None
) -> Composite:
    """A composite by name.

    Raises:
        UnknownNameError: a name that is not in `COMPOSITES`.
    """
    if name not in COMPOSITES:
        raise UnknownNameError("composite", name, COMPOSITES)
    small, more, box = EpsilonRule(epsilon), GammaRule(gamma), ZBoxRule(low, high)
    return COMPOSITES[name](small, more, box)


# name -> (epsilon rule, gamma rule, z-box) -> composite
COMPOSITES: dict[str, Callable[[EpsilonRule, GammaRule, ZBoxRule], Composite]] = {
    "epsilon": lambda epsilon, gamma, box: Composite(epsilon, epsilon, epsilon),
    "epsilon_plus": lambda epsilon, gamma, box: Composite(ZPlusRule(), epsilon, ZPlusRule()),
    "epsilon_plus_flat": lambda epsilon, gamma, box: Composite(ZPlusRule(), epsilon, ZPlusRule(), FlatRule()),
    "epsilon_alpha2_beta1": lambda epsilon, gamma, box: Composite(AlphaBetaRule(2, 1), epsilon, ZPlusRule()),
    "epsilon_alpha2_beta1_flat": lambda epsilon, gamma, box: Composite(
        AlphaBetaRule(2, 1), epsilon, ZPlusRule(), FlatRule()
    ),
    "epsilon_gamma_box": lambda epsilon, gamma, box: Composite(gamma, epsilon, gamma, box),
    "gamma": lambda epsilon, gamma, box: Composite(gamma, gamma, gamma),
    "zplus": lambda epsilon, gamma, box: Composite(ZPlusRule(), ZPlusRule(), ZPlusRule()),
}


@dataclass(frozen=True)
class FoldedNormRule:
    """BatchNorm as part of the affine layer before it, under that layer's rule; elsewhere a diagonal layer."""

    alone: AffineRule
    label: str = "folded"

    def __call__(self, call: Call) -> Any:
        statistics, weight, bias = read_norm(call)
        x, known = call.input, call.run.marks.get(call.input)
        if not needs_gradient(x):
            return NotImplemented
        mean, scale = (torch.as_tensor(value).detach().flatten() for value in statistics(x))
        scale = scale if weight is None else scale * weight.detach().flatten()
        shift = -mean * scale if bias is None else bias.detach().flatten() - mean * scale
        if not isinstance(known, AffineMark) or known.layer is None or not known.layer.folds(x):
            return self.alone.answer(call, x, Diagonal(scale, shift, x.ndim - 2), bound(call))
        assert known.rule is not None
        assert known.source is not None
        assert known.function is not None
        with torch.no_grad():
            values = [call.on(x.detach())]  # the layer before was computed already
        after, before = bound(call), known.function

        def function(z: Tensor) -> Tensor:
            return values.pop() if values else after(before(z))

        return known.rule.answer(call, known.source, known.layer.folded(scale, shift), function)


# The input stays the input, entry by entry. What selects by value, or changes signs, is no move.
_MOVES = STRUCTURAL - frozenset(
    "max_pool adaptive_max_pool fractional_max_pool maximum minimum fmax fmin max min amax amin aminmax topk sort "
    "kthvalue median abs dropout setitem index_add scatter_add".split()
)
_RESCALINGS = frozenset("add sub rsub neg mul div dropout".split())


@dataclass(frozen=True)
class InputPassingRule:
    """Follows the model's input to the first layer: beside what it becomes, what it were if moves were all."""

    inner: Rule | None = None

    @property
    def label(self) -> str:
        return "exact" if self.inner is None else getattr(self.inner, "label", type(self.inner).__name__)

    def __call__(self, call: Call) -> Any:
        result = NotImplemented if self.inner is None else self.inner(call)
        signals = [x for value in call.args for x in (value if isinstance(value, (tuple, list)) else [value])]
        signals = [x for x in signals if needs_gradient(x)]
        signals = [x for x in signals if x not in call.run.marks or call.run.marks[x].kind != "constant"]
        marks = [call.run.marks[x] for x in signals if x in call.run.marks and call.run.marks[x].kind == "input"]
        if not signals or len(marks) < len(signals):
            return result
        sources = {id(x): mark.source for x, mark in zip(signals, marks, strict=True)}
        present = {id(x): seen(mark) for x, mark in zip(signals, marks, strict=True)}
        result = call.original() if result is NotImplemented else result
        if call.operation not in _RESCALINGS:
            with torch.no_grad():
                ones = _parts(call.replaced(present))
                zeros = _parts(call.replaced({key: torch.zeros_like(x) for key, x in present.items()}))
            self._mark(call, result, call.replaced(sources), [a != b for a, b in zip(ones, zeros, strict=True)])
        elif len(signals) == 1 and result.shape == signals[0].shape:
            self._mark(call, result, marks[0].source, [*present.values()])
        return result

    def _mark(self, call: Call, result: Any, moved: Any, present: list[Tensor]) -> None:
        for part, source, where in zip(_parts(result), _parts(moved), present, strict=True):
            if needs_gradient(source):
                call.run.marks[part] = InputMark("input", source, where.to(source.dtype))


def _parts(value: Any) -> list[Tensor]:
    return [x for x in (value if isinstance(value, (tuple, list)) else [value]) if isinstance(x, Tensor)]


def lrp(
    composite: str | Composite = "epsilon_plus",
    epsilon: float = 1e-6,
    gamma: float = 0.25,
    low: Any = None,
    high: Any = None,
    record: InputRelevance | None = None,
) -> RuleSet:
    """Layer-wise relevance propagation (Bach et al. 2015); relevance is value times cotangent.

    Args:
        composite: a name of `COMPOSITES`, or a `Composite`.
        epsilon, gamma: of the rules of that name. low, high: the z-box, bounds of the first layer's input; None: the
            least and largest value of each sample and channel.
        record: takes the relevance of a rule of the first layer to the input, where its `read` is the readout. Without
            it, such a rule raises where an input that is 0 gets relevance.

    Raises:
        UnknownNameError: an unknown composite.
        InputError: a negative epsilon or gamma.
    """
    made = composite if isinstance(composite, Composite) else named_composite(composite, epsilon, gamma, low, high)
    own: dict[str, Rule | None] = {
        "attention": AttentionRule(),
        "softmax": SoftmaxRule(),
        "glu": GLURule(),
        "linear": made.linear,
        **dict.fromkeys(("conv", "conv_transpose"), made.conv),
        "batch_norm": FoldedNormRule(made.norm),
    }
    rules = relevance_rules("lrp", ("gate", "weights"), own)
    if made.first is None:
        return rules
    first = {
        operation: FirstLayerRule(made.first, rule, record)
        for operation, rule in rules.rules.items()
        if operation in ("linear", "conv", "conv_transpose") and isinstance(rule, AffineRule)
    }
    passing = {name: InputPassingRule(rules.rules.get(name)) for name in _MOVES | _RESCALINGS}
    return replace(rules, rules={**rules.rules, **passing, **first})
