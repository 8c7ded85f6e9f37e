"""Rules as data.

A *rule* answers one operation: it is called with the intercepted `Call` and returns the operation's own forward value,
bit for bit, with another vector-Jacobian product. A `RuleSet` maps operations to rules; a `Run` applies it.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from backlight.engine.adjoint import VectorJacobianProduct, hold, replace_adjoint
from backlight.engine.operations import PRODUCTS
from backlight.engine.structures import mapped

if TYPE_CHECKING:
    from backlight.engine.run import Run


class Rule(Protocol):
    """Answers a call with the operation's own value and another vector-Jacobian product, or with NotImplemented.

    The latter leaves the call to autograd, if that is exact (affine, structural), and to `strict` otherwise.
    """

    def __call__(self, call: Call) -> Any: ...


@dataclass(frozen=True)
class RuleSet:
    """Which rule answers for which operation.

    `rules`: by operation name. `modules`: by the name of a module class, for gates that are written by hand inside a
    module. `layers`: another rule set for layers whose dotted name matches a pattern (`layer4`, `*.mlp.*`), the last
    match wins. `lenient`: whatever has no rule is left to autograd knowingly (the rule set of the plain gradient).
    `whole`: the rules know what calls before them gave, so that no part of a pass can be computed by itself.
    """

    name: str
    rules: Mapping[str, Rule] = field(default_factory=dict)
    modules: Mapping[str, Rule] = field(default_factory=dict)
    layers: Mapping[str, RuleSet] = field(default_factory=dict)
    lenient: bool = False
    whole: bool = False

    def override(self, layers: Mapping[str, RuleSet]) -> RuleSet:
        """The same rule set, with other rules in the layers whose names match the patterns."""
        return replace(self, layers={**self.layers, **layers})

    def at(self, layer: str) -> RuleSet:
        """The rule set in force in a layer."""
        chosen = self
        for pattern, rules in self.layers.items():
            if matches(pattern, layer):
                chosen = rules
        return chosen


GRADIENT = RuleSet("gradient", lenient=True)


def matches(pattern: str, layer: str) -> bool:
    """Whether a layer, or a module that it is part of, has a name that matches the pattern."""
    parts = layer.split(".")
    return any(fnmatch.fnmatchcase(".".join(parts[:n]), pattern) for n in range(1, len(parts) + 1))


@dataclass
class Mark:
    """What a tensor is, beside its numbers: a gate, an attention's weights, another's mean, a constant, the input.

    `source`: what the gate or mean was computed from; for weights, others to use in the backward pass, or None; for the
    model's input, or what was made of it by moving and rescaling entries, what moves alone would have made of it.
    """

    kind: str
    source: Tensor | None = None


@dataclass
class Call:
    """One call of a torch function inside the model, out of place, parameters frozen."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    operation: str
    layer: str
    run: Run

    @property
    def input(self) -> Tensor:
        """The first argument."""
        return self.args[0] if self.args else self.kwargs["input"]

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        """An argument by position or by name."""
        if position < len(self.args):
            return self.args[position]
        return self.kwargs.get(name, default)

    def original(self) -> Any:
        """The call as the model made it, with autograd's own vector-Jacobian product."""
        if self.run.phase.differentiable and self.operation in ("attention", "multihead_attention"):
            with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no second derivative
                return self.function(*self.args, **self.kwargs)
        return self.function(*self.args, **self.kwargs)

    def on(self, z: Tensor) -> Any:
        """The call with another first argument."""
        if self.args:
            return self.function(z, *self.args[1:], **self.kwargs)
        return self.function(**{**self.kwargs, "input": z})

    def replaced(self, tensors: Mapping[int, Tensor]) -> Any:
        """The call with other tensors in place of some of its own, which are known by id."""
        args, kwargs = mapped((self.args, self.kwargs), Tensor, lambda x: tensors.get(id(x), x))
        return self.function(*args, **kwargs)

    def adjoint(self, vjp: VectorJacobianProduct, keep: str = "z") -> Any:
        """The call's value, with `vjp(z, y, cotangent)` as its vector-Jacobian product in the first argument z."""
        return replace_adjoint(self.input, self.on, vjp, keep, self.run.phase)

    def hold(self, x: Tensor) -> Tensor:
        """x without a cotangent: a statistic, a gate, a weight."""
        return hold(x, self.run.phase)

    def signals(self) -> list[Tensor]:
        """The factors of a product that the explanation is differentiated through; none for other operations."""
        operation = self.operation
        if operation in ("linear", "conv", "conv_transpose") or operation in PRODUCTS:
            factors = {"einsum": self.args[1:], "addmm": self.args[1:3]}.get(operation, self.args[:2])
            if len(factors) == 1 and isinstance(factors[0], (tuple, list)):  # einsum(equation, [a, b])
                factors = tuple(factors[0])
            factors = (*factors, *(self.kwargs[key] for key in ("other", "weight") if key in self.kwargs))
            return [value for value in factors if needs_gradient(value)]
        return []


def needs_gradient(value: Any) -> bool:
    """Whether something is a tensor that the explanation is differentiated through."""
    return isinstance(value, Tensor) and value.requires_grad
