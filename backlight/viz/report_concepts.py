"""What a report says of a layer's concepts at a picture: those that speak most for the class, and where they are."""

from __future__ import annotations

from torch import Tensor

from backlight.graph import build_graph
from backlight.graph.layers import Given
from backlight.models import LoadedModel
from backlight.shapes import Float
from backlight.viz.graph_document import Node, read
from backlight.viz.report_markup import Markup, join, number, tag


def concept_cards(
    loaded: LoadedModel, inputs: Float[Tensor, "1 C H W"], site: str, layer: Given, target: int, top: int = 6
) -> Markup:
    """The `top` concepts of a layer for a class: the part of the picture that each comes from, its name and importance.

    Importance is sum_p AT(u_pq, logit_c), as in a concept graph (`build_graph`).
    `inputs`: as the model takes them.

    Raises:
        BacklightError: a dictionary that does not fit the layer.
    """
    graph = build_graph(loaded, inputs, {site: layer}, classes=[target], top=top, shared=0, name="")
    document = read(graph)
    nodes = [node for node in document.nodes if node.kind == "concept" and node.layer == site]
    nodes = sorted(nodes, key=lambda node: -node.importance.get(str(target), 0.0))[:top]
    about = next(one for one in document.layers if one.site == site)
    cards = []
    for node in nodes:
        tags = "; ".join(f"{name} {number(value, 2)}" for name, value in node.tags)
        where = tag("img", src=node.crop, alt=f"where {node.label} comes from", width=96, height=96, class_="seen")
        told = [tag("b", node.label), where if node.crop else "", tag("figcaption", *_lines(node, target, tags))]
        cards.append(tag("figure", *told))
    error = about.relative_error
    untold = "" if error is None else f", relative l2 error {number(error, 2)}"
    said = tag("p", f"{about.atoms} concepts at {site}{untold}.", class_="muted")
    none = tag("p", "No concept speaks for this class here.", class_="muted")
    return join([tag("h3", f"Concepts of {site}"), said, tag("div", *cards, class_="grid small") if cards else none])


def _lines(node: Node, target: int, tags: str) -> list[object]:
    importance = node.importance.get(str(target), 0.0)
    lines: list[object] = [f"concept {node.concept}: {number(importance)}"]
    return [*lines, tag("br"), tags] if tags else lines
