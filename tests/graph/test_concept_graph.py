"""Concept graphs as a file, in part, and in words."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("networkx")

from random_graphs import random_graph

from backlight.errors import InputError, UnknownNameError
from backlight.graph.concept_graph import ConceptGraph


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    graph = random_graph(3, leaps=True)
    graph.save(tmp_path / "graph.json")
    read = ConceptGraph.load(tmp_path / "graph.json")
    assert read.as_json() == graph.as_json()
    assert list(read.graph.nodes(data=True)) == list(graph.graph.nodes(data=True))
    assert list(read.graph.edges(data=True)) == list(graph.graph.edges(data=True))
    assert [path.name for path in tmp_path.iterdir()] == ["graph.json"]
    value = json.loads((tmp_path / "graph.json").read_text())
    assert set(value) == {"format", "about", "layers", "nodes", "edges", "completeness"}
    assert {"id", "layer", "kind", "concept", "label", "tags", "importance", "activation", "shared", "map"} <= set(
        value["nodes"][0])  # fmt: skip
    assert set(value["edges"][0]) == {"source", "target", "weight", "share"}


def test_a_graph_that_cannot_be_written_leaves_the_old_file(tmp_path: Path) -> None:
    graph = random_graph(3)
    graph.save(tmp_path / "graph.json")
    before = (tmp_path / "graph.json").read_bytes()
    graph.graph.nodes["a/0"]["activation"] = float("nan")
    with pytest.raises(InputError, match="JSON"):
        graph.save(tmp_path / "graph.json")
    assert (tmp_path / "graph.json").read_bytes() == before


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda v: v.update(format=2), "format 2"),
        (lambda v: v.pop("format"), "no concept graph"),
        (lambda v: v.pop("edges"), "without edges"),
        (lambda v: v["edges"].append({"source": "a/0", "target": "z/9", "weight": 1.0, "share": 1.0}), "z/9"),
        (lambda v: v["nodes"][0].update(layer="z"), "a/0"),
        (lambda v: v["nodes"][0].update(kind="thing"), "a/0"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, change: object, word: str) -> None:
    value = random_graph(3).as_json()
    change(value)  # type: ignore[operator]
    (tmp_path / "g.json").write_text(json.dumps(value))
    with pytest.raises(InputError, match=word):
        ConceptGraph.load(tmp_path / "g.json")


def test_files_that_are_not_there_or_no_json(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read"):
        ConceptGraph.load(tmp_path / "none.json")
    (tmp_path / "g.json").write_text("{")
    with pytest.raises(InputError, match="cannot read"):
        ConceptGraph.load(tmp_path / "g.json")


def test_filters_keep_what_they_say() -> None:
    graph = random_graph(4, leaps=True)
    held = graph.graph.edges(data="share")
    strong = graph.filtered(min_share=0.2)
    assert set(strong.graph.edges) == {(a, b) for a, b, share in held if abs(share) >= 0.2}
    assert all(strong.graph.degree(n) for n in strong.graph if not n.startswith("output"))
    assert [strong.graph.edges[e]["share"] for e in strong.graph.edges] == [
        graph.graph.edges[e]["share"] for e in strong.graph.edges]  # fmt: skip
    part = graph.filtered(layers=["a", "c"])
    assert {n[0] for n in part.graph} == {"a", "c"}
    assert part.sites == ["a", "c"]
    assert [(one["source"], one["target"]) for one in part.completeness] == [("a", "c")]
    assert {graph.graph.nodes[n]["kind"] for n in graph.filtered(kinds=["concept", "class"]).graph} == {
        "concept",
        "class",
    }
    assert graph.filtered().as_json() == graph.as_json()


def test_a_filter_by_class_keeps_its_concepts() -> None:
    graph = random_graph(5)
    one = graph.filtered(classes=["name 1"])
    assert one.classes == [1]
    for node, held in graph.graph.nodes(data=True):
        own = held["kind"] in ("rest", "residual") or held.get("class") == 1
        own |= held["kind"] == "concept" and (held["shared"] or 1 in held["chosen_for"])
        assert (node in one.graph) == own
    assert graph.filtered(classes=[0, 1]).classes == [0, 1]


def test_filters_name_what_is_not_there() -> None:
    graph = random_graph(5)
    for wrong in ({"layers": ["z"]}, {"classes": [7]}, {"kinds": ["thing"]}):
        with pytest.raises(UnknownNameError):
            graph.filtered(**wrong)  # type: ignore[arg-type]


def test_masses_of_a_pair_sum_to_one() -> None:
    graph = random_graph(6)
    assert graph.pairs() == [("a", "b"), ("b", "c"), ("c", "output")]
    for pair in graph.pairs():
        masses = [graph.mass(*pair, kind) for kind in ("concept", "rest", "residual")]
        assert sum(masses) == pytest.approx(1)
    by_hand = [abs(graph.graph.get_edge_data("c/residual", f"output/{c}", {"share": 0.0})["share"]) for c in (0, 1)]
    assert graph.mass("c", "output", "residual") == pytest.approx(sum(by_hand) / 2)
    assert graph.mass("a", "c", "residual") == 0.0


def test_summary_says_routes_and_residual() -> None:
    text = random_graph(7).summary(2)
    for word in ("none, image 7", "a -> b: residual", "name 1 (1)", "output/1"):
        assert word in text
    assert ConceptGraph().summary()


def test_names_of_concepts_and_classes() -> None:
    graph = random_graph(8)
    assert graph.concepts() == {"a": [0, 1, 2], "b": [0, 1, 2, 3], "c": [0, 1, 2]}
    assert graph.class_node("name 1") == graph.class_node(1) == graph.class_node("1") == "output/1"
    weights = [abs(held["weight"]) for _, held in graph.edges_into("b/0")]
    assert weights == sorted(weights, reverse=True)
