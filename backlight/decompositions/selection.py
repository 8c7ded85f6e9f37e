"""Codes of which a few are on: the places that are kept, their values, and what they add up to.

With k of K latents on in a row, decoding and three of the four products of the backward pass cost k / K of what they
cost with matrices; only the encoder, which must see all latents to choose, is a matrix product.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from backlight.shapes import Bool, Float, Int

FEW = 16  # one entry costs about as much as so many of a matrix product
MARGIN = 0.9  # of the guess: what a batch keeps is looked for among values above it, where enough are


@dataclass(frozen=True)
class Places:
    """Entries of a matrix `[n, K]`, row by row, and in a row by column. `starts`: where each row begins."""

    rows: Int[Tensor, "e"]
    columns: Int[Tensor, "e"]
    starts: Int[Tensor, "n"]
    width: int


def largest_of_rows(values: Float[Tensor, "n K"], k: int) -> Places:
    """The k largest of each row."""
    columns = values.topk(k, dim=1, sorted=False).indices.sort(1).values
    starts = torch.arange(0, columns.numel(), k, device=values.device)
    rows = torch.arange(len(values), device=values.device).repeat_interleave(k)
    return Places(rows, columns.flatten(), starts, values.shape[1])


def largest_of_all(values: Float[Tensor, "n K"], count: int, guess: float = 0.0) -> Places:
    """The `count` largest entries that are positive, whatever rows they are in; fewer where fewer are.

    `guess`: about how large the smallest of them is. It saves time, and changes nothing but which of equals are kept.
    """
    flat = values.flatten()
    found = (flat > MARGIN * guess).nonzero().flatten()
    if len(found) < count and guess > 0:
        found = (flat > 0).nonzero().flatten()
    if len(found) > count:
        found = found[flat[found].topk(count, sorted=False).indices].sort().values
    rows = torch.div(found, values.shape[1], rounding_mode="floor")
    return Places(rows, found - rows * values.shape[1], _starts(rows, len(values)), values.shape[1])


def positive(values: Float[Tensor, "n K"]) -> tuple[Float[Tensor, "n K"], Float[Tensor, "K"]]:
    """1 where values are above 0, and how often that is in each column; numbers, which multiply faster than truths."""
    on = values.clone().gt_(0)
    return on, on.sum(0, dtype=torch.float32)


def where_true(mask: Tensor) -> Places:
    """The entries of a mask `[n, K]`."""
    found = mask.flatten().nonzero().flatten()
    rows = torch.div(found, mask.shape[1], rounding_mode="floor")
    return Places(rows, found - rows * mask.shape[1], _starts(rows, len(mask)), mask.shape[1])


def few(counts: Float[Tensor, "K"], rows: int) -> bool:
    """Whether so few entries are on that working on them alone is faster than with matrices."""
    return float(counts.sum()) * FEW <= rows * len(counts)


def largest(values: Float[Tensor, "n K"], k: int) -> Bool[Tensor, "n K"]:
    """Which entries are among the k largest of their row."""
    return torch.zeros_like(values, dtype=torch.bool).scatter(1, values.topk(k, dim=1).indices, True)


def combine(places: Places, values: Float[Tensor, "e"], modes: Float[Tensor, "K C"]) -> Float[Tensor, "n C"]:
    """z @ modes, of the entries of z that are kept."""
    return F.embedding_bag(places.columns, modes, places.starts, mode="sum", per_sample_weights=values)


def combine_groups(
    places: Places, values: Float[Tensor, "e"], modes: Float[Tensor, "K C"], ends: Int[Tensor, "G"]
) -> Float[Tensor, "n G C"]:
    """The same for each group of columns alone: those before `ends[0]`, from there to before `ends[1]`, and so on."""
    group = torch.bucketize(places.columns, ends, right=True)
    bags = len(places.starts) * len(ends)
    starts = _starts(places.rows * len(ends) + group, bags)
    found = F.embedding_bag(places.columns, modes, starts, mode="sum", per_sample_weights=values)
    return found.unflatten(0, (-1, len(ends)))


def values_at(
    places: Places,
    before: Float[Tensor, "n K"],
    centred: Float[Tensor, "n C"],
    encoder: Float[Tensor, "K C"],
    bias: Float[Tensor, "K"],
    offset: Float[Tensor, "C"] | None,
) -> Float[Tensor, "e"]:
    """`before` at places, differentiable in the encoder's tensors; `centred` is x - offset, without a gradient."""
    return _Values.apply(before[places.rows, places.columns].to(encoder.dtype), places, centred, encoder, bias, offset)


def masked(
    before: Float[Tensor, "n K"],
    on: Float[Tensor, "n K"],
    centred: Float[Tensor, "n C"],
    encoder: Float[Tensor, "K C"],
    bias: Float[Tensor, "K"],
    offset: Float[Tensor, "C"] | None,
) -> Float[Tensor, "n K"]:
    """`before` where it is on, else 0, differentiable likewise, once: for codes that are not sparse.

    `before` is overwritten, and `on` in the backward pass: for matrices of this size, new memory costs most.

    The gradient of b is -W^T of the bias's, where W (x - b) would cost a product `[n, K] [K, C]` more.
    """
    return _Masked.apply(before.mul_(on), on, centred, encoder, bias, offset)


def encoder_gradients(
    gradient: Float[Tensor, "n K"], centred: Float[Tensor, "n C"], encoder: Float[Tensor, "K C"], has_offset: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Of W, c and b, by the gradient of W (x - b) + c; in bfloat16 where that is, as under autocast."""
    of_encoder = (gradient.T @ centred.to(gradient)).to(encoder)
    of_bias = gradient.sum(0, dtype=encoder.dtype)
    return of_encoder, of_bias, -(of_bias @ encoder) if has_offset else None


class _Values(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, values: Tensor, places: Places, centred: Tensor, encoder: Tensor, bias: Tensor, offset: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(places.rows, places.columns, centred, encoder)
        ctx.has_offset = offset is not None
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        rows, columns, centred, encoder = ctx.saved_tensors
        order = columns.argsort(stable=True)
        starts, weights = _starts(columns, len(encoder)), gradient[order]
        of_encoder = F.embedding_bag(rows[order], centred, starts, mode="sum", per_sample_weights=weights)
        of_bias = torch.zeros_like(encoder[:, 0]).index_add_(0, columns, gradient)
        return None, None, None, of_encoder, of_bias, -(of_bias @ encoder) if ctx.has_offset else None


class _Masked(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, z: Tensor, on: Tensor, centred: Tensor, encoder: Tensor, bias: Tensor, offset: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(on, centred, encoder)
        ctx.has_offset = offset is not None
        return z.view_as(z)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        on, centred, encoder = ctx.saved_tensors
        return None, None, None, *encoder_gradients(on.mul_(gradient), centred, encoder, ctx.has_offset)


def _starts(sorted_or_not: Int[Tensor, "e"], bags: int) -> Int[Tensor, "bags"]:
    """Where each bag begins, once entries are in the order of their bags."""
    counts = torch.bincount(sorted_or_not, minlength=bags)
    return counts.cumsum(0) - counts
