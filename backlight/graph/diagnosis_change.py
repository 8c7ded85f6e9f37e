"""Diagnosis of a change: an image and another version of it, such as an attacked one, in the same concepts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from backlight.errors import InputError
from backlight.graph.concept_graph import CONCEPT, RESIDUAL, ConceptGraph
from backlight.graph.diagnosis import outputs_of
from backlight.graph.diagnosis_change_text import change_markdown, change_text
from backlight.graph.diagnosis_choice import graphs_apart
from backlight.graph.diagnosis_contrast import (
    Balance,
    Region,
    RouteContrast,
    balances,
    carried,
    contrast_routes,
    contrasts,
    region_of,
    two_classes,
)
from backlight.graph.difference import Change, GraphDifference
from backlight.graph.layers import Given
from backlight.models import LoadedModel
from backlight.shapes import Float


@dataclass(frozen=True)
class ConceptChange:
    """A concept before and after: its part of the lead, its mean code, and where its code changed."""

    node: str
    layer: str
    label: str
    lead: Change
    activation: Change
    region: Region | None

    def as_json(self) -> dict[str, Any]:
        box = None if self.region is None else {"box": list(self.region.box), "place": self.region.place}
        return {
            "node": self.node, "layer": self.layer, "label": self.label, "lead": self.lead.as_json(),
            "activation": self.activation.as_json(), "region": box,
        }  # fmt: skip


@dataclass(frozen=True)
class LayerChange:
    """A layer before and after: what makes the lead, and how far its nodes moved.

    `moved`: |u' - u| / |u| over the codes of the graph's concepts at all positions; `residual`: |r'| / |r| of what no
    concept tells: an attack that leaves the concepts' span makes it larger.
    """

    layer: str
    before: Balance
    after: Balance
    moved: float
    residual: float

    def as_json(self) -> dict[str, Any]:
        sides = {"before": self.before.as_json(), "after": self.after.as_json()}
        return {"layer": self.layer, **sides, "moved": self.moved, "residual": self.residual}


@dataclass(frozen=True)
class RouteChange:
    """A route before and after."""

    nodes: tuple[str, ...]
    before: RouteContrast
    after: RouteContrast

    @property
    def difference(self) -> float:
        """What the change made it carry to the lead."""
        return self.after.difference - self.before.difference

    def as_json(self) -> dict[str, Any]:
        parts = {"before": self.before.as_json(), "after": self.after.as_json()}
        return {"nodes": list(self.nodes), **parts, "difference": self.difference}


@dataclass(frozen=True)
class ChangeDiagnosis:
    """What makes a network go from class `true` to class `predicted` between two versions of an image.

    `before`, `after`: graphs of both classes, with the same nodes. `concepts`: those whose part of the lead of
    `predicted` changed the most first. `layers`: in the network's order. `routes`: the strongest ones after and
    before, by how much the change made them carry.
    """

    before: ConceptGraph
    after: ConceptGraph
    true: int
    predicted: int
    concepts: tuple[ConceptChange, ...]
    layers: tuple[LayerChange, ...]
    routes: tuple[RouteChange, ...]

    @classmethod
    def of(
        cls, before: ConceptGraph, after: ConceptGraph, true: int, predicted: int, count: int = 5
    ) -> ChangeDiagnosis:
        """That of two graphs with the same nodes.

        Raises:
            UnknownNameError: a class that they do not have. InputError: the same class twice; other nodes.
        """
        two_classes(true, predicted)
        for graph in (before, after):
            graph.class_node(true), graph.class_node(predicted)
        if before.concepts() != after.concepts():
            raise InputError("the graphs have other nodes: build the second with nodes=first.concepts()")
        return cls(
            before, after, true, predicted, tuple(_concepts(before, after, true, predicted)),
            tuple(_layers(before, after, true, predicted)), tuple(_routes(before, after, true, predicted, count)),
        )  # fmt: skip

    @property
    def lead(self) -> Change:
        """logit of the class after - logit of the class before, in both versions."""
        return Change(self.layers[0].before.lead, self.layers[0].after.lead)

    @property
    def difference(self) -> GraphDifference:
        """The graphs side by side, for the class after."""
        return self.before.difference(self.after, (self.predicted, self.predicted))

    def text(self, count: int = 3) -> str:
        """Plain sentences with numbers: what changed where, along which routes, and what is untold."""
        return change_text(self, count)

    def markdown(self, count: int = 8) -> str:
        """The sentences, then tables."""
        return change_markdown(self, count)

    def as_json(self) -> dict[str, Any]:
        """Plain values, without the graphs."""
        return {
            "true": self.true, "predicted": self.predicted, "lead": self.lead.as_json(),
            "concepts": [one.as_json() for one in self.concepts],
            "layers": [one.as_json() for one in self.layers],
            "routes": [one.as_json() for one in self.routes],
            "text": self.text(),
        }  # fmt: skip


def diagnose_change(
    model: nn.Module | LoadedModel,
    image: Float[torch.Tensor, "1 C H W"],
    other: Float[torch.Tensor, "1 C H W"],
    layers: Mapping[str, Given],
    *,
    true: int | None = None,
    predicted: int | None = None,
    count: int = 5,
    image_names: tuple[str, str] = ("before", "after"),
    **building: Any,
) -> ChangeDiagnosis:
    """What makes the difference between an image and another version of it, such as an attacked one.

    Both graphs have the same nodes, those whose part of the lead changed the most (`choose_apart`).

    Args:
        image, other: before and after, as `build_graph` takes them.
        true, predicted: the classes; None: the predicted one before, and after.
        count: routes of each graph. `building`: other settings of `build_graphs`.

    Cost: that of two graphs, and of `choose_apart`.

    Raises:
        InputError: both are taken for the same class, and none is given; images of two sizes.
    """
    if image.shape != other.shape or len(image) != 1:
        raise InputError(f"two versions of one image have one shape, got {list(image.shape)} and {list(other.shape)}")
    both = torch.cat([image, other])
    outputs = outputs_of(model, both)
    a, b = (given if given is not None else int(row.argmax())
            for given, row in zip((true, predicted), outputs, strict=True))  # fmt: skip
    two_classes(a, b)
    graphs = graphs_apart(model, both, layers, (a, b), building, image_names)
    return ChangeDiagnosis.of(graphs[0], graphs[1], a, b, count)


def _concepts(before: ConceptGraph, after: ConceptGraph, true: int, predicted: int) -> list[ConceptChange]:
    found = []
    first = {one.node: one for one in contrasts(before, true, predicted)}
    for one in contrasts(after, true, predicted):
        maps = [graph.graph.nodes[one.node].get("map") for graph in (before, after)]
        moved = None if None in maps else [
            [b - a for a, b in zip(row, other, strict=True)] for row, other in zip(*maps, strict=True)
        ]  # fmt: skip
        was = first[one.node]
        found.append(
            ConceptChange(
                one.node, one.layer, one.label, Change(was.difference, one.difference),
                Change(was.activation, one.activation), region_of(moved),
            )
        )  # fmt: skip
    return sorted(found, key=lambda one: (-abs(one.lead.difference), one.node))


def _layers(before: ConceptGraph, after: ConceptGraph, true: int, predicted: int) -> list[LayerChange]:
    sides = [balances(graph, true, predicted) for graph in (before, after)]
    return [
        LayerChange(a.layer, a, b, _moved(before, after, a.layer), _grown(before, after, a.layer))
        for a, b in zip(*sides, strict=True)
    ]


def _moved(before: ConceptGraph, after: ConceptGraph, site: str) -> float:
    changes, sizes = [], []
    for node in before.of_layer(site, [CONCEPT]):
        for a, b in zip(_places(before, node), _places(after, node), strict=True):
            changes.append((b - a) ** 2)
            sizes.append(a**2)
    whole = math.fsum(sizes)
    return math.sqrt(math.fsum(changes) / whole) if whole else 0.0


def _grown(before: ConceptGraph, after: ConceptGraph, site: str) -> float:
    """The norm of a layer's residual after by that before; its map holds the norm at each position."""
    sizes = [
        math.sqrt(math.fsum(v**2 for node in graph.of_layer(site, [RESIDUAL]) for v in _places(graph, node)))
        for graph in (before, after)
    ]
    return sizes[1] / sizes[0] if sizes[0] else 1.0


def _places(graph: ConceptGraph, node: str) -> list[float]:
    """What a node is at all positions, prefix tokens first; without a grid, its mean."""
    held = graph.graph.nodes[node]
    if held.get("map") is None:
        return [held["activation"]]
    return [*held.get("prefix", ()), *(value for row in held["map"] for value in row)]


def _routes(before: ConceptGraph, after: ConceptGraph, true: int, predicted: int, count: int) -> list[RouteChange]:
    """The ways that carry the most to the new class after, and to the old one before."""
    ways = [one.nodes for one in contrast_routes(after, true, predicted, count)]
    ways += [one.nodes for one in contrast_routes(before, predicted, true, count)]
    found = [
        RouteChange(nodes, carried(before, nodes, true, predicted), carried(after, nodes, true, predicted))
        for nodes in dict.fromkeys(ways)
    ]
    return sorted(found, key=lambda one: (-abs(one.difference), one.nodes))
