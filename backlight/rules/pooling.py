"""Max-pooling: soft routing over each window (Semantic Pullbacks, A.2, equations 13 and 14).

delta_z[i] = sum over windows W that contain i of p_i^W delta_y[W], with p^W = softmax(z_W / tau), held. Weights are
computed in the backward pass only, window offset by window offset. Padding is minus infinity: it takes no share.
Every rank, dilation, ceil_mode, return_indices, tuples, and adaptive pooling. At tau = 0 ties share equally.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor

from backlight.engine.rules import Call
from backlight.rules.temperature import Temperature, resolve


@dataclass(frozen=True)
class SlicedOffset:
    """One offset of regular windows: which input entries it meets, and in which outputs (the rest is padding)."""

    inside: tuple[Any, ...]
    outside: tuple[Any, ...]

    def read(self, z: Tensor) -> Tensor:
        """The input entries, one for each output that is met."""
        return z[self.inside]

    def at_outputs(self, y: Tensor) -> Tensor:
        """The outputs that are met."""
        return y[self.outside]

    def add(self, total: Tensor, weights: Tensor, share: Tensor) -> Tensor:
        """Add weights times shares, one for each output that is met, to the input entries."""
        total[self.inside].addcmul_(weights, share)
        return total


@dataclass(frozen=True)
class IndexedOffset:
    """One offset of windows of unequal sizes: the input index of each output along each axis, -1 for none."""

    positions: tuple[Tensor, ...]

    def read(self, z: Tensor) -> Tensor:
        """The input entries, minus infinity where there is none."""
        for axis, index in self._axes():
            shape = (-1, *(1,) * (-axis - 1))
            z = z.index_select(axis, index.clamp(min=0)).masked_fill((index < 0).reshape(shape), -torch.inf)
        return z

    def at_outputs(self, y: Tensor) -> Tensor:
        """All outputs."""
        return y

    def add(self, total: Tensor, weights: Tensor, share: Tensor) -> Tensor:
        """Add weights times shares, one for each output, to the input entries."""
        values = weights * share
        for axis, index in reversed(list(self._axes())):
            grown = values.new_zeros(*values.shape[:axis], total.shape[axis], *values.shape[values.ndim + axis + 1 :])
            values = grown.index_add(axis, index.clamp(min=0), values)
        return total + values

    def _axes(self) -> list[tuple[int, Tensor]]:
        return [(number - len(self.positions), index) for number, index in enumerate(self.positions)]


Offset = SlicedOffset | IndexedOffset


def _tuple(value: Any, rank: int) -> tuple[int, ...]:
    if isinstance(value, (tuple, list)):
        return tuple(value) * (rank if len(value) == 1 else 1)
    return () if value is None else (value,) * rank


def regular_offsets(
    sizes: tuple[int, ...],
    outputs: tuple[int, ...],
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
) -> list[Offset]:
    """The offsets of `F.max_pool{1,2,3}d`."""
    offsets: list[Offset] = []
    for offset in product(*(range(k) for k in kernel)):
        inside: list[Any] = [...]
        outside: list[Any] = [...]
        for axis, k in enumerate(offset):
            start = k * dilation[axis] - padding[axis]
            first = max(0, -(start // stride[axis]))
            last = min(outputs[axis], (sizes[axis] - 1 - start) // stride[axis] + 1)
            if first >= last:
                break
            outside.append(slice(first, last))
            inside.append(slice(first * stride[axis] + start, (last - 1) * stride[axis] + start + 1, stride[axis]))
        else:
            offsets.append(SlicedOffset(tuple(inside), tuple(outside)))
    return offsets


def adaptive_offsets(sizes: tuple[int, ...], outputs: tuple[int, ...], device: torch.device) -> list[Offset]:
    """The offsets of `F.adaptive_max_pool{1,2,3}d`: windows from floor(i n / m) to ceil((i + 1) n / m)."""
    if all(n % m == 0 for n, m in zip(sizes, outputs, strict=True)):
        kernel = tuple(n // m for n, m in zip(sizes, outputs, strict=True))
        return regular_offsets(sizes, outputs, kernel, kernel, (0,) * len(sizes), (1,) * len(sizes))
    tables = []
    for n, m in zip(sizes, outputs, strict=True):
        index = torch.arange(m, device=device)
        start, end = index * n // m, -((-(index + 1) * n) // m)
        table = start[:, None] + torch.arange(int((end - start).max()), device=device)
        tables.append(torch.where(table < end[:, None], table, -1).unbind(1))
    return [IndexedOffset(positions) for positions in product(*tables)]


def soft_routing(z: Tensor, y: Tensor, cotangent: Tensor, offsets: list[Offset], tau: Tensor | float) -> Tensor:
    """The cotangent of z under softmax routing, equation 14."""
    weigh, total = _weights(z, y, offsets, tau)
    result = torch.zeros_like(z)
    share = cotangent / total
    for offset in offsets:
        result = offset.add(result, weigh(offset), offset.at_outputs(share))
    return result


def excitation_routing(z: Tensor, y: Tensor, cotangent: Tensor, offsets: list[Offset], tau: Tensor | float) -> Tensor:
    """The gradient of soft pooling, sum p_i z_i with p not held: p_i (1 + (z_i - sum p z) / tau) (predecessor)."""
    weigh, total = _weights(z, y, offsets, tau)
    lowest = torch.finfo(z.dtype).min  # in place of minus infinity, whose weight is 0
    pooled = torch.zeros_like(y)
    for offset in offsets:  # relative to the maximum, for precision
        met = offset.at_outputs(y)
        pooled[getattr(offset, "outside", ...)] += weigh(offset) * (offset.read(z) - met).clamp(min=lowest)
    pooled = pooled / total
    result = torch.zeros_like(z)
    share = cotangent / total
    tau = _positive(tau, z)
    for offset in offsets:
        away = (offset.read(z) - offset.at_outputs(y)).clamp(min=lowest) - offset.at_outputs(pooled)
        weight = weigh(offset)
        weight = torch.where(weight > 0, weight * (1 + away / tau), weight)
        result = offset.add(result, weight, offset.at_outputs(share))
    return result


def _positive(tau: Tensor | float, z: Tensor) -> Tensor | float:
    """tau, or a number so small that the softmax is the exact limit."""
    tiny = torch.finfo(z.dtype).tiny
    return tau.clamp(min=tiny) if isinstance(tau, Tensor) else max(tau, tiny)


def _weights(
    z: Tensor, y: Tensor, offsets: list[Offset], tau: Tensor | float
) -> tuple[Callable[[Offset], Tensor], Tensor]:
    """(offset -> unnormalised softmax weights, their sum over each window)."""
    tau = _positive(tau, z)

    def weigh(offset: Offset) -> Tensor:
        away = offset.read(z) - offset.at_outputs(y)
        return (away / tau).exp() if torch.is_grad_enabled() else away.div_(tau).exp_()

    total = torch.zeros_like(y)
    remember = len(offsets) * y.numel() <= 3 * z.numel()  # time for memory, but never k^2 copies of the input
    known: dict[int, Tensor] = {}
    for offset in offsets:
        weights = weigh(offset)
        if remember:
            known[id(offset)] = weights
        total[getattr(offset, "outside", ...)] += weights
    return (lambda offset: known[id(offset)] if remember else weigh(offset)), total


@dataclass(frozen=True)
class PoolRule:
    """Soft routing at a temperature; `routing` is `soft_routing` or `excitation_routing`."""

    temperature: Temperature
    routing: Callable[..., Tensor] = soft_routing
    label: str = "soft routing"

    def __call__(self, call: Call) -> Any:
        rank = self._rank(call)

        def vjp(z: Tensor, y: Tensor, cotangent: Tensor) -> Tensor:
            sizes, outputs = tuple(z.shape[-rank:]), tuple(y.shape[-rank:])
            offsets = self._offsets(call, rank, sizes, outputs, z.device)
            tau = resolve(self.temperature, z, call.run.samples, infinite=True)
            return self.routing(z, y.detach(), cotangent, offsets, tau)

        return call.adjoint(vjp, keep="zy")

    def _rank(self, call: Call) -> int:
        digit = next(letter for letter in getattr(call.function, "__name__", "") if letter.isdigit())
        return int(digit)

    def _offsets(
        self, call: Call, rank: int, sizes: tuple[int, ...], outputs: tuple[int, ...], device: torch.device
    ) -> list[Offset]:
        if call.operation == "adaptive_max_pool":
            return adaptive_offsets(sizes, outputs, device)
        kernel = _tuple(call.argument(1, "kernel_size"), rank)
        stride = _tuple(call.argument(2, "stride"), rank) or kernel
        padding, dilation = (
            _tuple(call.argument(position, name, default), rank)
            for position, name, default in ((3, "padding", 0), (4, "dilation", 1))
        )
        return regular_offsets(sizes, outputs, kernel, stride, padding, dilation)
