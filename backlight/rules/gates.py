"""Gates: activations as a(z) = a(0) + z G(z), and their soft forms.

The pullback of an activation is its adjoint as a dynamic linear operator, delta_z = delta_y G(z): the gate is held,
not differentiated (Semantic Pullbacks, section 2.2, equation 8). A soft pullback replaces G by G_tau (equations 9-12).
Where the paper is silent (everything but ReLU, SiLU and GELU):

- *Switches* are piecewise: one branch for z > 0, another for z < 0. The hard switch is averaged over pre-activations
  with spread tau, as the paper does for ReLU: G_tau = Phi(z/tau) G+(z) + (1 - Phi(z/tau)) G-(z), with each branch's own
  gate, continued by its limit at 0. ReLU, LeakyReLU, PReLU, RReLU, ReLU6, ELU, SELU, CELU, Threshold(0), clamp(min=0).
- *Smooth gates* are a function of z: G_tau(z) = G(z/tau). SiLU, GELU, Hardswish, Mish, Softplus. tau = 1 is the exact
  adjoint, tau -> 0 the step.
- *Saturating* activations have no switch: G_tau = G. Tanh, Sigmoid, Hardsigmoid, Hardtanh, Softsign, LogSigmoid, ...
  Where a(0) is not 0 it is part of the bias (appendix D).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from backlight.engine.rules import Call, Mark, Rule, needs_gradient
from backlight.errors import ModelError
from backlight.rules.temperature import Temperature, resolve

# z, tau -> gate
GateFunction = Callable[[Tensor, Any], Tensor]


def normal_cdf(z: Tensor, tau: Tensor | float) -> Tensor:
    """Phi(z / tau); its limit, a step with 1/2 at 0, where tau is 0."""
    u = _over(z, tau, math.sqrt(0.5))
    if torch.is_grad_enabled():
        return (1 + torch.erf(u)) / 2
    return u.erf_().add_(1).mul_(0.5)  # this decides the speed of a soft pullback: no temporaries


def logistic(z: Tensor, tau: Tensor | float) -> Tensor:
    """sigma(z / tau); its limit, a step with 1/2 at 0, where tau is 0."""
    return torch.sigmoid(_over(z, tau))


def _over(z: Tensor, tau: Tensor | float, factor: float = 1.0) -> Tensor:
    """factor z / tau, a new tensor; where tau is 0, so large that every gate takes its exact limit."""
    if isinstance(tau, Tensor):
        return z / (tau.clamp(min=torch.finfo(tau.dtype).tiny) / factor)
    if tau <= 0:
        return torch.where(z == 0, z, torch.copysign(torch.full_like(z, torch.inf), z))
    return z * (factor / tau)


def _ratio(numerator: Tensor, z: Tensor, limit: Tensor | float) -> Tensor:
    """numerator / z with its limit at 0."""
    zero = z == 0
    return torch.where(zero, torch.as_tensor(limit, dtype=z.dtype, device=z.device), numerator / z.where(~zero, 1))


@dataclass(frozen=True)
class Activation:
    """a(z) = offset + z gate(z): `gate(z, *parameters)`, and `soft(z, tau, cdf, *parameters)` for its soft form.

    `scale` names the temperature that softens it; None: there is nothing to soften.
    """

    gate: Callable[..., Tensor]
    soft: Callable[..., Tensor] | None = None
    scale: str | None = None
    offset: Callable[..., float] = lambda *parameters: 0.0


def _switch(positive: Callable[..., Any], negative: Callable[..., Any]) -> Activation:
    """A switch between two branches; each gives its gate where it holds, and its limit at 0 elsewhere."""

    def gate(z: Tensor, *parameters: Any) -> Tensor:
        return torch.where(z > 0, positive(z.clamp(min=0), *parameters), negative(z.clamp(max=0), *parameters))

    def soft(z: Tensor, tau: Any, cdf: GateFunction, *parameters: Any) -> Tensor:
        weight = cdf(z, tau)
        low = negative(z.clamp(max=0), *parameters)
        return low + weight * (positive(z.clamp(min=0), *parameters) - low)

    return Activation(gate, soft, "relu")


def _smooth(gate: Callable[..., Tensor], scale: str, offset: Callable[..., float] | None = None) -> Activation:
    """A gate that is a smooth function of z: softened as gate(z / tau), a step at tau = 0."""

    def soft(z: Tensor, tau: Any, cdf: GateFunction, *parameters: Any) -> Tensor:
        return gate(z if isinstance(tau, float | int) and tau == 1 else _over(z, tau), *parameters)

    return Activation(gate, soft, scale, offset or (lambda *parameters: 0.0))


def _relu_like(top: float | None = None) -> Activation:
    """ReLU, or ReLU clipped at `top`: the gate of the upper branch is min(1, top / z)."""

    def hard(z: Tensor) -> Tensor:
        open_ = (z > 0).to(z.dtype)
        return open_ if top is None else open_ * (top / z.clamp(min=top))

    def soft(z: Tensor, tau: Any, cdf: GateFunction) -> Tensor:
        open_ = cdf(z, tau)
        return open_ if top is None else open_ * (top / z.clamp(min=top))

    return Activation(hard, soft, "relu")


def _clip(z: Tensor, low: float, high: float) -> Tensor:
    """(clamp(z) - clamp(0)) / z for any bounds."""
    at_zero = min(max(0.0, low), high)
    return _ratio(z.clamp(low, high) - at_zero, z, 1.0 if low < 0 < high else 0.0)


def _prelu_slope(z: Tensor, weight: Tensor) -> Tensor:
    return weight.reshape(-1, *(1,) * (z.ndim - 2)) if weight.numel() > 1 and z.ndim > 1 else weight.reshape(())


def _elu_branch(z: Tensor, alpha: float, scale: float, rate: float) -> Tensor:
    return scale * alpha * rate * _ratio(torch.expm1(z * rate), z * rate, 1.0)


def _gelu_gate(z: Tensor, approximate: str = "none") -> Tensor:
    # the reference uses Phi for both forms; the tanh form's own gate differs from it by 5e-4 at most, and is exact here
    if approximate == "tanh":
        return (1 + torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3))) / 2
    return normal_cdf(z, 1.0)


def _softplus_gate(z: Tensor, beta: float, threshold: float = 20.0) -> Tensor:
    # log((1 + e^u) / 2) / u, u = beta z, without cancellation at 0, and finite for infinite u
    u = z * beta
    small = _ratio(torch.log1p(torch.expm1(u.clamp(-1, 1)) / 2), u.clamp(-1, 1), 0.5)
    rest = torch.where(u > threshold, 0, F.softplus(-u.abs()))  # above the threshold softplus is linear
    large = (u > 0) + (rest - math.log(2)) / torch.where(u == 0, 1, u)
    return torch.where((u.abs() < 1) & (u <= threshold), small, large)


ACTIVATIONS: dict[str, Activation] = {
    "relu": _relu_like(),
    "relu6": _relu_like(6.0),
    "leaky_relu": _switch(lambda z, slope: 1.0, lambda z, slope: torch.full_like(z, slope)),
    "prelu": _switch(lambda z, weight: 1.0, lambda z, weight: _prelu_slope(z, weight).expand_as(z)),
    "elu": _switch(
        lambda z, alpha, scale, rate: torch.full_like(z, scale),
        lambda z, alpha, scale, rate: _elu_branch(z, alpha, scale, rate),
    ),
    "silu": _smooth(torch.sigmoid, "silu"),
    "gelu": _smooth(_gelu_gate, "gelu"),
    "quick_gelu": _smooth(lambda z: torch.sigmoid(1.702 * z), "gelu"),
    "hardswish": _smooth(lambda z: (z / 6 + 0.5).clamp(0, 1), "silu"),
    "mish": _smooth(lambda z: torch.tanh(F.softplus(z)), "silu"),
    "softplus": _smooth(_softplus_gate, "silu", lambda beta, threshold: math.log(2) / beta),
    "hardtanh": Activation(_clip, offset=lambda low, high: min(max(0.0, low), high)),
    "tanh": Activation(lambda z: _ratio(torch.tanh(z), z, 1.0)),
    "sigmoid": Activation(lambda z: _ratio(torch.tanh(z / 2) / 2, z, 0.25), offset=lambda: 0.5),
    "hardsigmoid": Activation(lambda z: _clip(z / 6, -0.5, 0.5) / 6, offset=lambda: 0.5),
    "softsign": Activation(lambda z: 1 / (1 + z.abs())),
    "logsigmoid": Activation(lambda z: _softplus_gate(-z, 1.0), offset=lambda: -math.log(2)),
    "tanhshrink": Activation(lambda z: 1 - _ratio(torch.tanh(z), z, 1.0)),
    "hardshrink": Activation(lambda z, bound: (z.abs() > bound).to(z.dtype)),
    "softshrink": Activation(lambda z, bound: _ratio(F.softshrink(z, bound), z, 0.0)),
}


# module classes (by name) whose forward is an activation in elementary functions: (activation, parameters)
HAND_WRITTEN: dict[str, tuple[str, tuple[Any, ...]]] = {
    "NewGELUActivation": ("gelu", ("tanh",)),
    "FastGELUActivation": ("gelu", ("tanh",)),
    "PytorchGELUTanh": ("gelu", ("tanh",)),
    "AccurateGELUActivation": ("gelu", ("tanh",)),
    "QuickGELUActivation": ("quick_gelu", ()),
    "QuickGELU": ("quick_gelu", ()),
    "MishActivation": ("mish", ()),
}

_MAXIMA = ("maximum", "fmax", "max")


def read_activation(call: Call) -> tuple[str, tuple[Any, ...]] | None:
    """(activation, parameters) of a call; None where it is none: a clamp that is not one, a maximum of two signals."""
    operation, get = call.operation, call.argument
    if operation in ("clamp", "hardtanh"):
        function = getattr(call.function, "__name__", "").strip("_")
        lower, upper = ("min_val", "max_val") if operation == "hardtanh" else ("min", "max")
        default = (-1.0, 1.0) if operation == "hardtanh" else (None, None)
        low = get(1, lower, default[0]) if function != "clamp_max" else None
        high = get(1, "max") if function == "clamp_max" else get(2, upper, default[1])
        return _clipped(low, high)
    if operation in _MAXIMA and isinstance(other := get(1, "other"), Tensor) and not other.requires_grad:
        return ("relu", ()) if not bool(other.any()) else None
    if operation == "threshold":
        return ("relu", ()) if (get(1, "threshold"), get(2, "value")) == (0, 0) else None
    if operation in ("elu", "selu", "celu"):
        alpha = get(1, "alpha", 1.0)
        if operation == "selu":
            return "elu", (1.6732632423543772, 1.0507009873554805, 1.0)
        return "elu", (alpha, 1.0, 1 / alpha if operation == "celu" else 1.0)
    if operation == "rrelu":
        if get(3, "training", False):
            raise ModelError(f"RReLU in layer {call.layer!r} draws its slopes in training mode: call model.eval()")
        return "leaky_relu", ((get(1, "lower", 1 / 8) + get(2, "upper", 1 / 3)) / 2,)
    if operation == "softplus":
        return "softplus", (get(1, "beta", 1.0), get(2, "threshold", 20.0))
    arguments: dict[str, tuple[Any, ...]] = {
        "leaky_relu": (get(1, "negative_slope", 0.01),),
        "prelu": (get(1, "weight"),),
        "gelu": (get(1, "approximate", "none"),),
        "hardshrink": (get(1, "lambd", 0.5),),
        "softshrink": (get(1, "lambd", 0.5),),
    }
    return (operation, arguments.get(operation, ())) if operation in ACTIVATIONS else None


def _clipped(low: Any, high: Any) -> tuple[str, tuple[Any, ...]] | None:
    if any(isinstance(bound, Tensor) for bound in (low, high)):
        return None
    if low == 0 and high is None:
        return "relu", ()
    if low == 0 and high == 6:
        return "relu6", ()
    bounds = (-math.inf if low is None else float(low), math.inf if high is None else float(high))
    return "hardtanh", bounds


@dataclass(frozen=True)
class GateRule:
    """delta_z = delta_y G(z), soft where temperatures are given.

    `cdf`: the step that replaces a hard switch: Phi (Semantic Pullbacks) or sigma (excitation pullbacks).
    """

    temperature: dict[str, Temperature] | None = None
    cdf: GateFunction = normal_cdf
    label: str = "gate"

    def __call__(self, call: Call) -> Any:
        if call.operation in _MAXIMA and len(call.args) > 1 and not needs_gradient(call.input):
            call = replace(call, args=(call.args[1], call.args[0], *call.args[2:]))
        read = read_activation(call)
        if read is None:
            return NotImplemented
        name, parameters = read
        if name == "relu" and not self.temperature:
            return call.original()  # the hard gate of ReLU is its derivative
        result = call.adjoint(self.product(name, parameters, call.run.samples, call.kwargs.get("beta")))
        offset = ACTIVATIONS[name].offset(*parameters)
        result = call.run.bias(result, lambda: offset) if offset else result
        if name in ("sigmoid", "hardsigmoid"):
            call.run.marks[result] = Mark("gate", call.input)
        return result

    def product(
        self, name: str, parameters: tuple[Any, ...], samples: int | None = None, beta: float | None = None
    ) -> Callable[[Tensor, Any, Tensor], Tensor]:
        """The vector-Jacobian product of an activation, in a batch of so many samples.

        `beta`: of the softplus that stands in the place of a ReLU; the switch is then its derivative, sigma(beta z).
        """
        activation = ACTIVATIONS[name]
        tau = self.temperature.get(activation.scale or "") if self.temperature else None
        switch = activation.soft if activation.scale == "relu" else None
        if tau is None and beta is not None and switch is not None:
            return lambda z, y, cotangent: cotangent * switch(z, 1 / beta, logistic, *parameters)
        if activation.soft is None or tau is None:
            return lambda z, y, cotangent: cotangent * activation.gate(z, *parameters)
        soft, cdf = activation.soft, self.cdf

        def vjp(z: Tensor, y: Any, cotangent: Tensor) -> Tensor:
            gate = soft(z, resolve(tau, z, samples), cdf, *parameters)
            fresh = not torch.is_grad_enabled() and gate.dtype == cotangent.dtype
            return gate.mul_(cotangent) if fresh else (cotangent * gate).to(cotangent.dtype)

        return vjp


def gate_rules(rule: Rule) -> dict[str, Rule]:
    """The rule, under the name of every operation that is an activation."""
    return dict.fromkeys((*ACTIVATIONS, *_MAXIMA, "clamp", "threshold", "selu", "celu", "rrelu"), rule)


@dataclass(frozen=True)
class ModuleGate:
    """A gate that a module writes by hand, answered as one activation."""

    gates: GateRule
    activation: str
    parameters: tuple[Any, ...] = ()

    @property
    def label(self) -> str:
        return self.gates.label

    def __call__(self, call: Call) -> Any:
        return call.adjoint(self.gates.product(self.activation, self.parameters, call.run.samples))


def module_gates(gates: GateRule) -> dict[str, Rule]:
    """Rules for the module classes whose forward is an activation in elementary functions."""
    return {name: ModuleGate(gates, activation, parameters) for name, (activation, parameters) in HAND_WRITTEN.items()}


@dataclass(frozen=True)
class GLURule:
    """y = a sigma(b): the gate is held, delta_a = delta_y sigma(b) and delta_b = 0."""

    label: str = "gate"

    def __call__(self, call: Call) -> Any:
        axis = call.argument(1, "dim", -1)

        def vjp(z: Tensor, y: Any, cotangent: Tensor) -> Tensor:
            gated = cotangent * z.chunk(2, axis)[1].sigmoid()
            return torch.cat((gated, torch.zeros_like(gated)), axis)

        return call.adjoint(vjp)
