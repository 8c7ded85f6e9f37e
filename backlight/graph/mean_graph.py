"""The mean of several concept graphs: what a set of images has in common."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from backlight.errors import InputError
from backlight.graph.assembly import add_weights
from backlight.graph.concept_graph import CLASS, ConceptGraph


def mean_graph(graphs: Sequence[ConceptGraph], min_count: int = 1) -> ConceptGraph:
    """Means of importances, activations, maps and weights, over the graphs that have the node, or both ends.

    Nodes and edges hold `count`, in how many graphs they are, and edges `spread`, the standard deviation of the weight
    over them. Shares are those of the mean weights. With graphs of `build_graphs`, which have the same nodes, all
    means are over all images; in others a node that is missing was not chosen, and says nothing of its concept. A
    node's pictures are those of the image where it is strongest.

    Args:
        min_count: nodes of fewer graphs are left out.

    Raises:
        InputError: no graphs, or graphs of other layers, models or attributions.
    """
    if not graphs:
        raise InputError("a mean needs at least one graph")
    first = graphs[0]
    for name in ("model", "attribution", "settings", "residual", "pairs"):
        if any(graph.about.get(name) != first.about.get(name) for graph in graphs):
            raise InputError(f"graphs of different {name}: {[graph.about.get(name) for graph in graphs]}")
    if any(graph.sites != first.sites for graph in graphs):
        raise InputError(f"graphs of different layers: {[graph.sites for graph in graphs]}")
    mean = ConceptGraph(about=_about(graphs), layers=[_layer(graphs, number) for number in range(len(first.layers))])
    there = dict.fromkeys(node for graph in graphs for node in graph.graph)
    for node in there:
        held = [graph.graph.nodes[node] for graph in graphs if node in graph.graph]
        if len(held) >= min_count:
            mean.graph.add_node(node, **_node(held))
    for target in list(mean.graph):
        _edges(mean, graphs, target)
    mean.completeness = _completeness(graphs)
    return mean


def _about(graphs: Sequence[ConceptGraph]) -> dict[str, Any]:
    found = {name: value for name, value in graphs[0].about.items() if name != "picture"}
    named: dict[int, list[dict[str, Any]]] = {}
    for graph in graphs:
        for one in graph.about.get("classes", []):
            named.setdefault(one["index"], []).append(one)
    classes = [
        {"index": index, "name": held[0]["name"], "logit": _mean([one["logit"] for one in held]),
         "probability": _mean([one["probability"] for one in held])}
        for index, held in named.items()
    ]  # fmt: skip
    images = [graph.about.get("image", "") for graph in graphs]
    return {**found, "image": f"the mean of {len(graphs)} images", "images": images, "classes": classes}


def _layer(graphs: Sequence[ConceptGraph], number: int) -> dict[str, Any]:
    held = [graph.layers[number] for graph in graphs]
    if held[0].get("classes"):
        return dict(held[0])
    same = all(one.get("grid") == held[0].get("grid") for one in held)
    error = _mean([one.get("relative_error") for one in held])
    return {**held[0], "grid": held[0].get("grid") if same else None, "relative_error": error}


def _node(held: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One node of those of several graphs."""
    strongest = max(held, key=lambda one: abs(one["activation"]))
    classes = dict.fromkeys(number for one in held for number in one["importance"])
    found = {
        **strongest,
        "importance": {c: _mean([one["importance"].get(c) for one in held]) for c in classes},
        "activation": _mean([one["activation"] for one in held]),
        "shared": any(one["shared"] for one in held),
        "count": len(held),
    }
    if held[0]["kind"] != CLASS:
        maps = [np.array(one["map"]) for one in held if one.get("map") is not None]
        alike = len(maps) == len(held) and len({one.shape for one in maps}) == 1
        found["map"] = np.mean(maps, 0).tolist() if alike else None
    if "chosen_for" in strongest:
        found["chosen_for"] = sorted({number for one in held for number in one["chosen_for"]})
    return found


def _edges(mean: ConceptGraph, graphs: Sequence[ConceptGraph], target: str) -> None:
    """The edges into a node; an edge that a graph with both ends does not have is 0 there."""
    within = [graph.graph for graph in graphs if target in graph.graph]
    parents = dict.fromkeys(parent for graph in within for parent in graph.predecessors(target) if parent in mean.graph)
    by_layer: dict[str, dict[str, float]] = {}
    more: dict[str, dict[str, Any]] = {}
    for parent in parents:
        both = [graph for graph in within if parent in graph]
        held = [graph.edges[parent, target] if graph.has_edge(parent, target) else {"weight": 0.0} for graph in both]
        weights = [one["weight"] for one in held]
        by_layer.setdefault(mean.graph.nodes[parent]["layer"], {})[parent] = math.fsum(weights) / len(weights)
        more[parent] = {"count": len(both), "spread": float(np.std(weights))}
        if any("gross" in one for one in held):
            more[parent]["gross"] = math.fsum(one.get("gross", 0.0) for one in held) / len(held)
    for weights_of in by_layer.values():
        add_weights(mean, target, weights_of)
    for parent, extra in more.items():
        if mean.graph.has_edge(parent, target):
            mean.graph.edges[parent, target].update(extra)


def _completeness(graphs: Sequence[ConceptGraph]) -> list[dict[str, Any]]:
    """Of every edge set, the means over the images that have the target."""
    found: dict[tuple[str, str], dict[str, list[tuple[float, float, float]]]] = {}
    for graph in graphs:
        for one in graph.completeness:
            into = found.setdefault((one["source"], one["target"]), {})
            for target, *numbers in zip(one["targets"], one["reached"], one["base"], one["gap"], strict=True):
                into.setdefault(target, []).append((numbers[0], numbers[1], numbers[2]))
    sets = []
    for (source, stop), by_target in found.items():
        columns = [np.mean(held, 0).tolist() for held in by_target.values()]
        record: dict[str, Any] = {"source": source, "target": stop, "targets": list(by_target)}
        for place, name in enumerate(("reached", "base", "gap")):
            record[name] = [column[place] for column in columns]
        sets.append(record)
    return sets


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None
