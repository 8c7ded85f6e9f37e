"""Affine layers as linear maps and their adjoints, with weights that may be changed: for rules that look at weights.

Linear layers, convolutions (any rank, groups, stride, dilation, padding, transposed), and the diagonal map of a
normalisation with fixed statistics. `folded` is the layer with such a normalisation after it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from backlight.engine.rules import Call, needs_gradient

Function = Callable[[Tensor], Tensor]


def bound(call: Call) -> Function:
    """The call as a function of its first argument that knows nothing of the run, nor of that argument."""
    function, rest, named = call.function, call.args[1:], {k: v for k, v in call.kwargs.items() if k != "input"}
    return lambda z: function(z, *rest, **named)


@dataclass(frozen=True)
class AffineLayer:
    """y = W x + b; here x is `[..., C]`, y `[..., D]`. The maps take a weight: the layer's own, or parts of it."""

    weight: Tensor
    bias: Tensor | None

    axis = -1  # of the output's channels

    def apply(self, x: Tensor, weight: Tensor) -> Tensor:
        """W x."""
        return F.linear(x, weight)

    def adjoint(self, q: Tensor, weight: Tensor, x: Tensor) -> Tensor:
        """W^T q, of the shape of x."""
        return q @ weight

    def constant(self, y: Tensor) -> Tensor:
        """The bias, broadcastable to y."""
        if self.bias is None:
            return y.new_zeros(())
        return self.bias.reshape(-1, *(1,) * (-1 - self.axis))

    def to(self, dtype: torch.dtype) -> AffineLayer:
        """The layer in the precision of inputs of this type, in single precision at least."""
        wide = torch.promote_types(dtype, torch.float32)
        return replace(self, weight=self.weight.to(wide), bias=None if self.bias is None else self.bias.to(wide))

    def scaled(self, scale: Tensor) -> Tensor:
        """The weight, each output's multiplied by its scale."""
        return self.weight * scale.reshape(-1, *(1,) * (self.weight.ndim - 1))

    def folded(self, scale: Tensor, shift: Tensor) -> AffineLayer:
        """The layer with y -> scale y + shift after it, `[D]` each."""
        bias = shift if self.bias is None else self.bias * scale + shift
        return replace(self, weight=self.scaled(scale), bias=bias)

    def folds(self, y: Tensor) -> bool:
        """Whether the second axis of y, which a BatchNorm scales, is that of the channels."""
        return y.ndim + self.axis == 1

    def range_axes(self, x: Tensor) -> tuple[int, ...]:
        """The axes over which the values of one sample and channel are: inputs of linear layers are one channel."""
        return tuple(range(1, x.ndim))


@dataclass(frozen=True)
class Diagonal(AffineLayer):
    """y = w x + b channel by channel, of `[N, C, *space]`."""

    rank: int = 0

    @property
    def axis(self) -> int:  # type: ignore[override]
        return -1 - self.rank

    def apply(self, x: Tensor, weight: Tensor) -> Tensor:
        return x * weight.reshape(-1, *(1,) * self.rank)

    def adjoint(self, q: Tensor, weight: Tensor, x: Tensor) -> Tensor:
        return self.apply(q, weight)


@dataclass(frozen=True)
class Convolution(AffineLayer):
    """A convolution of `[N, C, *space]` or `[C, *space]`. `extra`: padding for `F.pad`, where sides differ."""

    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    transposed: bool = False
    output_padding: tuple[int, ...] = ()
    groups: int = 1
    extra: tuple[int, ...] = ()

    @property
    def axis(self) -> int:  # type: ignore[override]
        return 1 - self.weight.ndim

    @property
    def _settings(self) -> tuple[Any, ...]:
        return self.stride, self.padding, self.dilation, self.transposed, self.output_padding, self.groups

    def apply(self, x: Tensor, weight: Tensor) -> Tensor:
        if x.ndim < weight.ndim:
            return self.apply(x[None], weight)[0]
        return torch.convolution(self._padded(x), weight, None, *self._settings)

    def adjoint(self, q: Tensor, weight: Tensor, x: Tensor) -> Tensor:
        if x.ndim < weight.ndim:
            return self.adjoint(q[None], weight, x[None])[0]
        like = self._padded(x)
        back: Tensor = torch.ops.aten.convolution_backward(
            q, like, weight, None, *self._settings, [True, False, False]
        )[0]
        return F.pad(back, [-n for n in self.extra]) if self.extra else back

    def _padded(self, x: Tensor) -> Tensor:
        return F.pad(x, self.extra) if self.extra else x

    def scaled(self, scale: Tensor) -> Tensor:
        if not self.transposed:
            return super().scaled(scale)
        inputs, width = self.weight.shape[:2]  # of a transposed one, [C, D / groups, *kernel]
        factor = scale.reshape(self.groups, 1, width).expand(-1, inputs // self.groups, -1).reshape(inputs, width)
        return self.weight * factor.reshape(inputs, width, *(1,) * (self.weight.ndim - 2))

    def range_axes(self, x: Tensor) -> tuple[int, ...]:
        return tuple(range(self.axis + 1, 0))


def read_layer(call: Call) -> AffineLayer | None:
    """The layer of a `linear`, `conv` or `conv_transpose` call; None where it is none: a product of two signals, or
    attention weights that are mixed."""
    weight, bias = call.argument(1, "weight"), call.argument(2, "bias")
    mark = call.run.marks.get(call.input)
    if not isinstance(weight, Tensor) or needs_gradient(weight) or not needs_gradient(call.input) or weight.ndim < 2:
        return None
    if mark is not None and mark.kind == "weights":
        return None
    weight, bias = weight.detach(), None if bias is None else bias.detach()
    if call.operation == "linear":
        return AffineLayer(weight, bias)
    rank = weight.ndim - 2

    def get(position: int, name: str, default: Any) -> tuple[int, ...]:
        value = call.argument(position, name, default)
        return tuple(value) * (rank if len(value) == 1 else 1) if hasattr(value, "__len__") else (value,) * rank

    stride, zeros = get(3, "stride", 1), (0,) * rank
    if getattr(call.function, "__name__", "") == "convolution":
        settings = (get(4, "padding", 0), get(5, "dilation", 1), call.argument(6, "transposed", False))
        return Convolution(weight, bias, stride, *settings, get(7, "output_padding", 0), call.argument(8, "groups", 1))
    if call.operation == "conv_transpose":
        return Convolution(
            weight, bias, stride, get(4, "padding", 0), get(7, "dilation", 1), True, get(5, "output_padding", 0),
            call.argument(6, "groups", 1),
        )  # fmt: skip
    dilation, given, groups = get(5, "dilation", 1), call.argument(4, "padding", 0), call.argument(6, "groups", 1)
    if given == "same":
        totals = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
        extra = tuple(side for total in reversed(totals) for side in (0, total % 2))
        padding = tuple(total // 2 for total in totals)
    else:
        padding, extra = (zeros if given == "valid" else get(4, "padding", 0)), ()
    return Convolution(weight, bias, stride, padding, dilation, False, zeros, groups, extra if any(extra) else ())
