"""A concept graph in words."""

from __future__ import annotations

from backlight.graph.concept_graph import CONCEPT, OUTPUT, RESIDUAL, REST, ConceptGraph


def summary(graph: ConceptGraph, count: int = 3) -> str:
    """Layers, what the residual and the rest do, the strongest concepts and routes of each class."""
    about, nodes = graph.about, graph.graph.nodes
    lines = [f"{about.get('model', 'a model')}, {about.get('image') or 'an image'}"]
    for source, target in graph.pairs():
        residual, rest = (graph.mass(source, target, kind) for kind in (RESIDUAL, REST))
        lines.append(f"{source} -> {target}: residual {residual:.0%}, rest {rest:.0%} of what is done")
    for layer in graph.layers:
        if layer["site"] != OUTPUT and layer.get("relative_error") is not None:
            lines.append(f"{layer['site']}: {layer['atoms']} concepts, relative error {layer['relative_error']:.2f}")
    for end in graph.of_layer(OUTPUT):
        number = str(nodes[end]["class"])
        lines.append(f"{nodes[end]['label']} ({number}): {nodes[end]['activation']:.3g}")
        for site in graph.sites:
            by = {node: nodes[node]["importance"].get(number, 0.0) for node in graph.of_layer(site, [CONCEPT])}
            ranked = sorted(by, key=by.__getitem__, reverse=True)[:count]
            told = ", ".join(f"{nodes[node]['label']} {by[node]:+.3g}" for node in ranked)
            if told:
                lines.append(f"  {site}: {told}")
        for route in graph.routes(nodes[end]["class"], count):
            lines.append(f"  {route.strength:.3g}  {' -> '.join(route.nodes)}")
    return "\n".join(lines)
