"""Dominant routes: the chains of concepts, from the first layer to a class, through which most of it runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from backlight.errors import InputError, UnknownNameError
from backlight.graph.concept_graph import CLASS, CONCEPT, KINDS, ConceptGraph

SIGNS = ("positive", "negative", "any")


@dataclass(frozen=True)
class Route:
    """Nodes from the first layer to a class; `shares` of its edges, and their product `strength`, with its sign."""

    nodes: tuple[str, ...]
    shares: tuple[float, ...]

    @property
    def strength(self) -> float:
        return math.prod(self.shares)

    def as_json(self) -> dict[str, Any]:
        return {"nodes": list(self.nodes), "shares": list(self.shares), "strength": self.strength}


def routes(
    graph: ConceptGraph, target: int | str, count: int = 5, sign: str = "positive", *, kinds: Sequence[str] = (CONCEPT,)
) -> list[Route]:
    """The `count` strongest routes to a class: paths of the largest |product of shares|, exactly, strongest first.

    Every node keeps its `count` strongest beginnings of either sign, which is enough: a route's product is that of its
    beginning times the share of its last edge. Equal ones are in the order of their nodes' names.

    Args:
        target: a class of the graph.
        sign: "positive": every edge speaks for what comes next. "negative": the product is negative, an odd number of
            edges speak against. "any": all.
        kinds: of nodes that a route may pass; with "residual" or "rest" it may begin there too.

    Cost: edges x count. Raises:
        UnknownNameError: a class, sign or kind that there is not. InputError: a count that is not positive.
    """
    if sign not in SIGNS:
        raise UnknownNameError("sign of routes", sign, SIGNS)
    for one in kinds:
        if one not in KINDS:
            raise UnknownNameError("kind of node", one, KINDS)
    if count < 1:
        raise InputError(f"expected at least one route, got {count}")
    end, first = graph.class_node(target), graph.sites[0] if graph.sites else ""
    nodes = graph.graph.nodes
    place = {site: number for number, site in enumerate(graph.sites)}
    order = sorted((n for n in nodes if nodes[n]["kind"] in kinds or n == end), key=lambda n: place[nodes[n]["layer"]])
    best: dict[str, list[Route]] = {}
    for node in order:
        begun = [Route((node,), ())] if nodes[node]["layer"] == first and nodes[node]["kind"] != CLASS else []
        for parent, _, share in graph.graph.in_edges(node, data="share"):
            if share == 0 or (sign == "positive" and share < 0):
                continue
            begun += [Route((*one.nodes, node), (*one.shares, share)) for one in best.get(parent, ())]
        best[node] = _strongest(begun, count, +1) + _strongest(begun, count, -1)
    asked = {"positive": (+1,), "negative": (-1,), "any": (+1, -1)}[sign]
    found = [one for one in best[end] if (1 if one.strength > 0 else -1) in asked]
    return sorted(found, key=_rank)[:count]


def _rank(route: Route) -> tuple[float, tuple[str, ...]]:
    return -abs(route.strength), route.nodes


def _strongest(given: list[Route], count: int, sign: int) -> list[Route]:
    return sorted((one for one in given if one.strength * sign > 0), key=_rank)[:count]
