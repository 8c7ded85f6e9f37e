"""Sharing Ratio Decomposition: one relevance a position, shared in proportion to contributions (iERF paper, section 3).

A *pointwise feature vector* (PFV) is what a layer holds at one position, all channels together. Activations cut the
network into affine segments, z_j = sum_i v_ij with v_ij = W_ij a_i + (share of the bias); the sharing ratio is
mu_ij = <v_ij, z_j> / <z_j, z_j>, and R_i = sum_j mu_ij R_j. As cotangents, with g_z = z R / <z, z>, the weights' part
is the ordinary vector-Jacobian product of the segment, so that at an activation a = act(z)

    R_i = <a_i, g_a>,  g_z = z_i R_i / <z_i, z_i>.

The bias of a layer adds a_i rho_i / <a_i, a_i> to what its source receives, rho_i being the part of <b, g> that falls
to position i. Where the paper is silent:

- *Nodes*, where relevance is pooled over channels, are activations, sums and concatenations of several signals, and
  whatever else a layer with a window reads.
- Gates (squeeze-and-excitation) and the statistics of group and instance norms are held.
- After the last node begins the head. It is differentiated as it is, and Grad-CAM gives the relevance of the last node.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from dataclasses import replace as changed
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from backlight.engine.adjoint import replace_adjoint
from backlight.engine.operations import AFFINE, STRUCTURAL
from backlight.engine.rules import Call, Mark, Rule, RuleSet, needs_gradient
from backlight.errors import UnknownNameError
from backlight.rules.affine import (
    inner,
    space,
    with_share,
)
from backlight.rules.affine_layers import bound
from backlight.rules.gates import HAND_WRITTEN, GateRule, gate_rules, read_activation
from backlight.rules.origins import SAME, keeps_positions, moved, positions, signals_of
from backlight.rules.pfv_layers import Layers
from backlight.rules.relevance_flow import BIASES, Flow, class_activation, held, same


@dataclass
class Sharing(Layers):
    """The rules of one explanation, and the graph of nodes that they find on the way.

    `bias`: `norm` shares a bias in proportion to |W_h a_i| (exact), `uniform` equally among the taps that read
    something; `drop` loses it, an approximation. `head`: what makes relevance of the last node's cotangent.
    """

    gates: WeakIdKeyDictionary = field(default_factory=WeakIdKeyDictionary)  # the functions that gave them

    def rules(self) -> RuleSet:
        """The rule set; it serves one forward and backward pass at a time."""
        gates = _Answer(self, self.activation, "PFV")
        outside = "softmax log_softmax attention multihead_attention layer_norm rms_norm div pow square sqrt rsqrt exp"
        outside += " log norm linalg_norm linalg_vector_norm normalize std var std_mean var_mean local_response_norm"
        outside += " matmul addmm einsum glu"
        rules: dict[str, Rule] = dict.fromkeys((AFFINE | STRUCTURAL) - {"max"}, _Answer(self, self.passing, "exact"))
        rules |= dict.fromkeys(outside.split(), _Answer(self, self.outside, "head"))
        rules |= gate_rules(gates)
        rules |= dict.fromkeys(("add", "sub"), _Answer(self, self.total, "sharing"))
        rules |= dict.fromkeys(("group_norm", "instance_norm"), _Answer(self, self.norm, "held statistics"))
        rules |= {
            "conv": _Answer(self, self.convolution, "sharing"),
            "batch_norm": _Answer(self, self.norm, "sharing"),
            "avg_pool": _Answer(self, self.average, "sharing"),
            "max_pool": _Answer(self, self.max_pool, "sharing"),
            "adaptive_max_pool": _Answer(self, self.max_pool, "sharing"),
            "cat": _Answer(self, self.concatenation, "sharing"),
            "mul": _Answer(self, self.product, "held gate"),
        }
        written: dict[str, Rule] = dict.fromkeys(HAND_WRITTEN, _Answer(self, self.hand_written, "PFV"))
        return RuleSet("srd", rules, written, whole=True)

    # what operations are

    def activation(self, call: Call) -> Any:
        x = call.input
        if not needs_gradient(x) and len(call.args) > 1:  # maximum(0, x)
            call = changed(call, args=(call.args[1], call.args[0], *call.args[2:]))
            x = call.input
        read = read_activation(call)
        if read is None:
            return NotImplemented
        if not positions(x):
            return self.made(call.original(), x)
        y = self.node(call, x, [x], bound(call))
        if read[0] in ("sigmoid", "hardsigmoid"):
            call.run.marks[y], self.gates[y] = Mark("gate", x), bound(call)
        return y

    def hand_written(self, call: Call) -> Any:
        if not positions(call.input):
            return self.made(call.adjoint(GateRule().product(*HAND_WRITTEN[call.operation])), call.input)
        return self.node(call, call.input, [call.input], call.on)

    def total(self, call: Call) -> Any:
        signals = signals_of(call)
        if not any(positions(x) for x in signals):
            return self.made(call.original(), *signals)
        if len(signals) == 2:
            result = call.original()
            if space(signals[0]) != space(signals[1]):
                return self.leave(call, result, signals)
            return self.node(call, result, signals, same)
        return self._shifted(call, signals[0])

    def _shifted(self, call: Call, x: Tensor) -> Any:
        """x plus a constant: the constant is a bias at each position."""
        others = [value for value in (*call.args[:2], call.kwargs.get("other")) if value is not x and value is not None]
        if not any(bool(torch.as_tensor(value).any()) for value in others):
            return self.made(call.original(), x)
        first, alpha = call.args[0] is x, call.kwargs.get("alpha", 1)
        if "rsub" in getattr(call.function, "__name__", ""):
            sign = -alpha if first else 1
        else:
            sign = 1 if first else alpha if call.operation == "add" else -alpha
        function, args, kwargs = call.function, call.args, call.kwargs
        place = next(n for n, value in enumerate(args) if value is x)
        rest = [value for value in args if value is not x]

        def shifted(z: Tensor) -> Tensor:
            y: Tensor = function(*rest[:place], z, *rest[place:], **kwargs)
            return y

        return self.pointwise(call, x, shifted, lambda z: (sign, shifted(z) - sign * z))

    def concatenation(self, call: Call) -> Any:
        signals = signals_of(call)
        result = call.original()
        axis = call.argument(1, "dim", 0) % result.ndim
        if axis != 1 or not positions(result):
            return self.made(result, *signals, windowed=axis > 1)
        if len(signals) > 1:
            return self.node(call, result, signals, same)
        return self._joined(call, signals[0])

    def _joined(self, call: Call, x: Tensor) -> Any:
        """x with constant channels beside its own: they are a bias at each position."""
        parts = [value for value in call.argument(0, "tensors") if value is not x]
        if not any(bool(value.any()) for value in parts):
            return self.made(call.original(), x)
        place = next(n for n, value in enumerate(call.argument(0, "tensors")) if value is x)
        start, width = sum(value.shape[1] for value in parts[:place]), x.shape[1]
        at, flow = self.flow.last, self.flow

        def joined(z: Tensor) -> Tensor:
            return torch.cat((*parts[:place], z, *parts[place:]), 1)

        def vjp(z: Tensor, y: Tensor, cotangent: Tensor) -> Tensor:
            back = cotangent.narrow(1, start, width)
            if flow.in_head(at) or flow.bias == "drop":
                return back
            return with_share(back, z, inner(y, cotangent) - inner(z, back))

        return self.made(replace_adjoint(x, joined, vjp, "zy", call.run.phase), x)

    def product(self, call: Call) -> Any:
        signals = signals_of(call)
        if len(signals) < 2:
            return self.made(call.original(), *signals)
        marks = call.run.marks
        if not any(positions(x) for x in signals):
            return self.made(call.original(), *signals)
        for signal, other in (signals, signals[::-1]):
            mark = marks.get(other)
            if mark is not None and mark.source is signal and other in self.gates:  # SiLU, Hardswish, written out
                return self.node(call, signal, [signal], _gated(self.gates[other]))
            if positions(signal) and (not positions(other) or (mark is not None and mark.kind == "gate")):
                gate, origin = self.gate(call, other), self.origin(other)
                args = tuple(gate if value is other else value for value in call.args)
                return self.made(call.function(*args, **call.kwargs), signal, held=origin.parents | origin.held)
        return self.leave(call, call.original(), signals)

    def gate(self, call: Call, x: Tensor) -> Tensor:
        """x, held: it gets no cotangent, except in the head."""
        at, flow = self.flow.last, self.flow
        return held(x, lambda: not flow.in_head(at), call.run.phase)

    def passing(self, call: Call) -> Any:
        signals = signals_of(call)
        if len(call.signals()) > 1:
            return NotImplemented
        result = call.original()
        if len(signals) != 1 or not positions(signals[0]):
            return self.made(result, *signals)
        origin = self.origin(signals[0])
        if call.operation in SAME and needs_gradient(result):
            self.origins[result] = origin
            return result
        if moved(call, result):
            return self.move(call, signals[0], result)
        if not keeps_positions(call, result, len(self.flow.nodes[0].size)):
            return self.leave(call, result, signals)
        return self.made(result, *signals)

    def move(self, call: Call, x: Tensor, result: Any) -> Any:
        """Positions padded, cut or turned: like a layer with a window."""
        source = self.at_node(call, x)
        return self.made(result if source is x else call.on(source), source, windowed=True)

    def outside(self, call: Call) -> Any:
        signals = signals_of(call)
        if not any(positions(x) for x in signals):
            return self.made(call.original(), *signals)
        if call.operation == "div" and len(signals) == 1 and signals[0] is call.input:
            return self.passing(call)
        return self.leave(call, call.original(), signals)


@dataclass(frozen=True)
class _Answer:
    sharing: Sharing
    answer: Callable[[Call], Any]
    label: str

    def __call__(self, call: Call) -> Any:
        for x in signals_of(call):
            mark = call.run.marks.get(x)
            if mark is not None and mark.kind == "input" and mark.source is x:
                self.sharing.begin(x)
            written = call.run.memory.copies.get(x)  # what a network writes to a view of something else
            if written is not None:
                self.sharing.origins[x] = self.sharing.origin(written)
        return self.answer(call)


def _gated(gate: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda z: z * gate(z)


def srd(bias: str = "norm", clamp: bool = False) -> RuleSet:
    """The rule set of Sharing Ratio Decomposition, with Grad-CAM where the head begins."""
    if bias not in BIASES:
        raise UnknownNameError("sharing of biases", bias, BIASES)
    return Sharing(Flow(class_activation(clamp), bias)).rules()
