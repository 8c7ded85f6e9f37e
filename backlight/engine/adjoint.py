"""The one autograd function: the forward value of the original call, the vector-Jacobian product of a rule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

# (input z, output y, cotangent of y) -> cotangent of z
VectorJacobianProduct = Callable[[Any, Any, Tensor], Tensor]


class _Adjoint(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, compute: Callable[[Tensor], Any], vjp: VectorJacobianProduct, keep: str) -> Any:
        result = compute(z)
        y = result[0] if isinstance(result, tuple) else result
        ctx.vjp = vjp
        ctx.save_for_backward(z if "z" in keep else None, y if "y" in keep else None)
        ctx.set_materialize_grads(False)
        if isinstance(result, tuple):  # max-pooling with indices
            ctx.mark_non_differentiable(*(part for part in result[1:] if isinstance(part, Tensor)))
        return result

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor | None, *_: Any) -> tuple[Tensor | None, None, None, None]:
        if cotangent is None:
            return None, None, None, None
        z, y = ctx.saved_tensors
        return ctx.vjp(z, y, cotangent), None, None, None


def replace_adjoint(z: Tensor, compute: Callable[[Tensor], Any], vjp: VectorJacobianProduct, keep: str = "z") -> Any:
    """`compute(z)`, bit for bit, whose backward pass is `vjp(z, y, cotangent)`.

    `keep` names what vjp is given: "z", "zy", or "" for a product that depends on neither; the rest is None, and takes
    no memory. vjp is written in differentiable torch operations, so that second derivatives exist.
    """
    return _Adjoint.apply(z, compute, vjp, keep)


def alias(x: Tensor) -> Tensor:
    """Another tensor on the same memory with the same strides (`view_as` would change those of axes of size 1)."""
    return x[...]
