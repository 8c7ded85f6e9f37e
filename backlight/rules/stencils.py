"""Sharing ratios as numbers: what a forward pass under these rules leaves is a graph of nodes with their ratios.

Relevance has no channels, so that once the sharing ratios of a sample are known, its way through the network is a chain
of sums over maps of one channel. The ratios of a layer with a window are a *stencil*, mu_h(j) for each tap h and target
position j; those of a sum are one number a position for each summand; position-wise segments pass relevance as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from dataclasses import replace as changed
from typing import Any

import torch
from torch import Tensor

from backlight.engine.rules import Call, needs_gradient
from backlight.errors import UncoveredOperationError
from backlight.rules.affine import inner, read_average, space
from backlight.rules.origins import Origin, positions
from backlight.rules.pfv import Sharing
from backlight.rules.relevance_flow import Node, held, same
from backlight.rules.windows import Layer, Pool, Window, safe_ratio
from backlight.shapes import Float, Int


@dataclass(frozen=True)
class Edge:
    """How a node's relevance goes on to one of its sources. Maps are `[N, B, *space]`, B of them at once.

    `ratios`: None where all of it passes; `[N, 1, *space]`, one number a position; `[N, T, *space]`, a stencil of
    `layer`. `index`: where positions only moved, the flat source position of each target position, -1 for none.
    `itself`: the node is an activation of the source's own value.
    """

    source: int
    size: tuple[int, ...]
    ratios: Tensor | None = None
    layer: Layer | None = None
    index: Int[Tensor, "*space"] | None = None
    itself: bool = False

    def back(self, relevance: Float[Tensor, "N B *space"]) -> Float[Tensor, "N B *size"]:
        """The source's relevance: R_i = sum_j mu_ij R_j."""
        if self.index is not None:
            known = self.index.flatten() >= 0
            flat = relevance if self.ratios is None else relevance * self.ratios
            flat = flat.flatten(2)[..., known]
            total = flat.new_zeros(*flat.shape[:2], int(torch.tensor(self.size).prod()))
            return total.index_add(2, self.index.flatten()[known], flat).unflatten(2, self.size)
        if self.layer is None:
            return relevance if self.ratios is None else relevance * self.ratios
        assert self.ratios is not None
        values = (relevance[:, :, None] * self.ratios[:, None]).flatten(0, 1)
        return self.layer.scatter(values, self.size).squeeze(1).unflatten(0, relevance.shape[:2])

    def forth(self, values: Float[Tensor, "N B *size"]) -> Float[Tensor, "N B *space"]:
        """The adjoint of `back`: sum_i mu_ij f_i."""
        if self.index is not None:
            known = self.index >= 0
            moved = values.flatten(2)[..., self.index.clamp(min=0)] * known
            return moved if self.ratios is None else moved * self.ratios
        if self.layer is None:
            return values if self.ratios is None else values * self.ratios
        assert self.ratios is not None
        read = self.layer.gather(values.flatten(0, 1)[:, None]).unflatten(0, values.shape[:2])
        return (read * self.ratios[:, None]).sum(2)

    @property
    def magnitude(self) -> Tensor:
        """sum |mu| over the taps, at each target position."""
        return torch.ones(()) if self.ratios is None else self.ratios.abs().sum(1)

    @property
    def total(self) -> Tensor:
        """sum mu over the taps, at each target position."""
        return torch.ones(()) if self.ratios is None else self.ratios.sum(1)


@dataclass(frozen=True)
class Base:
    """What a segment starts from: a node's value, or the value of a layer with a window, or moved positions.

    `source`: the number of the node it reads; `x`: that node's value; `layer`, `index`: how it reads it.
    """

    value: Tensor
    source: int
    x: Tensor
    layer: Layer | None = None
    index: Tensor | None = None


@dataclass
class Stencils(Sharing):
    """Sharing rules that keep ratios in place of a graph: `edges[n]` leads from node n to its sources."""

    edges: dict[int, list[Edge]] = field(default_factory=dict)
    values: dict[int, Tensor] = field(default_factory=dict)  # of the last node

    def origin(self, x: Tensor) -> Origin:
        known = super().origin(x)
        if known.node is not None and not known.bases:
            known = self.origins[x] = changed(known, bases=(Base(x, known.node, x),))
        return known

    def node(self, call: Call, z: Tensor, sources: Iterable[Tensor], function: Callable[[Tensor], Tensor]) -> Tensor:
        known = [self.origin(x) for x in sources]
        parents = self._parents(call, known)
        number = self.flow.add(Node(call.layer, call.operation, space(z), parents), function, len(known) > 1)
        with torch.no_grad():
            y = function(z.detach())
        bases = {id(base.value): base for origin in known for base in origin.bases}
        if any(space(base.value) != space(z) for base in bases.values()):
            raise UncoveredOperationError(
                f"in or before layer {call.layer or '(root)'!r} positions are joined or moved in a way that stencils "
                "do not follow: explain(...) does, one map at a time"
            )
        self.flow.building = True
        self.edges[number] = self._edges(z, y, list(bases.values()))
        self.flow.building = False
        if function is same and len(known) == 1:
            y = same(z)  # it may belong to the head
        else:
            y = y.requires_grad_()
            self.values = {number: y}
        call.run.keep(y)
        self.origins[y] = Origin(frozenset((number,)), number, bases=(Base(y, number, y),))
        return y

    def _edges(self, z: Tensor, y: Tensor, bases: list[Base]) -> list[Edge]:
        z0 = z.detach()
        unit = z0 * safe_ratio(torch.ones_like(z0[:, :1]), inner(z0, z0)).to(z.dtype)
        if len(bases) == 1 and bases[0].layer is None and bases[0].index is None:  # one source: everything passes
            itself = z is bases[0].value
            if itself or self.flow.bias != "drop":
                return [changed(self._passed(z0, bases[0]), itself=itself)]
        wanted = [base.value for base in bases]
        found = torch.autograd.grad(z, wanted, unit, retain_graph=True, allow_unused=True)
        return [self._edge(base, q) for base, q in zip(bases, found, strict=True) if q is not None]

    def _passed(self, z: Tensor, base: Base) -> Edge:
        kept = ((z != 0).any(1, keepdim=True) & (base.x != 0).any(1, keepdim=True)).to(z.dtype)
        return Edge(base.source, space(base.x), None if bool(kept.all()) else kept)

    def _edge(self, base: Base, q: Tensor) -> Edge:
        """The ratios of one source, q being what the segment sends back to its value per unit of relevance."""
        value, x, size = base.value.detach(), base.x.detach(), space(base.x)
        if base.layer is None:
            return Edge(base.source, size, inner(value, q).to(x.dtype), index=base.index)
        layer = base.layer
        pool = layer.pool and Pool(layer.pool.window, layer.pool.out)
        shape = changed(layer, weight=None, scale=None, constant=None, pool=pool)
        if layer.single and layer.weight is not None:
            if self.flow.bias == "drop":
                ratios = layer.products(x, q)
            else:
                here = torch.cat(list(layer.window.pieces((x != 0).any(1, keepdim=True).to(x.dtype), layer.out)), 1)
                ratios = inner(value, q).to(x.dtype) * here
        else:
            ratios = layer.products(x, q)
            if layer.constant is not None and self.flow.bias != "drop":
                amounts = inner(layer.constant.reshape(1, -1, *(1,) * len(layer.out)).expand_as(q), q)
                ratios = ratios + layer.shared(x, amounts, self.flow.bias == "uniform")
        return Edge(base.source, size, ratios, shape)

    def _start(self, y: Tensor, call: Call) -> Tensor:
        """y, where a segment starts: what comes before it has no part in the ratios of the segment."""
        flow = self.flow
        return held(y, lambda: flow.building, call.run.phase)

    def layered(
        self, call: Call, source: Tensor, layer: Layer, y: Tensor, function: Callable[[Tensor], Tensor]
    ) -> Tensor:
        if layer.window.pointwise and layer.pool is None:
            return super().layered(call, source, layer, y, function)
        if layer.pool is None:
            source = self.at_node(call, source)
        origin = self.origin(source)
        if origin.node is None:  # the theory was left
            return super().layered(call, source, layer, y, function)
        made = super().layered(call, source, layer, y, function)
        answer = self._start(made, call)
        base = Base(answer, origin.node, source, layer)
        self.origins[answer] = changed(self.origins[made], bases=(base,))
        return answer

    def averaged(self, call: Call, source: Tensor, result: Tensor) -> Any:
        return self._based(result, source, read_average(call, result), call)

    def max_pool(self, call: Call) -> Any:
        if not positions(call.input):
            return super().max_pool(call)
        source = self.at_node(call, call.input)
        result = super().max_pool(changed(call, args=(source, *call.args[1:])))
        y = result[0] if isinstance(result, tuple) else result
        if not positions(y):
            return result
        pool = self.origins[y].pool
        rank = len(space(y))
        window = Window((1,) * rank, (1,) * rank, (1,) * rank, ((0, 0),) * rank)
        layer = None if pool is None else Layer(window, space(y), pool=pool[1])
        y = self._based(y, source, layer, call)
        return (y, *result[1:]) if isinstance(result, tuple) else y

    def _based(self, y: Tensor, source: Tensor, layer: Layer | None, call: Call) -> Tensor:
        """Note that y is what a layer without weights makes of a node."""
        origin = self.origin(source)
        known = self.origins.get(y)
        left = (
            None if layer is not None else f"{call.operation!r} with windows of several sizes in layer {call.layer!r}"
        )
        fresh = Origin(origin.parents, windowed=True, left=left) if known is None else changed(known, left=left)
        if origin.node is None:  # the theory was left
            return self.made(y, source)
        answer = self._start(y, call)
        self.origins[answer] = changed(fresh, bases=(Base(answer, origin.node, source, layer),))
        return answer

    def move(self, call: Call, x: Tensor, result: Any) -> Any:
        source = self.at_node(call, x)
        result = call.on(source)
        index = None if call.operation in ("interpolate", "upsample") else _index(call, source, result)
        if index is None:
            return self.leave(call, result, [source])
        origin = self.origin(source)
        if origin.node is None:
            return self.leave(call, result, [source])
        answer = self._start(result, call)
        base = Base(answer, origin.node, source, index=index)
        self.origins[answer] = Origin(origin.parents, windowed=True, bases=(base,))
        return answer


def _index(call: Call, x: Tensor, result: Any) -> Int[Tensor, "*space"] | None:
    """The flat source position of each target position, found by moving numbers; None where channels move apart."""
    if not needs_gradient(result):
        return None
    size = space(x)
    numbers = torch.arange(1, 1 + int(torch.tensor(size).prod()), dtype=torch.float64, device=x.device)
    numbers = numbers.reshape(1, 1, *size).expand(x.shape)
    with torch.no_grad():
        found, constant = call.on(numbers), call.on(torch.zeros_like(numbers))
    found = torch.where(constant == 0, found, found - constant).nan_to_num(0)  # what fills a margin comes from nowhere
    largest = found.amax(1, keepdim=True)
    if bool(((found != 0) & (found != largest)).any()):
        return None
    return (largest[0, 0] - 1).long()
