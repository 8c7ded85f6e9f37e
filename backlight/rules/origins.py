"""What tensors are made of, on which grid of positions they lie, and what calls do to it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from backlight.engine.operations import STRUCTURAL
from backlight.engine.rules import Call, needs_gradient
from backlight.rules.affine import space
from backlight.rules.windows import Layer, Pool

SAME = frozenset("dropout contiguous clone alias requires_grad".split())  # the result is the input
_MOVES = frozenset(
    "pad constant_pad_nd getitem narrow index_select interpolate upsample repeat tile pixel_shuffle "
    "pixel_unshuffle".split()
)
_TURNS = frozenset("flip fliplr flipud roll rot90".split())
_AXES = frozenset(  # which axes there are, and in which order, depends on no size
    "transpose permute t T mT H mH swapaxes swapdims movedim moveaxis sum mean nanmean nansum amax amin".split()
)
_MIXED = frozenset(  # positions with each other, or with channels
    "linear conv_transpose cumsum diff trace einsum matmul addmm sort topk kthvalue median gather take take_along_dim "
    "scatter scatter_add index_add index_copy index_put fold unfold tril triu diagonal diag diag_embed".split()
)


@dataclass(frozen=True)
class Origin:
    """What a tensor is made of: the nodes before it, and, where it is just that, a layer's value or a pool's.

    `windowed`: a layer with a window lies between. `left`: the layer where the theory was left. `total`: of a node that
    is a sum or concatenation, the sum before it became one. `held`: the nodes before its gates.
    """

    parents: frozenset[int]
    node: int | None = None
    windowed: bool = False
    layer: tuple[Tensor, Layer, Callable[[Tensor], Tensor]] | None = None
    pool: tuple[Tensor, Pool] | None = None
    left: str | None = None
    total: Tensor | None = None
    held: frozenset[int] = frozenset()
    bases: tuple[Any, ...] = ()  # of a stencil


def positions(value: Any) -> bool:
    """Whether something has PFVs: `[N, C, *space]` with more than one position."""
    return isinstance(value, Tensor) and value.ndim >= 3 and value.shape[2:].numel() > 1


def moved(call: Call, result: Any) -> bool:
    """Whether a call moves positions: its result is on another grid, or turned."""
    if call.operation in _TURNS:
        return True
    return call.operation in _MOVES and positions(result) and space(result) != space(call.input)


def keeps_positions(call: Call, result: Any, rank: int) -> bool:
    """Whether a call leaves the last `rank` axes, those of the positions, in their places; otherwise they are mixed."""
    value = result[0] if isinstance(result, (tuple, list)) else result
    x = call.input[0] if isinstance(call.input, (tuple, list)) else call.input
    if not positions(value) or call.operation in _MIXED:
        return not positions(value)
    if call.operation not in _AXES:
        views = call.operation in STRUCTURAL and value.ndim != x.ndim and call.operation not in ("stack", "unbind")
        return value.shape[-rank:] == x.shape[-rank:] and (not views or len(value) == len(x))
    sizes = (2, 3, 5, 7, 11, 13, 17)[: x.ndim]
    with torch.no_grad():
        found = call.on(x.new_zeros(sizes))
    return found.ndim >= rank + 2 and tuple(found.shape[-rank:]) == sizes[-rank:]


def signals_of(call: Call) -> list[Tensor]:
    found: list[Tensor] = []
    for value in (*call.args, *call.kwargs.values()):
        found += [x for x in (value if isinstance(value, (tuple, list)) else [value]) if needs_gradient(x)]
    return found


def value_on(call: Call, x: Tensor) -> Tensor:
    with torch.no_grad():
        return call.on(x)
