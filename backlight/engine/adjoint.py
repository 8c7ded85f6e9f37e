"""The one autograd function: the forward value of the original call, the vector-Jacobian product of a rule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

# (input z, output y, cotangent of y) -> cotangent of z; y is None unless it was asked for
VectorJacobianProduct = Callable[[Tensor, Any, Tensor], Tensor]


class _Adjoint(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, compute: Callable[[Tensor], Any], vjp: VectorJacobianProduct, keep: bool) -> Any:
        result = compute(z)
        y = result[0] if isinstance(result, tuple) else result
        ctx.vjp = vjp
        ctx.save_for_backward(z, y if keep else None)
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


def replace_adjoint(
    z: Tensor, compute: Callable[[Tensor], Any], vjp: VectorJacobianProduct, keep_output: bool = False
) -> Any:
    """`compute(z)`, bit for bit, whose backward pass is `vjp(z, y, cotangent)`.

    Only z is kept for the backward pass (and y if `keep_output`). `vjp` is written in differentiable torch operations,
    so that second derivatives exist: they go through the cotangent and through z.
    """
    return _Adjoint.apply(z, compute, vjp, keep_output)
