"""Products of signals, powers and quotients, as dynamic linear operators.

A product of two signals is linear in each. Weights (the softmax of an attention) and bounded gates (a sigmoid) are held
and all of the cotangent goes to the signal they weigh: delta_v = delta_y w, delta_w = 0 (Semantic Pullbacks, A.5).
Two signals that gate each other (GEGLU, SwiGLU, bilinear attention) share the cotangent in equal halves, so that
<u, delta_u> + <v, delta_v> = <u v, delta>. Denominators are statistics and are held, as in normalisation (A.3).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from backlight.engine.adjoint import alias, replace_adjoint
from backlight.engine.rules import Call, Mark, needs_gradient
from backlight.rules.gates import GateRule


def halved(x: Tensor, call: Call) -> Tensor:
    """x, which receives half of its cotangent."""
    return replace_adjoint(x, alias, lambda z, y, cotangent: cotangent / 2, "", call.run.phase)


def _weighed_by(call: Call, weights: Tensor, softer: Tensor, signal: Tensor) -> Any:
    """weights times signal, whose backward pass meets the softer weights (Semantic Pullbacks, equation 17)."""

    def product(z: Tensor, weights: Tensor, softer: Tensor) -> Any:
        return call.replaced({id(original): weights, id(signal): z})

    def vjp(z: Tensor, y: Any, cotangent: Tensor, weights: Tensor, softer: Tensor) -> Tensor:
        again = torch.is_grad_enabled()
        with torch.enable_grad():
            at = z.detach().requires_grad_()
            return torch.autograd.grad(product(at, softer, softer), at, cotangent, create_graph=again)[0]

    original = weights
    return replace_adjoint(signal, product, vjp, "z", call.run.phase, (weights, softer))


@dataclass(frozen=True)
class ProductRule:
    """Hold weights and gates; share the cotangent between two signals. `gates` answers x * sigmoid(x) as a SiLU.

    `held`: which kinds of factors are held; the others are signals like any other.
    """

    gates: GateRule
    held: tuple[str, ...] = ("gate", "weights")
    label: str = "product"

    def __call__(self, call: Call) -> Any:
        signals = call.signals()
        if len(signals) < 2:
            return self._scaled(call, signals)
        marks = call.run.marks
        marked = [value for value in signals if value in marks and marks[value].kind in ("gate", "weights")]
        if len(marked) == 1 and len(signals) == 2:
            weights = marked[0]
            signal = signals[1] if signals[0] is weights else signals[0]
            source = marks[weights].source
            if source is signal and call.operation == "mul":
                return self._silu(call, signal, weights)
        held = [value for value in marked if marks[value].kind in self.held]
        if len(held) == 1 and len(signals) == 2:
            weights = held[0]
            signal = signals[1] if signals[0] is weights else signals[0]
            source = marks[weights].source
            if marks[weights].kind == "weights" and source is not None:
                return _weighed_by(call, weights, source, signal)
            return call.replaced({id(weights): call.hold(weights)})
        if len(signals) > 2:
            return NotImplemented
        return call.replaced({id(value): halved(value, call) for value in signals})

    def _silu(self, call: Call, z: Tensor, gate: Tensor) -> Any:
        silu = self.gates.product("silu", (), call.run.samples)

        def product(z: Tensor, weight: Tensor) -> Any:
            return call.replaced({id(gate): weight, id(signal): z})

        signal = z
        return replace_adjoint(
            z, product, lambda z, y, cotangent, weight: silu(z, y, cotangent), "z", call.run.phase, (gate,)
        )

    def _scaled(self, call: Call, signals: list[Tensor]) -> Any:
        """One signal times constants: affine. A gate that is scaled is still a gate."""
        if call.operation != "mul" or not signals or signals[0] not in call.run.marks:
            return NotImplemented
        result = call.original()
        call.run.pass_mark(call, signals[0], result)
        return result


@dataclass(frozen=True)
class QuotientRule:
    """a / b: b is a statistic and is held."""

    label: str = "held denominator"

    def __call__(self, call: Call) -> Any:
        numerator, denominator = call.argument(0, "input"), call.argument(1, "other")
        if getattr(call.function, "__name__", "") in ("__rtruediv__", "__rdiv__"):
            numerator, denominator = denominator, numerator
        if not needs_gradient(denominator):
            result = call.original()
            if needs_gradient(numerator):
                call.run.pass_mark(call, numerator, result)
            return result
        return call.replaced({id(denominator): call.hold(denominator)})


@dataclass(frozen=True)
class PowerRule:
    """z^p = z z^(p-1): the gate is z^(p-1), held. Negative powers are statistics and are held whole."""

    label: str = "power"

    def __call__(self, call: Call) -> Any:
        exponents = {"square": 2.0, "sqrt": 0.5, "rsqrt": -0.5, "reciprocal": -1.0}
        exponent = exponents.get(call.operation, call.argument(1, "exponent"))
        if isinstance(exponent, Tensor) and exponent.numel() == 1 and not exponent.requires_grad:
            exponent = float(exponent)
        if not isinstance(exponent, (int, float)) or not needs_gradient(call.input):
            return NotImplemented
        if exponent < 0:
            return call.hold(call.original())
        return call.adjoint(lambda z, y, cotangent: cotangent * z ** (exponent - 1))


@dataclass(frozen=True)
class SpreadRule:
    """Norms and deviations are homogeneous of degree 1, f(x) = <grad f, x>: the gradient. Variances, of degree 2: half.

    As denominators they are held by what divides.
    """

    label: str = "homogeneous"

    def __call__(self, call: Call) -> Any:
        result = call.original()
        if call.operation in ("var_mean", "std_mean"):
            spread, mean = result
            call.run.marks[mean] = Mark("mean", call.input)
            return (halved(spread, call) if call.operation == "var_mean" else spread), mean
        return halved(result, call) if call.operation == "var" else result


@dataclass(frozen=True)
class CentreRule:
    """x - mean(x): the mean is a statistic and is held (Semantic Pullbacks, A.3)."""

    label: str = "held mean"

    def __call__(self, call: Call) -> Any:
        other = call.argument(1, "other")
        if not needs_gradient(other) or other not in call.run.marks or call.run.marks[other].kind != "mean":
            return NotImplemented
        if call.run.marks[other].source is not call.input:
            return NotImplemented
        result = call.replaced({id(other): call.hold(other)})
        return call.run.bias(result, lambda: -other.detach())
