"""Relevance on its way back through the nodes of a network: the half of sharing ratios that the backward pass does."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from backlight.engine.adjoint import Phase, alias, replace_adjoint, true_gradients
from backlight.engine.sites import INPUT
from backlight.errors import SiteError
from backlight.rules.affine import inner, layer_cotangent
from backlight.rules.windows import Layer, safe_ratio

BIASES = ("norm", "uniform", "drop")
# (PFVs of the last node, their cotangent from the head) -> their relevance [N, 1, *space]
Head = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Node:
    """Where relevance is pooled over channels; `parents`: the nodes it depends on with no other in between."""

    layer: str
    operation: str
    size: tuple[int, ...]
    parents: frozenset[int]


@dataclass
class Flow:
    """What the backward pass needs to know, and what it keeps.

    `nodes`, in the order of the forward pass; `named`: the numbers of those that were given names; `wants`: whose
    relevance is kept (`low`: the last node's; `high`: that of the stage an eighth of the input's size; or a name), in
    `kept`; `seed`: the relevance of the last node.
    """

    head: Head
    bias: str = "norm"
    wants: tuple[str, ...] = ()
    nodes: list[Node] = field(default_factory=list)
    named: dict[str, int] = field(default_factory=dict)
    kept: dict[str, Tensor] = field(default_factory=dict)
    seed: Tensor | None = None
    wanted: dict[int, list[str]] = field(default_factory=dict)
    last: int = -1  # the last node that is an activation, a sum or a concatenation: where the head begins
    building: bool = False

    def add(self, node: Node, function: Callable[[Tensor], Tensor], several: bool) -> int:
        """The number of a new node: of one, or of several signals."""
        self.nodes.append(node)
        if function is not same or several:
            self.last = len(self.nodes) - 1
        return len(self.nodes) - 1

    def in_head(self, last: int) -> bool:
        """Whether an operation belongs to the head, of which `last` was the last node when it ran."""
        return last >= self.last and not self.building

    def node(self, number: int, function: Callable[[Tensor], Tensor], of: int | None = None) -> Callable[..., Any]:
        """g_z = z R / <z, z>, R = <a, g_a>; Grad-CAM's R at the last node; the true derivative in the head.

        `of`: the node that z is the value of, where this one stands for both.
        """

        def vjp(z: Tensor, y: Tensor | None, cotangent: Tensor) -> Tensor | None:
            y = z if y is None else y
            if self.in_head(number - 1):
                return true_gradients(function, (z,), cotangent)[0]
            if number == self.last:
                relevance = self.seed = self.head(y, cotangent)
                self.kept, self.wanted = {}, self._wanted()
            else:
                relevance = inner(y, cotangent)
            for name in (*self.wanted.get(number, ()), *self.wanted.get(-1 if of is None else of, ())):
                self.kept[name] = self.kept[name] + relevance if name in self.kept else relevance
            if number in self.wanted and INPUT not in self.wants and len(self.wanted) == 1:
                return None  # nothing before it was asked for
            return z * safe_ratio(relevance, inner(z, z)).to(z.dtype)

        return vjp

    def layer(self, layer: Layer) -> Callable[..., Tensor]:
        """The cotangent of a layer's source; in the head, without the share of the biases."""
        at = self.last
        return lambda x, y, g: layer_cotangent(layer, x, g, "drop" if self.in_head(at) else self.bias)

    def _wanted(self) -> dict[int, list[str]]:
        numbers = {"low": self.last, **self.named}
        if "high" in self.wants:
            numbers["high"] = self.stage(8)
        found: dict[int, list[str]] = {}
        for name in self.wants:
            if name != INPUT:
                found.setdefault(numbers[name], []).append(name)
        return found

    def read_by_head(self, numbers: frozenset[int]) -> frozenset[int]:
        """These nodes, and those that lead to them without passing the last one."""
        found, queue = set(numbers), list(numbers)
        while queue:
            number = queue.pop()
            fresh = self.nodes[number].parents - found if number > self.last else frozenset()
            found |= fresh
            queue += fresh
        return frozenset(found)

    def ancestors(self) -> list[int]:
        """The nodes that the last one depends on, and itself, in order."""
        found, queue = {self.last}, [self.last]
        while queue:
            fresh = self.nodes[queue.pop()].parents - found
            found |= fresh
            queue += fresh
        return sorted(found)

    def stage(self, factor: int) -> int:
        """The last node of the stage with 1 / factor of the input's size that all relevance passes.

        Raises:
            SiteError: there is none.
        """
        order = self.ancestors()
        reach = order[0]  # no edge from before a cut leads behind it
        heirs = {number: max(n for n in order if number in self.nodes[n].parents) for number in order[:-1]}
        cuts: dict[tuple[int, ...], int] = {}
        for number in order:
            if number >= reach:
                cuts[self.nodes[number].size] = number
            reach = max(reach, heirs.get(number, number))
        whole = math.prod(self.nodes[order[0]].size)

        def off(size: tuple[int, ...]) -> float:  # networks round sizes up or down
            return abs(math.log(whole / math.prod(size)) / len(size) - math.log(factor))

        best = min(cuts, key=off)
        if off(best) > math.log(2) / 2:
            sizes = ", ".join("x".join(map(str, size)) for size in cuts)
            raise SiteError(f"all relevance passes layers of the sizes {sizes} only, none 1/{factor}: name a layer")
        return cuts[best]


def same(z: Tensor) -> Tensor:
    """z on its own memory, though no view of it: a write to a view would cost a copy."""
    return alias(z) if torch.is_grad_enabled() else z.detach()


def held(x: Tensor, while_: Callable[[], bool], phase: Phase) -> Tensor:
    """x, which gets no cotangent while a condition holds in the backward pass."""

    def vjp(z: Tensor, y: Tensor | None, cotangent: Tensor) -> Any:
        return None if while_() else cotangent

    y: Tensor = replace_adjoint(x, same, vjp, "", phase)
    return y


def class_activation(clamp: bool) -> Head:
    """Grad-CAM: R_i = sum_k A_ik mean_i' g_i'k, its negative part set to 0 if asked for (equation 6)."""

    def head(values: Tensor, cotangent: Tensor) -> Tensor:
        relevance = inner(values, cotangent.mean(tuple(range(2, values.ndim)), keepdim=True))
        return relevance.clamp(min=0) if clamp else relevance

    return head
