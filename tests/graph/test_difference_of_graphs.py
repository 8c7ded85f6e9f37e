"""Two graphs side by side."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("networkx")

from random_graphs import random_graph

from backlight.errors import InputError, UnknownNameError
from backlight.graph.difference import THE_CLASS


def test_a_graph_does_not_differ_from_itself() -> None:
    graph = random_graph(1)
    found = graph.difference(graph)
    assert found.classes == (0, 0)
    assert not found.only_first
    assert not found.only_second
    assert all(one.importance.difference == 0 == one.activation.difference for one in found.nodes)
    assert all(one.share.difference == 0 == one.weight.difference for one in found.edges)


def test_numbers_stand_side_by_side() -> None:
    a, b = random_graph(1), random_graph(2)
    found = a.difference(b, (1, 1))
    changes = [abs(one.importance.difference) for one in found.nodes]
    assert changes == sorted(changes, reverse=True)
    assert {one.node for one in found.nodes} == {n for n in a.graph if n != "output/0"}
    for one in found.nodes:
        assert one.importance.first == a.graph.nodes[one.node]["importance"]["1"]
        assert one.importance.second == b.graph.nodes[one.node]["importance"]["1"]
    for edge in found.edges:
        first, second = (
            g.graph.get_edge_data(edge.source, edge.target, {"share": 0.0})["share"] for g in (a, b))  # fmt: skip
        assert (edge.share.first, edge.share.second) == (first, second)
        assert edge.share.difference == second - first
    assert {(e.source, e.target) for e in found.edges} == {
        e for e in (*a.graph.edges, *b.graph.edges) if e[1] != "output/0"}  # fmt: skip


def test_nodes_that_appear_and_vanish() -> None:
    a, b = random_graph(1), random_graph(1)
    a.graph.remove_node("b/3")
    b.graph.remove_node("c/0")
    found = a.difference(b)
    assert (found.only_first, found.only_second) == (("c/0",), ("b/3",))
    one = next(one for one in found.nodes if one.node == "c/0")
    assert one.importance.second is None
    assert one.importance.difference == -one.importance.first  # type: ignore[operator]
    into = next(e for e in found.edges if e.target == "b/3")
    assert into.share.first is None
    assert "only in the first: c/0" in found.summary()


def test_class_against_class() -> None:
    graph = random_graph(3)
    found = graph.difference(graph, ("name 0", "name 1"))
    assert found.classes == (0, 1)
    into = {e.source: e for e in found.edges if e.target == THE_CLASS}
    for source in graph.of_layer("c"):
        if source in into:
            first, second = (
                graph.graph.get_edge_data(source, f"output/{c}", {"weight": 0.0})["weight"] for c in (0, 1)
            )
            assert (into[source].weight.first, into[source].weight.second) == (first, second)
    assert all(e.share.difference == 0 for e in found.edges if e.target != THE_CLASS)
    node = next(one for one in found.nodes if one.node == "a/1")
    held = graph.graph.nodes["a/1"]["importance"]
    assert node.importance.difference == held["1"] - held["0"]
    assert json.loads(json.dumps(found.as_json(), allow_nan=False))["classes"] == [0, 1]


def test_graphs_without_a_common_class() -> None:
    a, b = random_graph(1, classes=2), random_graph(2, classes=2)
    a.graph.remove_node("output/1")
    b.graph.remove_node("output/0")
    with pytest.raises(InputError, match="classes="):
        a.difference(b)
    assert a.difference(b, (0, 1)).classes == (0, 1)
    with pytest.raises(UnknownNameError):
        a.difference(b, (1, 1))
