"""What concept graphs and diagnoses show in a notebook."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backlight.viz.graph_picture import graph_figure
from backlight.viz.report_markup import Markup, figure_picture, join, number, table
from backlight.viz.rich_display import pre

if TYPE_CHECKING:
    from backlight.graph import ConceptGraph, Diagnosis
    from backlight.graph.difference import GraphDifference

FEW = 8


def concept_graph(found: ConceptGraph) -> Markup:
    """The picture, and the graph in words."""
    return join([figure_picture(graph_figure(found), "concept graph"), pre(found.summary())])


def diagnosis(found: Diagnosis) -> Markup:
    """The words, the concepts that tell the classes apart, and the picture of both."""
    a, b = (found.graph.graph.nodes[found.graph.class_node(one)]["label"] for one in (found.true, found.predicted))
    nodes = found.graph.graph.nodes
    rows = [
        (nodes[one.node]["label"], nodes[one.node]["layer"], number(one.for_predicted), number(one.for_true),
         number(one.difference))
        for one in found.concepts[:FEW]
    ]  # fmt: skip
    drawn = table(("concept", "layer", f"for {b}", f"for {a}", "difference"), rows)
    return join([pre(found.text()), drawn, figure_picture(graph_figure(found.graph), "concept graph of both classes")])


def graph_difference(found: GraphDifference) -> Markup:
    """The largest changes in words."""
    return pre(found.summary())
