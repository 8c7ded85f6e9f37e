"""Two concept graphs side by side: image against image, class against class, clean against attacked."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from backlight.displayed import Displayed
from backlight.errors import InputError
from backlight.graph.concept_graph import CLASS, OUTPUT, ConceptGraph

THE_CLASS = f"{OUTPUT}/class"  # stands for the class that is explained, where it is not the same one


@dataclass(frozen=True)
class Change:
    """A number in the first and the second graph; None: it is not there."""

    first: float | None
    second: float | None

    @property
    def difference(self) -> float:
        """second - first; what is not there counts as 0."""
        return (self.second or 0.0) - (self.first or 0.0)

    def as_json(self) -> dict[str, Any]:
        return {"first": self.first, "second": self.second, "difference": self.difference}


@dataclass(frozen=True)
class NodeChange:
    """A node: its importance for the class, and its activation."""

    node: str
    layer: str
    kind: str
    label: str
    importance: Change
    activation: Change


@dataclass(frozen=True)
class EdgeChange:
    """An edge: its share of what makes the target, and its weight."""

    source: str
    target: str
    share: Change
    weight: Change


@dataclass(frozen=True, repr=False)
class GraphDifference(Displayed):
    """What changes from a graph to another, for class `classes[0]` of the first and `classes[1]` of the second.

    `nodes`, `edges`: of both, the largest changes (of importance, of share) first. A node that only one has was chosen
    for one only: it is not known whether the concept was on in the other. Graphs that were built with the same
    `nodes=` have the same nodes. Where the classes are two, both go by the id "output/class".
    """

    classes: tuple[int, int]
    nodes: tuple[NodeChange, ...]
    edges: tuple[EdgeChange, ...]
    only_first: tuple[str, ...]
    only_second: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "classes": list(self.classes),
            "nodes": [
                {"id": one.node, "layer": one.layer, "kind": one.kind, "label": one.label,
                 "importance": one.importance.as_json(), "activation": one.activation.as_json()}
                for one in self.nodes
            ],
            "edges": [
                {"source": one.source, "target": one.target, "share": one.share.as_json(),
                 "weight": one.weight.as_json()}
                for one in self.edges
            ],
            "only_first": list(self.only_first),
            "only_second": list(self.only_second),
        }  # fmt: skip

    def summary(self, count: int = 5) -> str:
        """The largest changes in words."""
        a, b = self.classes
        lines = [f"class {a} in both" if a == b else f"class {a} in the first, class {b} in the second"]
        for one in self.nodes[:count]:
            lines.append(f"  {one.node} ({one.label}): importance {_told(one.importance)}")
        for edge in self.edges[:count]:
            lines.append(f"  {edge.source} -> {edge.target}: share {_told(edge.share)}")
        for where, names in (("first", self.only_first), ("second", self.only_second)):
            if names:
                lines.append(f"  only in the {where}: {', '.join(names)}")
        return "\n".join(lines)


def difference(
    first: ConceptGraph, second: ConceptGraph, classes: tuple[int | str, int | str] | None = None
) -> GraphDifference:
    """Importances, activations and edges of two graphs side by side.

    Args:
        classes: whose importance is compared, of the first and of the second graph; the same graph twice with two
            classes is class against class. None: the first class that both have.

    Raises:
        UnknownNameError: a class that a graph does not have. InputError: graphs without a common class.
    """
    pair = classes or _common(first, second)
    ends = (first.class_node(pair[0]), second.class_node(pair[1]))
    numbers = (first.graph.nodes[ends[0]]["class"], second.graph.nodes[ends[1]]["class"])
    sides = [_Side(graph, end, number, numbers[0] != numbers[1])
             for graph, end, number in zip((first, second), ends, numbers, strict=True)]  # fmt: skip
    a, b = sides
    nodes = [a.beside(b, node) for node in _both(a.nodes, b.nodes)]
    edges = [
        EdgeChange(edge[0], edge[1], a.edge(b, edge, "share"), a.edge(b, edge, "weight"))
        for edge in _both(a.edges, b.edges)
    ]
    return GraphDifference(
        numbers,
        tuple(sorted(nodes, key=lambda one: (-abs(one.importance.difference), one.node))),
        tuple(sorted(edges, key=lambda one: (-abs(one.share.difference), one.source, one.target))),
        tuple(node for node in a.nodes if node not in b.nodes),
        tuple(node for node in b.nodes if node not in a.nodes),
    )


class _Side:
    """A graph as it is compared: without other classes, and with a name for the class that both can have."""

    def __init__(self, graph: ConceptGraph, end: str, number: int, renamed: bool) -> None:
        held = graph.graph.nodes
        self.number = number
        names = {node: THE_CLASS if renamed and node == end else node for node in held}
        kept = {node for node in held if held[node]["kind"] != CLASS or node == end}
        self.nodes: dict[str, Any] = {names[node]: held[node] for node in held if node in kept}
        self.edges: dict[tuple[str, str], Any] = {
            (names[a], names[b]): edge for a, b, edge in graph.graph.edges(data=True) if a in kept and b in kept
        }

    def beside(self, other: _Side, node: str) -> NodeChange:
        one = self.nodes.get(node) or other.nodes[node]
        importance = Change(self.importance(node), other.importance(node))
        activation = Change(*(side.nodes[node]["activation"] if node in side.nodes else None for side in (self, other)))
        return NodeChange(node, one["layer"], one["kind"], one["label"], importance, activation)

    def importance(self, node: str) -> float | None:
        return self.nodes[node]["importance"].get(str(self.number)) if node in self.nodes else None

    def edge(self, other: _Side, edge: tuple[str, str], what: str) -> Change:
        """Edges of weight 0 are not kept: between nodes that are there, a missing one is 0."""
        found = []
        for side in (self, other):
            there = all(node in side.nodes for node in edge)
            found.append(side.edges[edge][what] if edge in side.edges else 0.0 if there else None)
        return Change(*found)


def _common(first: ConceptGraph, second: ConceptGraph) -> tuple[int, int]:
    for one in first.classes:
        if one in second.classes:
            return one, one
    raise InputError(
        f"the graphs have no class in common: {first.classes} and {second.classes}; say classes=(of the first, of the "
        "second)"
    )


def _both(first: Iterable[Any], second: Iterable[Any]) -> list[Any]:
    return list(dict.fromkeys((*first, *second)))


def _told(change: Change) -> str:
    first, second = ("-" if one is None else f"{one:+.3g}" for one in (change.first, change.second))
    return f"{first} -> {second}"
