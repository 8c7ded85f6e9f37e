"""Sets of channels, and weighted ones, as weights that broadcast to what a site gives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from backlight.contributions.reduction import Layout
from backlight.errors import InputError
from backlight.shapes import Float


def set_weights(modes: Any, value: Float[Tensor, "N *site"], layout: Layout) -> list[Float[Tensor, "_ *broadcast"]]:
    """The weight of every unit in each of M sets, `[N or 1, ...]`, broadcasting to the site's value `[N, *site]`.

    Args:
        modes: channel numbers, one set; a sequence of sets, each a list of numbers or a tensor `[n]`, or `[N, n]` with
            a row a sample; weights (or booleans) `[C]`, `[M, C]`, `[M, N, C]`, such as the atoms of a dictionary; or
            weights of units, `[M, N or 1, *site]`.

    Raises:
        InputError: no set, channels that the site does not have, or weights of other shapes.
    """
    channels = layout.flattened(value).shape[1]
    if isinstance(modes, Tensor) and (modes.is_floating_point() or modes.dtype == torch.bool):
        return _of_tensor(modes, value, layout, channels)
    rows = [modes] if _is_one_set(modes) else list(modes)
    if not rows:
        raise InputError("no set of channels: give a list of numbers, or a list of such lists")
    return [_spread(_members(row, channels, len(value)).to(value), value, layout) for row in rows]


def _of_tensor(weights: Tensor, value: Tensor, layout: Layout, channels: int) -> list[Tensor]:
    weights = weights.detach().to(value)
    if weights.ndim == value.ndim + 1 and weights.shape[2:] == value.shape[1:] and weights.shape[1] in (1, len(value)):
        return list(weights)
    by_set = {1: weights[None, None], 2: weights[:, None], 3: weights}.get(weights.ndim)
    if by_set is None or by_set.shape[2] != channels or by_set.shape[1] not in (1, len(value)) or not len(by_set):
        raise InputError(
            f"expected weights [C], [M, C] or [M, N, C] of N = {len(value)} samples and C = {channels} channels, or of "
            f"units [M, N, {', '.join(map(str, value.shape[1:]))}], got {list(weights.shape)}"
        )
    return [_spread(row, value, layout) for row in by_set]


def _is_one_set(modes: Any) -> bool:
    if isinstance(modes, Tensor):
        return modes.ndim < 2
    return isinstance(modes, Sequence) and bool(modes) and all(isinstance(one, int) for one in modes)


def _members(row: Any, channels: int, samples: int) -> Tensor:
    """1 for the members of a set, `[1, C]` or `[N, C]`."""
    try:
        numbers = torch.as_tensor(row).cpu()
    except (TypeError, ValueError, RuntimeError):
        raise InputError(f"a set of channels is a list of numbers, not {row!r}") from None
    numbers = numbers.reshape(1, -1) if numbers.ndim < 2 else numbers
    whole = not numbers.is_floating_point() and numbers.dtype != torch.bool
    if not whole or numbers.ndim != 2 or not numbers.numel() or len(numbers) not in (1, samples):
        raise InputError(f"a set of channels is a list of numbers [n], or [N, n] of N = {samples} samples, got {row!r}")
    if int(numbers.min()) < 0 or int(numbers.max()) >= channels:
        raise InputError(f"channels {row!r}: the site has {channels}, numbered from 0")
    return torch.zeros(len(numbers), channels).scatter_(1, numbers.long(), 1.0)


def _spread(weights: Tensor, value: Tensor, layout: Layout) -> Tensor:
    """`[N or 1, C]` as the site has its channels."""
    if layout.kind == "maps":
        return weights.reshape(*weights.shape, *(1,) * (value.ndim - 2))
    return weights.reshape(len(weights), *(1,) * (value.ndim - 2), weights.shape[1])
