"""The static picture: what is chosen, what the caption says of it, and that the file holds what was asked for."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import pytest
from graph_example import CLASSES, example_graph

from backlight.errors import InputError, UnknownNameError
from backlight.viz import graph_figure, save_figure
from backlight.viz.graph_document import read
from backlight.viz.graph_picture import AGAINST, FOR, select


@pytest.fixture(scope="module")
def graph() -> dict[str, Any]:
    return example_graph(layers=4, nodes=7, seed=1)


def test_nodes_of_largest_importance_are_chosen(graph: dict[str, Any]) -> None:
    shown = select(read(graph), nodes=2, min_share=0.0, negative=True, residual=False)
    for layer, column in zip(graph["layers"][:-1], shown.columns[:-1], strict=True):
        held = [node for node in graph["nodes"] if node["layer"] == layer["site"] and node["kind"] == "concept"]
        held.sort(key=lambda node: -sum(map(abs, node["importance"].values())))
        assert {node.id for node in column} == {node["id"] for node in held[:2]}


def test_a_class_chooses_by_its_own_importance_and_stands_alone(graph: dict[str, Any]) -> None:
    shown = select(read(graph), nodes=1, min_share=0.0, negative=True, residual=True, of="boxer")
    assert [node.id for node in shown.columns[-1]] == ["output/242"]
    first = [n for n in graph["nodes"] if n["layer"] == "blocks.0" and n["kind"] == "concept"]
    assert shown.columns[0][0].id == max(first, key=lambda node: abs(node["importance"]["242"]))["id"]
    assert [node.kind for node in shown.columns[0]] == ["concept", "residual", "rest"]
    with pytest.raises(UnknownNameError, match="boxer"):
        select(read(graph), nodes=1, min_share=0.0, negative=True, residual=True, of="boxr")


def test_edges_below_the_share_and_against_their_target_can_be_left_out(graph: dict[str, Any]) -> None:
    settings: dict[str, Any] = {"nodes": 99, "residual": True}
    shown = select(read(graph), min_share=0.1, negative=False, **settings)
    expected = {(e["source"], e["target"]) for e in graph["edges"] if e["share"] >= 0.1}
    assert {(edge.source, edge.target) for edge in shown.edges} == expected
    total = sum(abs(edge["share"]) for edge in graph["edges"])
    assert shown.mass == pytest.approx(sum(edge.share for edge in shown.edges) / total)
    assert select(read(graph), min_share=0.0, negative=True, **settings).mass == pytest.approx(1)
    assert [abs(edge.share) for edge in shown.edges] == sorted(abs(edge.share) for edge in shown.edges)


def test_edges_are_drawn_by_width_and_sign(graph: dict[str, Any]) -> None:
    from matplotlib.colors import to_hex

    figure = graph_figure(graph, nodes=99, min_share=0.1)
    shown = select(read(graph), nodes=99, min_share=0.1, negative=True, residual=True)
    drawn = {to_hex(c.get_edgecolor()[0]): c for c in figure.axes[0].collections}
    for colour, sign in ((FOR, 1), (AGAINST, -1)):
        shares = [abs(edge.share) for edge in shown.edges if edge.share * sign > 0]
        assert len(shares) > 3
        widths = drawn[colour.lower()].get_linewidths()
        ratios = [width / share for width, share in zip(widths, shares, strict=True)]
        assert max(ratios) == pytest.approx(min(ratios))


def test_the_caption_tells_what_is_not_drawn(graph: dict[str, Any]) -> None:
    texts = " ".join(text.get_text() for text in graph_figure(graph, nodes=3, min_share=0.1).texts)
    shown = select(read(graph), nodes=3, min_share=0.1, negative=True, residual=True)
    assert f"{len(shown.edges)} of {len(graph['edges'])} edges" in texts
    assert f"{100 * shown.mass:.0f} % of the mass" in texts
    assert "made up · nothing.png · IntegratedGradients" in texts


@pytest.mark.parametrize("kind", ["png", "svg"])
def test_files_are_written_without_pyplot(graph: dict[str, Any], tmp_path: Path, kind: str) -> None:
    before = "matplotlib.pyplot" in sys.modules
    path = tmp_path / f"graph.{kind}"
    save_figure(graph_figure(graph, min_share=0.05), path, dpi=50)
    assert path.read_bytes()[:5] in (b"\x89PNG\r", b"<?xml")
    assert before or "matplotlib.pyplot" not in sys.modules


def test_a_graph_without_pictures_edges_or_importance_is_drawn(graph: dict[str, Any]) -> None:
    bare = copy.deepcopy(graph)
    bare["edges"] = []
    for node in bare["nodes"]:
        for name in ("field", "exemplars", "importance", "tags", "map", "activation"):
            node.pop(name, None)
    texts = " ".join(text.get_text() for text in graph_figure(bare).texts)
    assert "0 of 0 edges" in texts


def test_a_label_is_text_and_not_mathematics(graph: dict[str, Any], tmp_path: Path) -> None:
    odd = copy.deepcopy(graph)
    odd["nodes"][0]["label"] = "$\\frac{$ 100 % <b> & ünïcödé"
    odd["nodes"][0]["importance"] = {"281": 99.0}
    save_figure(graph_figure(odd, title="$x_"), tmp_path / "odd.svg")


@pytest.mark.parametrize(("nodes", "min_share"), [(0, 0.1), (3, -0.1), (3, 1.5)])
def test_settings_out_of_range_are_refused(graph: dict[str, Any], nodes: int, min_share: float) -> None:
    with pytest.raises(InputError, match="at least 1"):
        graph_figure(graph, nodes=nodes, min_share=min_share)


def _broken(path: str, value: Any) -> dict[str, Any]:
    graph = example_graph(layers=3, nodes=4)
    part, number, key = path.split(".")
    (graph[part][int(number)] if number else graph)[key] = value
    return graph


@pytest.mark.parametrize(
    ("graph", "error", "told"),
    [
        (_broken("..format", 2), InputError, "format 1"),
        (_broken("nodes.0.kind", "concpt"), UnknownNameError, "concept"),
        (_broken("nodes.0.layer", "block.0"), UnknownNameError, "blocks.0"),
        (_broken("nodes.1.id", "blocks.0/rest"), InputError, "twice"),
        (_broken("edges.0.source", "blocks.0/9999"), UnknownNameError, "edge"),
        (_broken("edges.0.share", float("nan")), InputError, "finite"),
        (_broken("nodes.0.importance", {"281": "much"}), InputError, "finite"),
        (_broken("nodes.0.map", [[1.0], [1.0, 2.0]]), InputError, "map"),
        (_broken("nodes.0.field", "https://example.org/a.png"), InputError, "data URL"),
        (_broken("nodes.0.field", 'data:image/png;base64,AAAA" onload="x'), InputError, "data URL"),
        (_broken("nodes.0.field", "data:image/svg+xml;base64,AAAA"), InputError, "data URL"),
    ],
)
def test_what_is_no_concept_graph_is_refused(graph: dict[str, Any], error: type[Exception], told: str) -> None:
    with pytest.raises(error, match=told):
        read(graph)


def test_a_missing_field_is_named() -> None:
    graph = example_graph(layers=2, nodes=4)
    del graph["edges"][0]["share"]
    with pytest.raises(InputError, match="share"):
        read(graph)


def test_classes_are_named_in_the_order_of_the_last_column() -> None:
    assert list(read(example_graph(layers=2, nodes=3)).classes.items())[:3] == list(CLASSES.items())
