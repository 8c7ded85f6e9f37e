"""Concept graphs with random edges, for tests of what is done with them."""

from __future__ import annotations

import numpy as np

from backlight.graph.assembly import add_weights
from backlight.graph.concept_graph import ConceptGraph


def random_graph(seed: int, widths: tuple[int, ...] = (3, 4, 3), classes: int = 2, leaps: bool = False) -> ConceptGraph:
    """Layers a, b, c, ... of concepts with rest and residual, and classes; a part of the edges is missing."""
    draw = np.random.default_rng(seed)
    graph = ConceptGraph(about={"model": "none", "image": f"image {seed}", "classes": []})
    names = [chr(97 + number) for number in range(len(widths))]
    for site, width in zip(names, widths, strict=True):
        graph.layers.append({"site": site, "atoms": width, "grid": [1, 2], "relative_error": float(draw.random())})
        for one in (*range(width), "rest", "residual"):
            kind = "concept" if isinstance(one, int) else one
            held = {
                "layer": site,
                "kind": kind,
                "label": f"{kind} {one}",
                "tags": [],
                "shared": bool(draw.random() < 0.2),
            }
            held |= {"concept": one, "chosen_for": [int(draw.integers(classes))]} if kind == "concept" else {}
            importance = {str(c): float(draw.normal()) for c in range(classes)}
            graph.graph.add_node(f"{site}/{one}", **held, importance=importance, activation=1.0, map=[[0.25, 1.0]])
    graph.layers.append({"site": "output", "classes": True})
    for c in range(classes):
        graph.graph.add_node(f"output/{c}", layer="output", kind="class", **{"class": c}, label=f"name {c}", tags=[],
                             importance={str(c): 1.0}, activation=1.0, shared=False, map=None)  # fmt: skip
    sites = [*names, "output"]
    for after, target_site in enumerate(sites):
        for source in sites[max(after - 1, 0) if not leaps else 0 : after]:
            for target in graph.of_layer(target_site, ["concept", "class"]):
                weights = {node: float(draw.normal()) for node in graph.of_layer(source) if draw.random() < 0.8}
                add_weights(graph, target, weights)
            graph.completeness.append({"source": source, "target": target_site, "targets": [], "reached": [],
                                       "base": [], "gap": []})  # fmt: skip
    return graph
