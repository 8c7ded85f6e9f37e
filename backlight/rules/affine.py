"""Calls of affine layers, read as `Layer` and `Pool`; and what a layer with its share of the bias sends back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from backlight.engine.rules import Call
from backlight.rules.windows import Layer, Pool, Window, safe_ratio
from backlight.shapes import Float


def space(x: Tensor) -> tuple[int, ...]:
    """The sizes of the axes of positions of `[N, C, *space]`."""
    return tuple(x.shape[2:])


def tuple_of(value: Any, rank: int) -> tuple[int, ...]:
    """One number an axis, of a number or of a list of one or of `rank` numbers."""
    if isinstance(value, Sequence):
        return tuple(value) * (rank if len(value) == 1 else 1)
    return (value,) * rank


def read_convolution(call: Call, y: Tensor) -> Layer:
    """The layer of a `conv1d`, `conv2d` or `conv3d` call whose result is y."""
    weight, bias = call.argument(1, "weight"), call.argument(2, "bias")
    rank = weight.ndim - 2
    kernel = tuple(weight.shape[2:])
    stride, dilation = (tuple_of(call.argument(n, name, 1), rank) for n, name in ((3, "stride"), (5, "dilation")))
    given = call.argument(4, "padding", 0)
    if given == "same":
        totals = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        padding = tuple((total // 2, total - total // 2) for total in totals)
    else:
        padding = tuple((p, p) for p in tuple_of(0 if given == "valid" else given, rank))
    window = Window(kernel, stride, dilation, padding)
    return Layer(window, space(y), weight, call.argument(6, "groups", 1), constant=bias)


def read_average(call: Call, y: Tensor) -> Layer | None:
    """The layer of an `avg_pool` or `adaptive_avg_pool` call whose result is y; None where windows differ in size."""
    x = call.input
    rank = x.ndim - 2
    if "adaptive" in call.function.__name__:
        window = _adaptive(x, space(y))
        return None if window is None else Layer(window, space(y), factor=1 / window.taps)
    kernel = tuple_of(call.argument(1, "kernel_size"), rank)
    stride = tuple_of(call.argument(2, "stride") or kernel, rank)
    padding = tuple((p, p) for p in tuple_of(call.argument(3, "padding", 0), rank))
    window = Window(kernel, stride, (1,) * rank, padding)
    ones = torch.ones(1, 1, *space(x), dtype=x.dtype, device=x.device)
    reached = torch.cat(list(window.pieces(ones, space(y))), 1).sum(1)
    with torch._C.DisableTorchFunction():
        mean = call.on(ones.expand(1, x.shape[1], *space(x)))[:, 0]
    return Layer(window, space(y), factor=safe_ratio(mean, reached)[0])


def max_pooled(call: Call, x: Tensor) -> tuple[Tensor, Pool] | None:
    """(the pooled map, the pool) of a max-pool call on x; None where windows differ in size, or have three axes."""
    rank = x.ndim - 2
    if rank > 2:
        return None
    ceil = False
    if "adaptive" in call.function.__name__:
        window = _adaptive(x, tuple_of(call.argument(1, "output_size"), rank))
        if window is None:
            return None
    else:
        kernel = tuple_of(call.argument(1, "kernel_size"), rank)
        stride = tuple_of(call.argument(2, "stride") or kernel, rank)
        padding = tuple((p, p) for p in tuple_of(call.argument(3, "padding", 0), rank))
        window = Window(kernel, stride, tuple_of(call.argument(4, "dilation", 1), rank), padding)
        ceil = bool(call.argument(5, "ceil_mode", False))
    pool = F.max_pool1d if rank == 1 else F.max_pool2d
    around = [before for before, _ in window.padding]
    y, winners = pool(x, window.kernel, window.stride, around, window.dilation, ceil, return_indices=True)
    return y, Pool.won(window, space(x), winners)


def _adaptive(x: Tensor, out: tuple[int | None, ...]) -> Window | None:
    wanted = [n if m is None else m for n, m in zip(space(x), out, strict=True)]
    if any(n % m for n, m in zip(space(x), wanted, strict=True)):
        return None
    kernel = tuple(n // m for n, m in zip(space(x), wanted, strict=True))
    return Window(kernel, kernel, (1,) * len(kernel), ((0, 0),) * len(kernel))


def layer_cotangent(layer: Layer, x: Tensor, g: Tensor, bias: str) -> Tensor:
    """What the source x of a layer receives: the weights' part, and its share of <constant, g> (`drop`: none)."""
    back = _weights_part(layer, x, g)
    if layer.constant is None or bias == "drop":
        return back
    amounts = channel_sum(g, layer.constant)
    if not (layer.window.pointwise and layer.pool is None):
        amounts = layer.scatter(layer.shared(x, amounts, bias == "uniform"), space(x))
    return with_share(back, x, amounts)


def channel_sum(
    x: Float[Tensor, "N D *space"], weights: Float[Tensor, "D"] | None = None
) -> Float[Tensor, "N 1 *space"]:
    """sum_k w_k x_k at every position; by a matrix product, which is several times faster than a sum over an axis."""
    if torch.is_autocast_enabled(x.device.type):  # it would make the product one of half precision
        return (x if weights is None else x * weights.reshape(-1, *(1,) * len(space(x)))).sum(1, keepdim=True)
    row = x.new_ones(x.shape[1]) if weights is None else weights.to(x.dtype)
    return (row @ x.flatten(2)).unflatten(1, space(x))[:, None]


def inner(a: Float[Tensor, "N C *space"], b: Float[Tensor, "N C *#space"]) -> Float[Tensor, "N 1 *space"]:
    """<a_i, b_i> at every position, in single precision at least: half overflows."""
    wide = torch.promote_types(a.dtype, torch.float32)
    return channel_sum(a.to(wide) * b.to(wide))


def with_share(back: Tensor, x: Tensor, amounts: Tensor) -> Tensor:
    """back + x rho / <x, x>: the cotangent with which position i also has the relevance rho_i."""
    share = safe_ratio(amounts, inner(x, x)).to(x.dtype)
    return torch.addcmul(back.to(x.dtype), x, share)


def _weights_part(layer: Layer, x: Tensor, g: Tensor) -> Tensor:
    """The vector-Jacobian product of the layer without its biases."""
    assert layer.weight is not None
    weight = layer.weight.to(g.dtype)
    if layer.scale is not None:  # whichever is smaller is scaled
        scale = layer.scale.to(g.dtype)
        if weight.numel() < g.numel():
            weight = weight * scale.reshape(-1, *(1,) * (weight.ndim - 1))
        else:
            g = g * scale.reshape(-1, *(1,) * len(space(g)))
    w, size = layer.window, layer.pool.out if layer.pool else space(x)
    even = all(a == b for a, b in w.padding)
    pads = [p for pair in reversed(w.padding) for p in pair]
    whole = size if even else tuple(n + sum(pair) for n, pair in zip(size, w.padding, strict=True))
    like = x if whole == space(x) else x.new_empty(len(x), x.shape[1], *whole)
    padding = [before if even else 0 for before, _ in w.padding]
    back: Tensor = torch.ops.aten.convolution_backward(
        g, like.to(g.dtype), weight, None, w.stride, padding, w.dilation, False, [0] * len(size),
        layer.groups, [True, False, False],
    )[0]  # fmt: skip
    back = back if even else F.pad(back, [-p for p in pads])
    if layer.pool is None:
        return back
    assert layer.pool.winners is not None
    flat = back.new_zeros(*x.shape[:2], math.prod(space(x)))
    return flat.scatter_add(2, layer.pool.winners.flatten(2), back.flatten(2)).view_as(x)
