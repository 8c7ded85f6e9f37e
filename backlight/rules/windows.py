"""Affine layers taken apart: what each source position sends to each target position.

A convolution or an average, with the BatchNorm after it folded in: at the target position j each tap h of its window
reads one source position i and sends u_h(j) = W_h a_i. Where the input of the layer was max-pooled, the sources are the
positions before the pool, and the places q of the pool's window count like taps: u_qh(j) = W_h (a_i where place q won).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from backlight.errors import InputError
from backlight.shapes import Float, Int

_CHUNK = 2**22  # how many numbers of u are computed at once


def safe_sqrt(squares: Tensor) -> Tensor:
    """The square root, with derivative 0 at 0."""
    positive = squares > 0
    return torch.where(positive, squares, 1).sqrt() * positive


def safe_ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """numerator / denominator, and 0 where the denominator is 0."""
    zero = denominator == 0
    return (numerator / torch.where(zero, 1, denominator)).masked_fill(zero, 0)


@dataclass(frozen=True)
class Window:
    """A sliding window; `padding` is (before, after) for each axis. Taps are counted in the order of the kernel."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]

    @property
    def taps(self) -> int:
        return math.prod(self.kernel)

    @property
    def pointwise(self) -> bool:
        """Whether each target position reads the source position of the same place, and no other."""
        return self.taps == 1 and set(self.stride) == {1} and not any(map(any, self.padding))

    def pieces(self, x: Float[Tensor, "N C *space"], out: tuple[int, ...]) -> Iterator[Float[Tensor, "N C *out"]]:
        """What each tap reads, at all target positions; zeros outside."""
        x = self._padded(x, out)
        for tap in product(*map(range, self.kernel)):
            yield self._read(x, tap, out)

    def aligned(self, values: Float[Tensor, "N T *space"], out: tuple[int, ...]) -> Float[Tensor, "N T *out"]:
        """Of maps at the source positions, one a tap: what each tap reads of its own map."""
        values = self._padded(values, out)
        taps = product(*map(range, self.kernel))
        return torch.stack([self._read(values[:, t], tap, out) for t, tap in enumerate(taps)], 1)

    def scatter(self, values: Float[Tensor, "N T *out"], size: tuple[int, ...]) -> Float[Tensor, "N 1 *size"]:
        """The adjoint of `pieces` for maps of one channel: each tap's value goes back to where the tap reads."""
        axes = [(b, z, n, k, s, d) for (b, _), z, n, k, s, d in self._axes(size, tuple(values.shape[2:]))]
        if len(size) == 1:  # fold knows planes only
            axes = [(0, 1, 1, 1, 1, 1), *axes]
        canvas = [(n - 1) * s + (k - 1) * d + 1 for _, _, n, k, s, d in axes]
        if len(axes) > 2:
            raise InputError("sharing ratios are shared over one or two axes of positions, not over three")
        kernel, stride, dilation = (tuple(axis[n] for axis in axes) for n in (3, 4, 5))
        folded = F.fold(values.flatten(2), tuple(canvas), kernel, dilation, 0, stride)
        pads: list[int] = []
        for (before, whole, *_), given in zip(axes, canvas, strict=True):
            pads = [0, max(0, before + whole - given), *pads]
        folded = F.pad(folded, pads) if any(pads) else folded
        cuts: Any = (slice(before, before + whole) for before, whole, *_ in axes)
        folded = folded[(..., *cuts)]
        return folded.squeeze(2) if len(size) == 1 else folded

    def _axes(self, size: tuple[int, ...], out: tuple[int, ...]) -> Iterator[tuple]:
        return zip(self.padding, size, out, self.kernel, self.stride, self.dilation, strict=True)

    def _padded(self, x: Tensor, out: tuple[int, ...]) -> Tensor:
        pads: list[int] = []
        for (before, _), size, n, k, s, d in self._axes(tuple(x.shape[-len(out) :]), out):
            pads = [before, max(0, (n - 1) * s + (k - 1) * d + 1 - before - size), *pads]
        return F.pad(x, pads) if any(pads) else x

    def _read(self, x: Tensor, tap: tuple[int, ...], out: tuple[int, ...]) -> Tensor:
        starts = (t * d for t, d in zip(tap, self.dilation, strict=True))
        cuts: Any = (slice(a, a + (n - 1) * s + 1, s) for a, n, s in zip(starts, out, self.stride, strict=True))
        return x[(..., *cuts)]


@dataclass(frozen=True)
class Pool:
    """A max-pool before a layer: its window, the size of the pooled map, and what won there.

    `winners`: the flat source position of each maximum; `places`: its place in the window; None where only the geometry
    matters.
    """

    window: Window
    out: tuple[int, ...]
    winners: Int[Tensor, "N C *out"] | None = None
    places: Int[Tensor, "N C *out"] | None = None

    @classmethod
    def won(cls, window: Window, size: tuple[int, ...], winners: Int[Tensor, "N C *out"]) -> Pool:
        """Of the flat source positions that a pooling of maps of this size gives."""
        out = tuple(winners.shape[2:])
        rest, places, unit = winners, torch.zeros_like(winners), 1
        for axis in reversed(range(len(size))):
            target = torch.arange(out[axis], device=winners.device).reshape(-1, *(1,) * (len(size) - 1 - axis))
            offset = rest % size[axis] + window.padding[axis][0] - target * window.stride[axis]
            places = places + offset // window.dilation[axis] * unit
            unit, rest = unit * window.kernel[axis], rest // size[axis]
        return cls(window, out, winners, places)

    def pooled(self, x: Tensor) -> Tensor:
        """The pooled map of x: x at the winners."""
        assert self.winners is not None
        return x.flatten(2).gather(2, self.winners.flatten(2)).view_as(self.winners)


@dataclass(frozen=True)
class Layer:
    """y = scale (W * x + b) at every target position, and what its biases come to: `constant` = scale b + shift, `[D]`.

    `weight`: `[D, C / groups, *kernel]`; None for an average, each piece times `factor` (a number or `[*out]`).
    `pool`: the max-pool between the source and the window.
    """

    window: Window
    out: tuple[int, ...]
    weight: Tensor | None = None
    groups: int = 1
    scale: Tensor | None = None
    constant: Tensor | None = None
    factor: Tensor | float = 1.0
    pool: Pool | None = None

    @property
    def single(self) -> bool:
        """Whether each target position has one source position."""
        return self.window.taps == 1 and self.pool is None

    def folded(self, scale: Tensor, shift: Tensor) -> Layer:
        """The same layer with y -> scale y + shift after it, `[D]` each."""
        constant = shift if self.constant is None else self.constant * scale + shift
        return replace(self, scale=scale if self.scale is None else self.scale * scale, constant=constant)

    def sources(self, x: Tensor) -> Iterator[Tensor]:
        """The source; of a pooled one, the parts of the pooled map that each place of the pool's window won."""
        if self.pool is None:
            yield x
            return
        values = self.pool.pooled(x)
        for n in range(self.pool.window.taps):
            yield values * (self.pool.places == n)

    def norms(self, x: Tensor) -> Float[Tensor, "N T *out"]:
        """|u_h(j)| for every tap; places of the pool's window first."""
        return torch.cat([safe_sqrt(self._squares(source)) for source in self.sources(x)], 1)

    def active(self, x: Tensor) -> Float[Tensor, "N T *out"]:
        """1 where a tap reads something that is not zero."""
        maps = [(source != 0).any(1, keepdim=True).to(x.dtype) for source in self.sources(x)]
        return torch.cat([piece for one in maps for piece in self.window.pieces(one, self.out)], 1)

    def products(self, x: Tensor, q: Float[Tensor, "N D *out"]) -> Float[Tensor, "N T *out"]:
        """<u_h(j), q(j)> for every tap: <a_i, W_h^T q(j)>."""
        back = list(self._transposed(q))
        return torch.cat(
            [
                torch.stack(
                    [(piece * v).sum(1) for piece, v in zip(self.window.pieces(s, self.out), back, strict=True)], 1
                )
                for s in self.sources(x)
            ],
            1,
        )

    def shared(self, x: Tensor, amounts: Float[Tensor, "N 1 *out"], uniform: bool = False) -> Float[Tensor, "N T *out"]:
        """Amounts at target positions, divided among the taps in proportion to |u_h(j)|, or equally."""
        if self.single:
            return amounts
        portions = self.active(x) if uniform else self.norms(x)
        return portions * safe_ratio(amounts, portions.sum(1, keepdim=True))

    def scatter(self, values: Float[Tensor, "N T *out"], size: tuple[int, ...]) -> Float[Tensor, "N 1 *size"]:
        """Values of taps, brought back to the source positions."""
        if self.pool is None:
            return self.window.scatter(values, size)
        places = self.pool.window.taps
        split = values.unflatten(1, (places, -1)).flatten(0, 1)
        pooled = self.window.scatter(split, self.pool.out)
        return self.pool.window.scatter(pooled.unflatten(0, (-1, places)).squeeze(2), size)

    def gather(self, values: Float[Tensor, "N 1 *space"]) -> Float[Tensor, "N T *out"]:
        """The adjoint of `scatter`: what each tap reads of a map at the source positions."""
        if self.pool is None:
            return torch.cat(list(self.window.pieces(values, self.out)), 1)
        pooled = self.pool.window.pieces(values, self.pool.out)
        return torch.cat([piece for one in pooled for piece in self.window.pieces(one, self.out)], 1)

    def _scaled(self) -> Tensor:
        """The weight with the scale folded in, tap by tap: `[T, D, C / groups]`."""
        assert self.weight is not None
        weight = self.weight.flatten(2).permute(2, 0, 1)
        return weight if self.scale is None else weight * self.scale[:, None]

    def _squares(self, source: Tensor) -> Float[Tensor, "N T *out"]:
        """|u_h(j)|^2: it depends on the tap and the source position only."""
        taps = self.window.taps
        if self.weight is None:
            squares = source.square().sum(1, keepdim=True)
            pieces = torch.cat(list(self.window.pieces(squares, self.out)), 1)
            return pieces * torch.as_tensor(self.factor, dtype=pieces.dtype, device=pieces.device).square()
        assert self.weight is not None
        weight = self.weight.flatten(2).permute(2, 0, 1)
        gains = weight.new_ones(weight.shape[1]) if self.scale is None else self.scale.square()  # of each output
        if self.groups == source.shape[1]:  # depthwise
            squares = weight.square() * gains[:, None]
            return self._aligned(squares.reshape(taps, self.groups, -1).sum(2), source.square())
        if self.groups == 1 and 2 * source.shape[1] <= weight.shape[1]:  # fewer numbers in W_h^T W_h
            measure = partial(_quadratic_forms, weight.transpose(1, 2) @ (weight * gains[:, None]))
        else:
            measure = partial(_squared_norms, weight, gains=gains, groups=self.groups)
        if set(self.window.stride) == {1}:
            return self.window.aligned(measure(slice(None), source), self.out)
        read = enumerate(self.window.pieces(source, self.out))
        return torch.cat([measure(slice(n, n + 1), piece) for n, piece in read], 1)

    def _aligned(self, gains: Float[Tensor, "T C"], source: Tensor) -> Float[Tensor, "N T *out"]:
        sent = (gains @ source.flatten(2)).unflatten(2, source.shape[2:])
        return self.window.aligned(sent, self.out)

    def _transposed(self, q: Float[Tensor, "N D *out"]) -> Iterator[Float[Tensor, "N C *out"]]:
        """W_h^T q(j), tap by tap."""
        if self.weight is None:
            yield from [q * self.factor] * self.window.taps
            return
        grouped = q.unflatten(1, (self.groups, -1)).flatten(3)
        for one in self._scaled():
            if self.groups == len(one) and one.shape[1] == 1:  # depthwise
                yield q * one.reshape(-1, *(1,) * len(self.out))
                continue
            back = one.unflatten(0, (self.groups, -1)).transpose(1, 2) @ grouped
            yield back.flatten(1, 2).unflatten(2, q.shape[2:])


def _quadratic_forms(gram: Float[Tensor, "T C C"], taps: slice, x: Tensor) -> Float[Tensor, "N some *space"]:
    """x_i^T G_h x_i at every position, for layers that are not grouped."""
    positions = x.flatten(2)
    found = [((one @ positions) * positions).sum(1) for one in gram[taps]]
    return torch.stack(found, 1).unflatten(2, x.shape[2:])


def _squared_norms(
    weight: Float[Tensor, "T D C"], taps: slice, x: Tensor, gains: Float[Tensor, "D"], groups: int
) -> Float[Tensor, "N some *space"]:
    """sum_d gain_d (W_h x_i)_d^2 at every position, a few taps at a time."""
    positions = x.unflatten(1, (groups, -1)).flatten(3)
    step = max(1, _CHUNK // (len(x) * weight.shape[1] * positions.shape[3]))
    row = gains.to(x.dtype).reshape(groups, 1, 1, -1)
    found = []
    for some in weight[taps].split(step):  # [G, T * D / G, C / G] @ [N, G, C / G, P]
        by_group = some.unflatten(1, (groups, -1)).transpose(0, 1).flatten(1, 2)
        sent = by_group @ positions
        squares = sent.square() if torch.is_grad_enabled() else sent.square_()
        squares = squares.unflatten(2, (len(some), -1))
        if torch.is_autocast_enabled(x.device.type):  # it would make the product one of half precision
            found.append((squares * row.transpose(2, 3)).sum((1, 3)))
        else:
            found.append((row @ squares).squeeze(3).sum(1))
    return torch.cat(found, 1).unflatten(2, x.shape[2:])
