"""Two classes of one concept graph against each other: what speaks for which, by how much, from where, along which way.

The lead of class B over class A is logit_B - logit_A. A node's importance for a class is its part of that logit, so
d_q = I_qB - I_qA is its part of the lead: over the concepts, the rest and the residual of a layer the d_q sum to the
lead, up to what is there without them (the base) and the quadrature's error. All are in logits, and comparable between
layers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from backlight.errors import InputError
from backlight.graph.concept_graph import CLASS, CONCEPT, OUTPUT, RESIDUAL, REST, ConceptGraph, node_id
from backlight.graph.importance import NOTHING
from backlight.graph.routes import routes

STRONG = 0.5  # of the strongest position
CONTRAST = node_id(OUTPUT, "contrast")


@dataclass(frozen=True)
class Region:
    """Where in the image a node is at least half as strong as anywhere.

    `box`: (top, left, bottom, right), in parts of the image's sides, by the cells of the layer's grid; receptive fields
    reach further. `place`: in words, by the centre of these cells. `share`: of the map's mass that lies in them.
    """

    box: tuple[float, float, float, float]
    place: str
    share: float


@dataclass(frozen=True)
class Contrast:
    """A concept's parts of both logits; `difference`: of the lead. `region`: None for layers without a grid."""

    node: str
    layer: str
    label: str
    for_true: float
    for_predicted: float
    shared: bool
    activation: float
    region: Region | None

    @property
    def difference(self) -> float:
        """Its part of the lead; 0 where the parts are equal but for rounding."""
        difference, size = self.for_predicted - self.for_true, max(abs(self.for_true), abs(self.for_predicted))
        return difference if abs(difference) > NOTHING * size else 0.0

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "difference": self.difference}


@dataclass(frozen=True)
class Balance:
    """What a layer's nodes make of the lead: the concepts of the graph, all others, what no concept tells.

    `base`: the lead without all of them, and the quadrature's error; `gap`: that error, where the graph has it.
    `concepts_for`, `concepts_against`: the sums of the positive and of the negative parts of the concepts.
    """

    layer: str
    lead: float
    concepts_for: float
    concepts_against: float
    rest: float
    residual: float
    gap: float | None = None

    def reversed(self) -> Balance:
        """The same of the other class's lead."""
        own = (-self.lead, -self.concepts_against, -self.concepts_for, -self.rest, -self.residual)
        return Balance(self.layer, *own, None if self.gap is None else -self.gap)

    @property
    def concepts(self) -> float:
        return self.concepts_for + self.concepts_against

    @property
    def base(self) -> float:
        return self.lead - self.concepts - self.rest - self.residual

    @property
    def untold(self) -> float:
        """|residual| by the sum of the sizes of all parts: how much of the evidence no concept tells, 0 to 1."""
        return self._part(self.residual)

    @property
    def elsewhere(self) -> float:
        """|rest| by that sum: concepts that the graph does not show, by their net."""
        return self._part(self.rest)

    def _part(self, value: float) -> float:
        whole = self.concepts_for - self.concepts_against + abs(self.rest) + abs(self.residual)
        return abs(value) / whole if whole else 0.0

    def as_json(self) -> dict[str, Any]:
        derived = {name: getattr(self, name) for name in ("concepts", "base", "untold", "elsewhere")}
        return {**asdict(self), **derived}


@dataclass(frozen=True)
class RouteContrast:
    """A way through the layers, and what it carries to both logits: its shares times its last weight."""

    nodes: tuple[str, ...]
    for_true: float
    for_predicted: float

    @property
    def difference(self) -> float:
        return self.for_predicted - self.for_true

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "difference": self.difference}


def contrasts(graph: ConceptGraph, true: int, predicted: int) -> list[Contrast]:
    """The concepts of all layers, those that tell the classes apart the most first."""
    found = []
    for node, held in graph.graph.nodes(data=True):
        if held["kind"] != CONCEPT:
            continue
        a, b = (held["importance"].get(str(one), 0.0) for one in (true, predicted))
        region = region_of(held.get("map"))
        found.append(
            Contrast(node, held["layer"], held["label"], a, b, bool(held["shared"]), held["activation"], region)
        )
    return sorted(found, key=lambda one: (-abs(one.difference), one.node))


def balances(graph: ConceptGraph, true: int, predicted: int) -> list[Balance]:
    """What each layer makes of the lead."""
    nodes = graph.graph.nodes
    lead = nodes[graph.class_node(predicted)]["activation"] - nodes[graph.class_node(true)]["activation"]
    found = []
    for site in graph.sites:
        if site == OUTPUT:
            continue
        parts: dict[str, list[float]] = {CONCEPT: [], REST: [], RESIDUAL: []}
        for node in graph.of_layer(site):
            importance = nodes[node]["importance"]
            parts[nodes[node]["kind"]].append(importance.get(str(predicted), 0.0) - importance.get(str(true), 0.0))
        positive, negative = (math.fsum(d for d in parts[CONCEPT] if d * sign > 0) for sign in (1, -1))
        others = (math.fsum(parts[REST]), math.fsum(parts[RESIDUAL]))
        found.append(Balance(site, lead, positive, negative, *others, _gap(graph, site, true, predicted)))
    return found


def _gap(graph: ConceptGraph, site: str, true: int, predicted: int) -> float | None:
    """What the quadrature makes of the lead at a layer that has edges to the classes."""
    for one in graph.completeness:
        if (one["source"], one["target"]) == (site, OUTPUT):
            gaps = dict(zip(one["targets"], one["gap"], strict=True))
            return float(gaps[graph.class_node(predicted)] - gaps[graph.class_node(true)])
    return None


def contrast_routes(graph: ConceptGraph, true: int, predicted: int, count: int = 5) -> list[RouteContrast]:
    """The `count` ways through concepts, of positive shares, that carry the most to the lead of `predicted`.

    A way pi ending in q carries f_c = (product of its shares) w(q -> c) to class c; ranked, exactly, by f_B - f_A > 0.
    With the classes exchanged, those for the other.
    """
    ends = (graph.class_node(true), graph.class_node(predicted))
    apart = graph.graph.copy()
    weights = {}
    for node in graph.graph:
        a, b = (apart.get_edge_data(node, end, {"weight": 0.0})["weight"] for end in ends)
        weights[node] = b - a if abs(b - a) > NOTHING * max(abs(a), abs(b)) else 0.0
    apart.remove_nodes_from(graph.of_layer(OUTPUT))
    apart.add_node(CONTRAST, layer=OUTPUT, kind=CLASS, label=CONTRAST, **{"class": CONTRAST})
    for node, weight in weights.items():
        if weight:
            apart.add_edge(node, CONTRAST, weight=weight, share=weight)
    found = routes(ConceptGraph(apart, {}, graph.layers), CONTRAST, count)
    return [carried(graph, route.nodes[:-1], true, predicted) for route in found]


def carried(graph: ConceptGraph, nodes: Sequence[str], true: int, predicted: int) -> RouteContrast:
    """What a way, of concepts, carries to both logits; edges that are not there carry nothing."""
    edges = graph.graph.edges
    shares = [edges[pair]["share"] if pair in edges else 0.0 for pair in pairwise(nodes)]
    ends = [(nodes[-1], graph.class_node(one)) for one in (true, predicted)]
    flows = [math.prod(shares) * (edges[end]["weight"] if end in edges else 0.0) for end in ends]
    return RouteContrast(tuple(nodes), *flows)


def region_of(places: Sequence[Sequence[float]] | None) -> Region | None:
    """Where a map is strong; None for no map, or one of zeros."""
    if not places or not places[0]:
        return None
    height, width = len(places), len(places[0])
    cells = [(abs(value), y, x) for y, row in enumerate(places) for x, value in enumerate(row)]
    most = max(cells)[0]
    if most == 0:
        return None
    strong = [cell for cell in cells if cell[0] >= STRONG * most]
    mass = math.fsum(size for size, _, _ in strong)
    centre = [math.fsum(cell[0] * (cell[axis] + 0.5) for cell in strong) / mass for axis in (1, 2)]
    rows, columns = ([cell[axis] for cell in strong] for axis in (1, 2))
    box = (min(rows) / height, min(columns) / width, (max(rows) + 1) / height, (max(columns) + 1) / width)
    wide = (box[2] - box[0]) * (box[3] - box[1]) > 0.6
    place = _words(centre[0] / height, centre[1] / width, wide)
    return Region(box, place, mass / math.fsum(size for size, _, _ in cells))


def _words(row: float, column: float, wide: bool) -> str:
    across = "left" if column < 1 / 3 else "right" if column > 2 / 3 else ""
    down = "upper" if row < 1 / 3 else "lower" if row > 2 / 3 else ""
    alone = {"upper": "at the top", "lower": "at the bottom", "": f"on the {across}" if across else "in the middle"}
    where = f"in the {down} {across}" if down and across else alone[down]
    return "all over the picture" if wide else where


def two_classes(true: int, predicted: int) -> None:
    """Raise InputError where there is nothing to contrast."""
    if true == predicted:
        raise InputError(f"class {true} twice: a diagnosis tells two classes apart, give another as the predicted one")
