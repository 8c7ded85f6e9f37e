"""AttnLRP and CP-LRP: relevance through transformers, as modified gradients.

The explicit rules send relevances R from an operation's outputs to its inputs (epsilon -> 0 throughout):

- linear, z = W x + b: R_x = x * W^T (R / z), the bias absorbs its share; a sum: R_a = a R / (a + b), as linear;
- an activation, a = f(z): R_z = R_a; LayerNorm: R passes the deviation, and x - mean(x) is linear;
- a product of two signals: each factor gets R / 2; a matrix product O = A V: R_A = A * ((R / 2O) V^T), and so for V;
- softmax s(x): R_x = x * (R - s sum(R)), its first-order Taylor expansion, whose constant is bias.

With R = activation * cotangent, all of them are ordinary backpropagation with another vector-Jacobian product in four
places: activations, delta_z = delta_a f(z) / z; normalisation, the deviation held; products, half of the cotangent to
each factor; denominators, held. Attention is two products and a softmax: queries and keys get a quarter of their
gradient, values half. CP-LRP holds the attention weights: nothing to queries and keys, all to the values.

Where the papers are silent: an activation with a(0) != 0 (sigmoid, softplus) has no finite f(z) / z; its a(0) is bias,
as for a linear layer, and delta_z = delta_a (a(z) - a(0)) / z. A product with a constant is linear.

Sources: Achtibat et al. 2024 (AttnLRP); Ali et al. 2022 (CP-LRP); Arras et al. 2025 (as modified gradients).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from backlight.engine.adjoint import alias, replace_adjoint
from backlight.engine.rules import Call, Rule, RuleSet, needs_gradient
from backlight.rules.attention import AttentionRule, MultiheadRule, SoftmaxRule
from backlight.rules.gates import GateRule, gate_rules, module_gates
from backlight.rules.normalisation import NormalizeRule, NormRule
from backlight.rules.products import PowerRule, ProductRule, QuotientRule, SpreadRule


def divided(x: Any, parts: int, call: Call) -> Any:
    """x, which receives the `parts`-th part of its cotangent."""
    if parts == 1 or not needs_gradient(x):
        return x
    return replace_adjoint(x, alias, lambda z, y, cotangent: cotangent / parts, "", call.run.phase)


@dataclass(frozen=True)
class SharedAttentionRule:
    """The fused kernel; queries and keys receive a quarter of their gradient, values half.

    A factor that is constant (a learned query) takes no share: the other one gets it.
    """

    label: str = "shared attention"

    def __call__(self, call: Call) -> Any:
        names = ("query", "key", "value", "attn_mask")
        q, k, v, mask = (call.argument(position, name) for position, name in enumerate(names))
        signals = [needs_gradient(x) for x in (q, k, v, mask)]
        outer = 2 if signals[2] and (signals[0] or signals[1] or signals[3]) else 1  # at A V
        inner = 2 if signals[0] and signals[1] else 1  # at Q K^T
        shares = (outer * inner, outer * inner, outer, outer)
        factors = [divided(x, share, call) for x, share in zip((q, k, v, mask), shares, strict=True)]
        rest = {key: value for key, value in call.kwargs.items() if key not in names}
        return replace(call, args=(*factors, *call.args[4:]), kwargs=rest).original()


@dataclass(frozen=True)
class SharedGLURule:
    """y = a sigma(b): half to each factor; sigma(0) = 1/2 is bias."""

    label: str = "product"

    def __call__(self, call: Call) -> Any:
        axis = call.argument(1, "dim", -1)

        def vjp(z: Tensor, y: Any, cotangent: Tensor) -> Tensor:
            a, b = z.chunk(2, axis)
            zero = b == 0  # where tanh(b / 2) / 2b has the limit 1/4
            gate = torch.where(zero, 0.25, torch.tanh(b / 2) / (2 * b.where(~zero, 1)))
            return torch.cat((cotangent * b.sigmoid(), cotangent * a * gate), axis) / 2

        return call.run.bias(call.adjoint(vjp), lambda: call.input.detach().chunk(2, axis)[0] / 4)


@dataclass(frozen=True)
class GradientRule:
    """The plain gradient, knowingly."""

    label: str = "gradient"

    def __call__(self, call: Call) -> Any:
        return call.original()


def relevance_rules(name: str, held: tuple[str, ...], own: dict[str, Rule | None]) -> RuleSet:
    gates = GateRule()
    norms = ("layer_norm", "rms_norm", "group_norm", "instance_norm", "batch_norm")
    rules: dict[str, Rule] = {
        **gate_rules(gates),
        "glu": SharedGLURule(),
        **dict.fromkeys(norms, NormRule(hold_mean=False, label="held deviation")),
        **dict.fromkeys(("normalize", "local_response_norm"), NormalizeRule()),
        **dict.fromkeys(("mul", "matmul", "addmm", "einsum"), ProductRule(gates, held)),
        "div": QuotientRule(),
        **dict.fromkeys(("pow", "square", "sqrt", "rsqrt", "reciprocal"), PowerRule()),
        **dict.fromkeys(
            ("norm", "linalg_norm", "linalg_vector_norm", "std", "var", "std_mean", "var_mean"), SpreadRule()
        ),
        "multihead_attention": MultiheadRule(),
        "log_softmax": GradientRule(),
        **{operation: rule for operation, rule in own.items() if rule is not None},
    }
    return RuleSet(name, rules, module_gates(gates))


def attn_lrp(linear: Rule | None = None, conv: Rule | None = None) -> RuleSet:
    """AttnLRP, Achtibat et al. 2024, equations 7 to 9 and propositions 3.1 to 3.4 with epsilon -> 0.

    Not conservative: at a softmax the constant of its expansion absorbs (or adds) relevance without bound.

    Args:
        linear, conv: rules for linear layers and convolutions (a gamma rule); the plain gradient by default.
    """
    own: dict[str, Rule | None] = {
        "attention": SharedAttentionRule(),
        "softmax": GradientRule(),
        "linear": linear,
        "conv": conv,
    }
    return relevance_rules("attn_lrp", (), own)


def cp_lrp(linear: Rule | None = None, conv: Rule | None = None) -> RuleSet:
    """CP-LRP, Ali et al. 2022: as AttnLRP, but attention weights are held, and values get the whole gradient.

    Conservative up to the biases: input times cotangent, and the share of the biases, sum to the score.

    Args:
        linear, conv: rules for linear layers and convolutions; the plain gradient by default.
    """
    own: dict[str, Rule | None] = {
        "attention": AttentionRule(),
        "softmax": SoftmaxRule(),
        "linear": linear,
        "conv": conv,
    }
    return relevance_rules("cp_lrp", ("weights",), own)
