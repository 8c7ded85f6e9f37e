"""Layered layout: the crossings of an order by a literal count, optima of small graphs, nothing made worse."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backlight.errors import InputError
from backlight.viz.graph_layout import crossings, ordered, places

Edges = list[tuple[str, str, float]]


def counted(columns: list[list[str]], edges: Edges) -> float:
    """Every pair of edges, one by one."""
    at = {one: (number, row) for number, column in enumerate(columns) for row, one in enumerate(column)}
    total = 0.0
    for (a, b, weight), (c, d, other) in itertools.combinations(edges, 2):
        if at[a][0] == at[c][0] and at[b][0] == at[d][0]:
            total += weight * other * ((at[a][1] - at[c][1]) * (at[b][1] - at[d][1]) < 0)
    return total


@st.composite
def graphs(draw: st.DrawFn, most: int = 6) -> tuple[list[list[str]], Edges]:
    sizes = draw(st.lists(st.integers(1, most), min_size=2, max_size=4))
    columns = [[f"{number}/{row}" for row in range(size)] for number, size in enumerate(sizes)]
    pairs = [
        (a, b) for early, late in itertools.combinations(range(len(sizes)), 2) for a in columns[early]
        for b in columns[late]
    ]  # fmt: skip
    chosen = draw(st.lists(st.sampled_from(pairs), unique=True, max_size=25))
    weights = draw(st.lists(st.floats(0.01, 1), min_size=len(chosen), max_size=len(chosen)))
    return columns, [(a, b, weight) for (a, b), weight in zip(chosen, weights, strict=True)]


@settings(max_examples=60, deadline=None)
@given(graphs())
def test_crossings_are_those_counted_pair_by_pair(graph: tuple[list[list[str]], Edges]) -> None:
    columns, edges = graph
    assert crossings(columns, edges) == pytest.approx(counted(columns, edges))
    unit = [(a, b, 1.0) for a, b, _ in edges]
    assert crossings(columns, unit) == counted(columns, unit)


@settings(max_examples=60, deadline=None)
@given(graphs(), st.booleans())
def test_an_order_is_a_permutation_and_never_worse(graph: tuple[list[list[str]], Edges], unit: bool) -> None:
    columns, edges = graph
    edges = [(a, b, 1.0 if unit else weight) for a, b, weight in edges]
    found = ordered(columns, edges)
    assert [sorted(column) for column in found] == [sorted(column) for column in columns]
    assert counted(found, edges) <= counted(columns, edges) + 1e-9
    assert ordered(columns, edges) == found


@settings(max_examples=40, deadline=None)
@given(graphs(most=5))
def test_no_single_move_within_a_column_is_better(graph: tuple[list[list[str]], Edges]) -> None:
    columns, edges = graph
    found = ordered(columns, edges)
    cost = counted(found, edges)
    for number, column in enumerate(found):
        for one, place in itertools.product(column, range(len(column))):
            rest = [other for other in column if other != one]
            moved = [*found[:number], [*rest[:place], one, *rest[place:]], *found[number + 1 :]]
            assert counted(moved, edges) >= cost - 1e-6


def test_a_scrambled_matching_has_no_crossing_left() -> None:
    random = np.random.default_rng(3)
    columns = [[f"{number}/{row}" for row in random.permutation(12).tolist()] for number in range(5)]
    edges = [(f"{number}/{row}", f"{number + 1}/{row}", 1.0) for number in range(4) for row in range(12)]
    assert crossings(columns, edges) > 0
    assert crossings(ordered(columns, edges), edges) == 0


@pytest.mark.parametrize("seed", range(8))
def test_two_small_columns_come_to_the_optimum_of_all_orders(seed: int) -> None:
    random = np.random.default_rng(seed)
    left, right = [f"a/{n}" for n in range(4)], [f"b/{n}" for n in range(4)]
    edges = [(a, b, float(random.exponential())) for a in left for b in right if random.random() < 0.6]
    best = min(
        crossings([list(one), list(other)], edges)
        for one in itertools.permutations(left)
        for other in itertools.permutations(right)
    )
    assert crossings(ordered([left, right], edges), edges) == pytest.approx(best, abs=1e-9)


def test_a_tree_is_drawn_without_crossings_and_k33_with_nine() -> None:
    tree = [("r", f"s{one}", 1.0) for one in (2, 0, 1)] + [(f"s{n % 3}", f"t{n}", 1.0) for n in range(9)]
    columns = [["r"], ["s0", "s1", "s2"], [f"t{n}" for n in range(9)]]
    assert crossings(columns, tree) > 0
    assert crossings(ordered(columns, tree), tree) == 0
    full = [(a, b, 1.0) for a in "abc" for b in "xyz"]
    assert crossings(ordered([list("abc"), list("xyz")], full), full) == 9


def test_heavy_edges_are_kept_apart_rather_than_light_ones() -> None:
    """All of K(2, 2) cannot be drawn without a crossing: the light pair crosses."""
    edges = [("a", "x", 0.1), ("a", "y", 1.0), ("b", "x", 1.0), ("b", "y", 0.1)]
    found = ordered([["a", "b"], ["x", "y"]], edges)
    assert crossings(found, edges) == pytest.approx(0.01)


def test_residuals_stay_at_the_end() -> None:
    edges = [("a", "y", 1.0), ("b", "x", 1.0), ("residual", "x", 5.0), ("a", "x", 0.2)]
    found = ordered([["residual", "a", "b"], ["x", "y"]], edges, last={"residual"})
    assert found[0][-1] == "residual"
    assert sorted(found[0]) == ["a", "b", "residual"]


def test_places_are_centred_columns() -> None:
    found = places([["a", "b", "c", "d"], ["x", "y"]], across=2.0, along=0.5)
    assert found["a"] == (0.0, 0.0)
    assert found["d"] == (0.0, 1.5)
    assert found["x"] == (2.0, 0.5)
    assert found["y"] == (2.0, 1.0)


@pytest.mark.parametrize(
    ("columns", "edges", "told"),
    [
        ([["a"], ["a"]], [], "twice"),
        ([["a"], ["b"]], [("a", "c", 1.0)], "no column"),
        ([["a", "b"]], [("a", "b", 1.0)], "within"),
    ],
)
def test_what_cannot_be_laid_out_is_told(columns: list[list[str]], edges: Edges, told: str) -> None:
    with pytest.raises(InputError, match=told):
        ordered(columns, edges)
