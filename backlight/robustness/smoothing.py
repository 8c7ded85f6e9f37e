"""Networks with their ReLUs smoothed: what an attack differentiates in place of a piecewise linear network.

The gradient of a ReLU network is piecewise constant in the input: its derivative is zero almost everywhere, and says
nothing to an optimiser. Softplus, log(1 + e^(beta z)) / beta, is within log(2) / beta of ReLU, and has a second
derivative (Dombrowski et al. 2019). Here a torch function mode puts it in the place of ReLU while the
model runs. Rules see the call that they would have seen, `relu`, with another value and another derivative.
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode, handle_torch_function, has_torch_function_unary

from backlight.engine.coverage import Coverage
from backlight.engine.operations import is_in_place, operation_name
from backlight.engine.rules import Call
from backlight.engine.run import running
from backlight.errors import InputError
from backlight.rules.gates import read_activation

_MAXIMA = frozenset(["maximum", "fmax", "max"])
KINKED = frozenset(["relu", "relu6", "leaky_relu", "prelu", "rrelu", "hardtanh", "clamp", "threshold"]) | _MAXIMA
# answers to an activation that are steps in its input: the derivative, or a gate that is one
STEPS = frozenset(
    ["gradient", "gradient (no rule)", "exact", "gate", "guided", "deconvnet", "bias-gradient", "homogeneous"]
)


class Smoothed(nn.Module):
    """A model with softplus in place of its ReLUs, of which every module, name and parameter is the model's own.

    Replaced, however they are spelled: ReLU, by softplus(z); LeakyReLU, PReLU and RReLU of slope s, by s z + (1 - s)
    softplus(z); ReLU6, hardtanh and `clamp(0, c)`, by low + softplus(z - low) - softplus(z - high). Left as they are:
    smooth activations, ELU and Hardswish, whose derivative is no step, and max-pooling, whose routes stay hard.

    The model is not written to: hold this module for as long as it is needed, and let it go. `beta` may be set anew;
    it is in units of 1 / pre-activation, so that a network with pre-activations of 100 needs a hundredth of it.

    Raises:
        InputError: a beta that is not positive.
        ModelError: a scripted, compiled or data-parallel part, which a function mode cannot see into.
    """

    def __init__(self, model: nn.Module, beta: float) -> None:
        super().__init__()
        if not 0 < beta < math.inf:
            raise InputError(f"beta of softplus is positive and finite, got {beta}")
        with running(model):  # a part that a mode cannot see into raises here
            pass
        self.beta = float(beta)
        self.training = model.training
        own = vars(self)
        own["_model"] = model  # past the registration of submodules: layers keep the names that they have in the model
        own["_modules"], own["_parameters"], own["_buffers"] = model._modules, model._parameters, model._buffers

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with _Smoothing(self.beta):
            return vars(self)["_model"](*args, **kwargs)


def is_kinked(coverage: Coverage) -> bool:
    """Whether an explanation passed an activation with a kink by a rule that is a step there."""
    return any(row.operation in KINKED and row.rule in STEPS for row in coverage)


class _Smoothing(TorchFunctionMode):
    """Entered inside a model's forward, so that it sees a call before a run does, and sees nothing that rules do."""

    def __init__(self, beta: float) -> None:
        super().__init__()
        self.beta = beta

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if operation_name(function) not in KINKED:
            return function(*args, **kwargs)
        read = _read(function, args, kwargs)
        if read is None:
            return function(*args, **kwargs)
        z, (name, parameters) = read
        in_place = kwargs.get("inplace") is True or is_in_place(function)
        return _SMOOTH[name](z, *parameters, beta=self.beta, inplace=in_place)


def _read(function: Any, args: Any, kwargs: Any) -> tuple[Tensor, tuple[str, tuple[Any, ...]]] | None:
    """(its input, (activation, parameters)) of a call that is to be smoothed, or None."""
    operation = operation_name(function)
    orders = [args]
    if operation in _MAXIMA and len(args) == 2 and all(isinstance(value, Tensor) for value in args):
        orders.append((args[1], args[0]))
    for order in orders:
        call = Call(function, order, kwargs, operation, "", None)  # type: ignore[arg-type]
        found = read_activation(call)
        if found is None or found[0] not in _SMOOTH or not isinstance(call.input, Tensor):
            continue
        if operation == "clamp" and found[0] == "hardtanh" and found[1][0] != 0:
            continue  # a guard of a denominator, or the like: no activation
        return call.input, found
    return None


def _dispatched(function: Any, z: Tensor, value: Any, inplace: bool, *parameters: Any, beta: float) -> Tensor:
    """The call, given to the run where there is one; its value otherwise."""
    if has_torch_function_unary(z):
        return handle_torch_function(function, (z,), z, *parameters, beta=beta, inplace=inplace)
    return z.copy_(value(z.clone())) if inplace else value(z)


# named as the operations that rules answer
def relu(z: Tensor, *, beta: float, inplace: bool = False) -> Tensor:
    """Softplus in the place of ReLU."""
    return _dispatched(relu, z, lambda z: F.softplus(z, beta), inplace, beta=beta)


def leaky_relu(z: Tensor, negative_slope: float, *, beta: float, inplace: bool = False) -> Tensor:
    """LeakyReLU, smoothed."""

    def value(z: Tensor) -> Tensor:
        return negative_slope * z + (1 - negative_slope) * F.softplus(z, beta)

    return _dispatched(leaky_relu, z, value, inplace, negative_slope, beta=beta)


def prelu(z: Tensor, weight: Tensor, *, beta: float, inplace: bool = False) -> Tensor:
    """PReLU, smoothed."""

    def value(z: Tensor) -> Tensor:
        several = weight.numel() > 1 and z.ndim > 1
        slope = weight.reshape(-1, *(1,) * (z.ndim - 2)) if several else weight.reshape(())
        return slope * z + (1 - slope) * F.softplus(z, beta)

    return _dispatched(prelu, z, value, inplace, weight, beta=beta)


def hardtanh(z: Tensor, min_val: float, max_val: float, *, beta: float, inplace: bool = False) -> Tensor:
    """A clamp between two bounds, smoothed at both."""

    def value(z: Tensor) -> Tensor:
        low, high = min_val, max_val
        if math.isinf(high):
            return low + F.softplus(z - low, beta)
        if math.isinf(low):
            return high - F.softplus(high - z, beta)
        return low + F.softplus(z - low, beta) - F.softplus(z - high, beta)

    return _dispatched(hardtanh, z, value, inplace, min_val, max_val, beta=beta)


def relu6(z: Tensor, *, beta: float, inplace: bool = False) -> Tensor:
    """ReLU6, smoothed at both bounds."""

    def value(z: Tensor) -> Tensor:
        return F.softplus(z, beta) - F.softplus(z - 6, beta)

    return _dispatched(relu6, z, value, inplace, beta=beta)


_SMOOTH: dict[str, Any] = {"relu": relu, "leaky_relu": leaky_relu, "prelu": prelu, "hardtanh": hardtanh, "relu6": relu6}


def schedule(beta: float | tuple[float, float] | None, step: int, n_steps: int) -> float | None:
    """beta at a step: a pair (first, last) grows geometrically (Dombrowski et al. 2019), a number stays.

    Raises:
        InputError: a beta that is not positive.
    """
    if beta is None:
        return None
    first, last = beta if isinstance(beta, tuple) else (beta, beta)
    if not (0 < first < math.inf and 0 < last < math.inf):
        raise InputError(f"beta of softplus is positive and finite, got {beta}")
    fraction = step / (n_steps - 1) if n_steps > 1 else 1.0
    return first * (last / first) ** fraction


__all__ = ["Smoothed", "is_kinked", "schedule"]
