"""From codes, importances and edges to the nodes and edges of a concept graph."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from backlight.data.classes import ClassNames
from backlight.errors import InputError
from backlight.graph.coded import Coded
from backlight.graph.concept_graph import CLASS, CONCEPT, OUTPUT, RESIDUAL, REST, ConceptGraph, node_id
from backlight.graph.icat import Edges
from backlight.graph.importance import Chosen
from backlight.graph.thumbnails import Thumbnails
from backlight.methods.token_layout import grid_of
from backlight.shapes import Float

if TYPE_CHECKING:
    from backlight.graph.build import Building, Coding


def assemble(
    work: Building,
    coding: Coding,
    chosen: Mapping[str, Chosen],
    between: Mapping[tuple[str, str | None], Edges],
    classes: Sequence[int],
    names: ClassNames,
    about: dict[str, Any],
    drawn: Thumbnails | None,
    exemplars: int = 0,
) -> ConceptGraph:
    """The graph of one image."""
    shares = coding.logits.double().softmax(0)
    known: list[dict[str, Any]] = [
        {"index": one, "name": names.name(one), "logit": float(coding.logits[one]),
         "probability": None if names.unit == "feature" else float(shares[one])}
        for one in classes
    ]  # fmt: skip
    graph = ConceptGraph(about={**about, "classes": known})
    if drawn is not None:
        graph.about["picture"] = drawn.whole()
    for site in work.layers:
        _add_layer(graph, work, coding, site, chosen[site], classes, drawn, exemplars)
    graph.layers.append({"site": OUTPUT, "classes": True})
    for held in known:
        graph.graph.add_node(
            node_id(OUTPUT, held["index"]), layer=OUTPUT, kind=CLASS, **{"class": held["index"]},
            label=held["name"], tags=[], importance={str(held["index"]): held["logit"]},
            activation=held["logit"], shared=False, map=None,
        )  # fmt: skip
    for (start, stop), found in between.items():
        targets = [node_id(stop, q) for q in chosen[stop].concepts] if stop else [node_id(OUTPUT, c) for c in classes]
        _add_edges(graph, start, stop or OUTPUT, targets, found, chosen[start].concepts, work.residual)
    return graph


def _add_layer(
    graph: ConceptGraph,
    work: Building,
    coding: Coding,
    site: str,
    chosen: Chosen,
    classes: Sequence[int],
    drawn: Thumbnails | None,
    exemplars: int,
) -> None:
    """The layer's record, and its nodes: concepts, rest, residual."""
    coded, importance, layer = coding.coded[site], coding.importance[site], work.layers[site]
    grid = grid_in(coded, coding.image.shape[2:])
    concepts = chosen.concepts
    graph.layers.append(
        {"site": site, "atoms": len(coded.atoms), "grid": None if grid is None else list(grid),
         "relative_error": float(coded.relative_error[0])}
    )  # fmt: skip
    others = torch.ones(len(coded.atoms), dtype=torch.bool, device=coded.codes.device)
    others[concepts] = False
    strengths = [coded.codes[0, :, concepts].T, coded.codes[0][:, others].abs().sum(1)[None]]
    strengths += [coded.residual[0].norm(dim=1)[None]] if work.residual else []
    maps = torch.cat(strengths)
    fields = [None] * len(maps) if drawn is None else drawn.fields(coded, grid, maps, _directions(coded, concepts))
    values = importance.values[0].double()
    sums = [values[:, q] for q in concepts] + [values[:, others].sum(1), importance.residual[0].double()]
    kinds = [CONCEPT] * len(concepts) + [REST, RESIDUAL][: len(maps) - len(concepts)]
    for number, kind in enumerate(kinds):
        concept = concepts[number] if kind == CONCEPT else None
        held: dict[str, Any] = {"layer": site, "kind": kind}
        if concept is not None:
            held |= {"concept": concept, "label": layer.name(concept)}
            held["tags"] = [[str(word), float(by)] for word, by in layer.tags.get(concept, ())]
            held["chosen_for"] = list(chosen.chosen_for[concept])
        else:
            held |= {"label": kind, "tags": []}
        held["importance"] = {str(c): float(s) for c, s in zip(classes, sums[number], strict=True)}
        held |= {"activation": float(maps[number].double().mean()), "shared": concept in chosen.shared}
        held |= _on_grid(maps[number], coded, grid)
        if fields[number] is not None:
            held["field"] = fields[number]
        if concept is not None and exemplars and layer.exemplars is not None:
            held["exemplars"] = layer.exemplars(concept, exemplars)
        graph.graph.add_node(node_id(site, concept if concept is not None else kind), **held)


def _directions(coded: Coded, concepts: Sequence[int]) -> Float[Tensor, "Q C"]:
    """What each node looks for: its concept vector; rest and residual, what they are where they are strongest."""
    others = coded.codes[0].clone()
    others[:, list(concepts)] = 0
    rest = others @ coded.atoms
    residual = coded.residual[0]
    ends = [one[one.norm(dim=1).argmax()][None] for one in (rest, residual)]
    return torch.cat([coded.atoms[list(concepts)], *ends])


def grid_in(coded: Coded, size: Sequence[int]) -> tuple[int, int] | None:
    """(height, width) of a layer's positions, without prefix tokens; None where they lie on no grid."""
    kind, shape = coded.layout.kind, coded.shape
    if kind == "maps" and len(shape) == 3:
        return shape[1], shape[2]
    if kind == "channels-last" and len(shape) == 3:
        return shape[0], shape[1]
    if kind == "tokens":
        try:
            return grid_of(shape[0] - coded.layout.prefix, size, None)
        except InputError:
            return None
    return None


def _on_grid(strength: Float[Tensor, "P"], coded: Coded, grid: tuple[int, int] | None) -> dict[str, Any]:
    """The map of a node; what it is at class and register tokens apart."""
    prefix = coded.layout.prefix
    told = [float(f"{value:.4g}") for value in strength.tolist()]  # four digits: maps are most of a file
    places, width = told[prefix:], 1 if grid is None else grid[1]
    rows = [places[start : start + width] for start in range(0, len(places), width)]
    found: dict[str, Any] = {"map": None if grid is None else rows}
    if prefix:
        found["prefix"] = told[:prefix]
    return found


def _add_edges(
    graph: ConceptGraph,
    start: str,
    stop: str,
    targets: Sequence[str],
    found: Edges,
    concepts: Sequence[int],
    residual: bool,
) -> None:
    """An edge set. The edge of the rest also holds `gross`, the sum of |weights| of what is summed in it."""
    values = found.values[0].double()
    others = values.clone()
    others[:, list(concepts)] = 0
    for row, target in enumerate(targets):
        weights = {node_id(start, q): float(values[row, q]) for q in concepts}
        weights[node_id(start, REST)] = float(others[row].sum())
        if residual:
            weights[node_id(start, RESIDUAL)] = float(found.residual[0, row])
        add_weights(graph, target, weights)
        edge = (node_id(start, REST), target)
        if graph.graph.has_edge(*edge):
            graph.graph.edges[edge]["gross"] = float(others[row].abs().sum())
    graph.completeness.append(
        {
            "source": start,
            "target": stop,
            "targets": list(targets),
            "reached": found.reached[0].tolist(),
            "base": found.base[0].tolist(),
            "gap": found.completeness_gap[0].tolist(),
        }
    )


def add_weights(graph: ConceptGraph, target: str, weights: Mapping[str, float]) -> None:
    """Edges into a node from those of one layer, with their shares; weights of 0 are no edges."""
    whole = math.fsum(abs(weight) for weight in weights.values())
    for source, weight in weights.items():
        if weight:
            graph.graph.add_edge(source, target, weight=weight, share=weight / whole)
