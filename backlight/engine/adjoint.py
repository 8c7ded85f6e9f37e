"""The one autograd function: the forward value of the original call, the vector-Jacobian product of a rule.

An explanation E(x) that is differentiated itself (`create_graph=True`) is a function of x through the cotangents and
through everything that gates, statistics and weights were computed from. While the explanation is computed, a call's
backward pass is the rule's. When E is differentiated afterwards, the same node stands for how z depends on x, and its
backward pass has to be the operation's true one. A `Phase` says which of the two is under way.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# (input z, output y, cotangent of y, held tensors) -> cotangent of z
VectorJacobianProduct = Callable[..., Tensor]


@dataclass
class Phase:
    """`differentiable`: whether the explanation will be differentiated. `explaining`: whether it is being computed."""

    differentiable: bool = False
    explaining: bool = True


class _Adjoint(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        z: Tensor,
        compute: Callable[..., Any],
        vjp: VectorJacobianProduct,
        keep: str,
        phase: Phase,
        *held: Any,
    ) -> Any:
        result = compute(z, *held)
        y = result[0] if isinstance(result, tuple) else result
        ctx.vjp, ctx.phase = vjp, phase
        ctx.compute = compute if phase.differentiable else None  # it may hold z, which has to go where it is not kept
        ctx.save_for_backward(z if "z" in keep or phase.differentiable else None, y if "y" in keep else None, *held)
        ctx.set_materialize_grads(False)
        if isinstance(result, tuple):  # max-pooling with indices
            ctx.mark_non_differentiable(*(part for part in result[1:] if isinstance(part, Tensor)))
        return result

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        z, y, *held = ctx.saved_tensors
        if cotangent is None:
            return (None,) * (5 + len(held))
        if ctx.phase.explaining:
            return ctx.vjp(z, y, cotangent, *held), *(None,) * (4 + len(held))
        first, *others = true_gradients(ctx.compute, (z, *held), cotangent)
        return first, None, None, None, None, *others


def true_gradients(compute: Callable[..., Any], inputs: tuple[Tensor, ...], cotangent: Tensor) -> tuple[Any, ...]:
    """The operation's own vector-Jacobian products in its inputs, computed from their values."""
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        leaves = inputs if again else tuple(x.detach().requires_grad_(x.is_floating_point()) for x in inputs)
        result = compute(*leaves)
        y = result[0] if isinstance(result, tuple) else result
        wanted = [x for x in leaves if x.requires_grad]
        found = iter(torch.autograd.grad(y, wanted, cotangent, create_graph=again, allow_unused=True))
    return tuple(next(found) if x.requires_grad else None for x in leaves)


class _Hold(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, phase: Phase) -> Tensor:
        ctx.phase = phase
        return alias(x)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, None]:
        return (None if ctx.phase.explaining else cotangent), None


def replace_adjoint(
    z: Tensor,
    compute: Callable[..., Any],
    vjp: VectorJacobianProduct,
    keep: str = "z",
    phase: Phase | None = None,
    held: tuple[Tensor, ...] = (),
) -> Any:
    """`compute(z, *held)`, bit for bit, whose backward pass is `vjp(z, y, cotangent, *held)`.

    `keep` names what vjp is given: "z", "zy", or "" for a product that depends on neither; the rest is None, and takes
    no memory. `held`: other tensors that value and product depend on; they get no cotangent. vjp is written in
    differentiable torch operations, so that second derivatives exist.
    """
    return _Adjoint.apply(z, compute, vjp, keep, phase or Phase(), *held)


def hold(x: Tensor, phase: Phase) -> Tensor:
    """x, held: it gets no cotangent, but an explanation that depends on it can be differentiated."""
    return _Hold.apply(x, phase) if phase.differentiable else x.detach()


def alias(x: Tensor) -> Tensor:
    """Another tensor on the same memory with the same strides (`view_as` would change those of axes of size 1)."""
    return x[...]
