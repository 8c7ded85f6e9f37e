"""SharingOperator: the sharing ratios of one batch of inputs, for any number of maps and receptive fields."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from backlight.engine.run import running
from backlight.engine.sites import FEATURES, INPUT, captured
from backlight.engine.targets import Target, as_target, output_tensor
from backlight.errors import InputError, SiteError, UnknownNameError
from backlight.rules.relevance_flow import Flow, Node
from backlight.rules.stencils import Edge, Stencils
from backlight.shapes import Float


@dataclass
class SharingOperator:
    """What one forward pass says about how positions share relevance; nothing of the network is needed any more.

    `nodes`, in the order of the forward pass, and the `edges` from each to its sources. Layers go by the names of the
    modules whose output a node is (`names`), or `input`, `@features` (the last feature map), `low` and `high`. Maps are
    `[N, *space]`, or `[N, B, *space]` for B at once.
    """

    model: nn.Module
    x: Tensor
    nodes: list[Node]
    edges: dict[int, list[Edge]]
    names: dict[str, int]
    outputs: Tensor
    features: Tensor
    flow: Flow
    target: Callable[[Any], Target] = as_target

    @classmethod
    def of(
        cls, model: nn.Module, x: Float[Tensor, "N C *space"], flow: Flow, target: Callable[[Any], Target] = as_target
    ) -> SharingOperator:
        """The operator of a batch of inputs.

        Raises:
            UncoveredOperationError: a layer that leaves the theory.
            SiteError: no feature map on the way.
            ModelError: the score reads several feature maps directly.
        """
        stencils = Stencils(flow)
        names: dict[str, int] = {}
        with (
            torch.enable_grad(),
            running(model, stencils.rules(), samples=len(x)) as run,
            _noted(model, stencils, names),
        ):
            leaf = x.detach().requires_grad_()
            run.keep(leaf)
            outputs = output_tensor(model(leaf))
            stencils.check_head(outputs)
        if not stencils.values:
            raise SiteError("the model has no feature map [N, C, *space] to start from")
        stencils.origins.clear()
        names |= {INPUT: 0, FEATURES: flow.last, "low": flow.last}
        return cls(
            model, x.detach(), flow.nodes, stencils.edges, names, outputs, stencils.values[flow.last], flow, target
        )

    def node(self, layer: str) -> int:
        """The number of a layer's node.

        Raises:
            SiteError, UnknownNameError: a layer that is none, or that has no relevance of its own.
        """
        if layer == "high":
            return self.flow.stage(8)
        if layer not in self.names:
            if layer in dict(self.model.named_modules()):
                raise SiteError(
                    f"{layer!r} gives no feature map with a relevance of its own: name a layer whose output is an "
                    f"activation, or a sum or concatenation of several, such as {', '.join(list(self.names)[-4:])}"
                )
            raise UnknownNameError("layer", layer, self.names)
        return self.names[layer]

    def size(self, layer: str) -> tuple[int, ...]:
        """The positions of a layer, `(h, w)`."""
        return self.nodes[self.node(layer)].size

    def seed(self, target: Any = None) -> Float[Tensor, "N *space"]:
        """The relevance of the last feature map for a target: one backward pass through the head."""
        scores = self.target(target)(self.outputs)
        (gradient,) = torch.autograd.grad(scores.sum(), self.features, retain_graph=True, allow_unused=True)
        if gradient is None:
            raise SiteError("the score does not depend on the last feature map")
        return self.flow.head(self.features.detach(), gradient)[:, 0]

    def relevance(self, seed: Tensor, to: str = INPUT, at: str = FEATURES) -> Tensor:
        """The relevance of a layer's positions, `[N, (B,) *space]`, given that of another's (left multiplication).

        Raises:
            InputError: a seed that is not of the layer's size.
        """
        start, end = self.node(at), self.node(to)
        single = seed.ndim == len(self.nodes[start].size) + 1
        maps = self._checked(seed, start)
        return self._walk(maps, start, end)[:, 0] if single else self._walk(maps, start, end)

    def spread(self, values: Tensor, to: str = FEATURES, at: str = INPUT) -> Tensor:
        """The mean of a map over each position's receptive field, sum_i iERF_j(i) f(i) (right multiplication).

        With the mask of an object as f it says of every PFV of a layer how much of it comes from the object.
        """
        start, end = self.node(at), self.node(to)
        single = values.ndim == len(self.nodes[start].size) + 1
        known = {start: self._checked(values, start)}
        for number in range(start + 1, end + 1):
            terms = [edge.forth(known[edge.source]) for edge in self.edges.get(number, ()) if edge.source in known]
            if terms:
                known[number] = torch.stack(terms).sum(0) if len(terms) > 1 else terms[0]
        found = known.get(end)
        if found is None:
            raise SiteError(f"{to!r} does not depend on {at!r}")
        return found[:, 0] if single else found

    def ierf(
        self,
        layer: str,
        positions: Sequence[Any] | Tensor | None = None,
        *,
        channel: int | Sequence[int] | None = None,
        direction: Tensor | None = None,
        to: str = INPUT,
        batch_size: int = 64,
    ) -> Float[Tensor, "N P *space"]:
        """Instance-specific effective receptive fields: what positions of `to` a layer's PFVs are made of.

        `positions`: (row, column) pairs or flat numbers; None: all. `channel`, or `direction` `[C]` or `[K, C]`: of the
        part of the layer along it, the mean of the fields weighed by <direction, PFV>. Each field sums to 1, except
        those of PFVs that are zero, which are zero.

        Raises:
            InputError: positions or directions that do not fit the layer.
        """
        number = self.node(layer)
        size = self.nodes[number].size
        if channel is not None or direction is not None:
            if positions is not None:
                raise InputError("a field is that of positions, or of a channel or direction over all positions")
            seeds = self._along(layer, channel, direction)
        else:
            seeds = _one_hot(positions, size, self.x).expand(len(self.x), -1, *size)
        parts = [self._walk(part, number, self.node(to)) for part in seeds.split(batch_size, 1)]
        return torch.cat(parts, 1)

    def cancellation(self, layer: str) -> Float[Tensor, "N *space"]:
        """sum |mu| over the sources of each position: 1 without cancellation; large where shares cancel."""
        return self._summed(layer, "magnitude")

    def leak(self, layer: str) -> Float[Tensor, "N *space"]:
        """1 - sum mu at each position: what of its relevance is lost, at zero vectors and to dropped biases."""
        return 1 - self._summed(layer, "total")

    def _summed(self, layer: str, what: str) -> Tensor:
        node = self.node(layer)
        size = (len(self.x), *self.nodes[node].size)
        edges = self.edges.get(node, [])
        if not edges:  # the input keeps what it has
            return self.x.new_ones(size)
        if len(edges) == 1 and edges[0].itself:  # an activation of a sum: the ratios are the sum's
            edges = self.edges.get(edges[0].source, edges)
        return torch.stack([getattr(edge, what).to(self.x).expand(size) for edge in edges]).sum(0)

    def _walk(self, maps: Tensor, start: int, end: int) -> Tensor:
        known = {start: maps}
        for number in range(start, end, -1):
            relevance = known.pop(number, None)
            if relevance is None:
                continue
            for edge in self.edges.get(number, ()):
                sent = edge.back(relevance)
                before = known.get(edge.source)
                known[edge.source] = sent if before is None else before + sent
        if end not in known:
            return maps.new_zeros(*maps.shape[:2], *self.nodes[end].size)
        return known[end]

    def _checked(self, maps: Tensor, number: int) -> Tensor:
        size = self.nodes[number].size
        given = maps[:, None] if maps.ndim == len(size) + 1 else maps
        if tuple(given.shape[2:]) != size or len(given) != len(self.x):
            raise InputError(f"a map is [N, *space] or [N, B, *space] with N = {len(self.x)}, space {list(size)}; "
                             f"got {list(maps.shape)}")  # fmt: skip
        return given.to(self.x)

    def _along(self, layer: str, channel: Any, direction: Tensor | None) -> Tensor:
        with torch.no_grad(), captured(self.model, [layer]) as store:
            self.model(self.x)
        values = store[layer]
        if direction is None:
            wanted = torch.as_tensor(channel).reshape(-1)
            if int(wanted.min()) < 0 or int(wanted.max()) >= values.shape[1]:
                raise InputError(f"channel {channel} is out of range: {layer!r} has {values.shape[1]} channels")
            shares = values[:, wanted]
        else:
            rows = direction.reshape(-1, direction.shape[-1]).to(values)
            if rows.shape[1] != values.shape[1]:
                raise InputError(f"a direction in {layer!r} has {values.shape[1]} entries, not {rows.shape[1]}")
            shares = torch.einsum("kc,nc...->nk...", rows, values)
        total = shares.flatten(2).sum(2)
        if bool((total == 0).any()):
            raise InputError(f"nothing of {layer!r} lies along the channel or direction: its field is not defined")
        return shares / total.reshape(*total.shape, *(1,) * (shares.ndim - 2))


def _one_hot(positions: Any, size: tuple[int, ...], like: Tensor) -> Tensor:
    """`[1, P, *size]`, a 1 at each position."""
    count = int(torch.tensor(size).prod())
    given = torch.arange(count) if positions is None else torch.as_tensor(positions)
    if given.ndim == 2 and given.shape[1] == len(size):
        outside = (given < 0) | (given >= torch.tensor(size))
        flat = torch.zeros(len(given), dtype=torch.long)
        for axis, length in enumerate(size):
            flat = flat * length + given[:, axis]
    else:
        flat = given.reshape(-1)
        outside = (flat < 0) | (flat >= count)
    if flat.is_floating_point() or bool(outside.any()):
        raise InputError(f"positions are pairs or numbers within {list(size)}, got {positions}")
    return torch.nn.functional.one_hot(flat, count).to(like).unflatten(1, size)[None]


@contextmanager
def _noted(model: nn.Module, stencils: Stencils, names: dict[str, int]) -> Iterator[None]:
    """Note which node each module's output is."""

    def note(name: str, module: nn.Module, args: Any, output: Any) -> None:
        origin = stencils.origins.get(output) if isinstance(output, Tensor) else None
        if origin is not None and origin.node is not None:
            names[name] = origin.node

    handles = [module.register_forward_hook(partial(note, name)) for name, module in model.named_modules() if name]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
