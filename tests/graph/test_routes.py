"""Dominant routes are those that trying all of them finds."""

from __future__ import annotations

import math

import pytest

pytest.importorskip("networkx")

import networkx as nx
from hypothesis import given, settings
from hypothesis import strategies as st
from random_graphs import random_graph

from backlight.errors import InputError, UnknownNameError
from backlight.graph.concept_graph import ConceptGraph


def all_routes(graph: ConceptGraph, end: str, sign: str, kinds: tuple[str, ...]) -> list[tuple[float, tuple[str, ...]]]:
    """(product, nodes) of every path, by depth-first search."""
    nodes = graph.graph.nodes
    part = graph.graph.subgraph([n for n in nodes if nodes[n]["kind"] in kinds or n == end])
    found = []
    for start in [n for n in part if nodes[n]["layer"] == graph.sites[0]]:
        for path in nx.all_simple_paths(part, start, end):
            shares = [part.edges[edge]["share"] for edge in nx.utils.pairwise(path)]
            product = math.prod(shares)
            if (sign == "positive" and min(shares) <= 0) or (sign == "negative" and product >= 0):
                continue
            found.append((product, tuple(path)))
    return sorted(found, key=lambda one: (-abs(one[0]), one[1]))


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10**6),
    st.lists(st.integers(1, 4), min_size=1, max_size=4),
    st.booleans(),
    st.integers(1, 12),
    st.sampled_from(["positive", "negative", "any"]),
    st.sampled_from([("concept",), ("concept", "residual", "rest")]),
)
def test_against_all_paths(
    seed: int, widths: list[int], leaps: bool, count: int, sign: str, kinds: tuple[str, ...]
) -> None:
    graph = random_graph(seed, tuple(widths), leaps=leaps)
    found = graph.routes(1, count, sign, kinds=kinds)
    truth = all_routes(graph, "output/1", sign, kinds)[:count]
    assert [route.nodes for route in found] == [nodes for _, nodes in truth]
    for route, (product, _) in zip(found, truth, strict=True):
        assert route.strength == pytest.approx(product)
        assert len(route.shares) == len(route.nodes) - 1


def test_two_wrongs_make_a_right() -> None:
    graph = random_graph(0, (1, 1), classes=1)
    graph.graph.remove_edges_from(list(graph.graph.edges))
    graph.graph.add_edge("a/0", "b/0", weight=-1.0, share=-0.5)
    graph.graph.add_edge("b/0", "output/0", weight=-1.0, share=-0.5)
    assert graph.routes(0) == []
    assert graph.routes(0, sign="negative") == []
    assert [route.strength for route in graph.routes("name 0", sign="any")] == [0.25]
    assert graph.routes(0, sign="any")[0].as_json() == {
        "nodes": ["a/0", "b/0", "output/0"], "shares": [-0.5, -0.5], "strength": 0.25}  # fmt: skip


def test_wrong_questions_are_answered_so() -> None:
    graph = random_graph(1)
    with pytest.raises(UnknownNameError, match="name 0"):
        graph.routes("nam 0")
    with pytest.raises(UnknownNameError, match="positive"):
        graph.routes(0, sign="positiv")
    with pytest.raises(UnknownNameError, match="residual"):
        graph.routes(0, kinds=["residua"])
    with pytest.raises(InputError, match="at least one"):
        graph.routes(0, 0)
