"""Layered layout: layers as columns from left to right, nodes in an order in which heavy edges seldom cross.

Sugiyama's scheme with weights (Sugiyama, Tagawa and Toda 1981): two edges between the same two columns that cross cost
the product of their weights. Barycentre sweeps and shuffles give starts, sifting (Matuszewski, Schönfeld and Molitor
1999) improves each until no node can move to a better place in its column; the best is kept. Deterministic, and never
worse than the order given; to tell which order is optimal is NP-hard, and the one found need not be it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import numpy as np

from backlight.errors import InputError
from backlight.shapes import Float

Columns = list[list[str]]
Weighted = Sequence[tuple[str, str, float]]  # source, target, weight

SWEEPS = 12
SHUFFLES = 16
PASSES = 20  # of sifting over all columns; small graphs need two or three
BETTER = 1e-9  # of the cost: less is rounding


def ordered(columns: Sequence[Sequence[str]], edges: Weighted, last: Collection[str] = ()) -> Columns:
    """Columns with their nodes in an order of few crossings.

    Args:
        columns: ids of nodes, from the earliest layer on; every id once.
        edges: between nodes of different columns; a weight is an edge's |share|, 1 counts crossings.
        last: nodes that stay at the end of their column, in the order given: residuals.

    Cost: a matrix product of its weights and O(n^2) a column and pass of sifting, from 29 starts.

    Raises:
        InputError: an id twice, an edge to an unknown id, or one within a column.
    """
    start = [
        [*(one for one in column if one not in last), *(one for one in column if one in last)] for column in columns
    ]
    weights = _Weights(start, edges)
    held = [sum(one in last for one in column) for column in start]
    first = [list(range(len(column))) for column in start]
    best, lowest = first, weights.cost(first)
    for order in _starts(first, weights, held):
        for _ in range(PASSES):
            if not sum(_sift(order, column, weights, held[column]) for column in range(len(order))):
                break
        cost = weights.cost(order)
        if cost < lowest * (1 - BETTER):
            best, lowest = order, cost
    return [[column[place] for place in places] for column, places in zip(start, best, strict=True)]


def crossings(columns: Sequence[Sequence[str]], edges: Weighted) -> float:
    """Sum over pairs of edges that cross of the product of their weights; with weights of 1, their number.

    Edges cross where they join the same two columns and their ends are in opposite orders; edges with a common end do
    not. O(n m) for two columns of n and m nodes.

    Raises:
        InputError: as `ordered`.
    """
    return _Weights(columns, edges).cost([list(range(len(column))) for column in columns])


def places(columns: Sequence[Sequence[str]], across: float = 1.0, along: float = 1.0) -> dict[str, tuple[float, float]]:
    """(x, y) of every node: columns `across` apart, nodes `along` apart, columns centred; y grows downwards from 0."""
    most = max((len(column) for column in columns), default=0)
    return {
        one: (number * across, ((most - len(column)) / 2 + place) * along)
        for number, column in enumerate(columns)
        for place, one in enumerate(column)
    }


class _Weights:
    """The edges as one matrix `[n, m]` for each two columns that edges join."""

    def __init__(self, columns: Sequence[Sequence[str]], edges: Weighted) -> None:
        place: dict[str, tuple[int, int]] = {}
        for number, column in enumerate(columns):
            for row, one in enumerate(column):
                if one in place:
                    raise InputError(f"node {one!r} stands in the columns twice")
                place[one] = (number, row)
        self.between: dict[tuple[int, int], np.ndarray] = {}
        for source, target, weight in edges:
            for one in (source, target):
                if one not in place:
                    raise InputError(f"an edge {source!r} -> {target!r} needs {one!r}, which is in no column")
            (early, row), (late, column_) = place[source], place[target]
            if early == late:
                raise InputError(f"the edge {source!r} -> {target!r} stays within a column")
            if early > late:
                early, row, late, column_ = late, column_, early, row
            shape = (len(columns[early]), len(columns[late]))
            self.between.setdefault((early, late), np.zeros(shape))[row, column_] += weight
        self.columns = len(columns)

    def cost(self, order: Sequence[Sequence[int]]) -> float:
        """Weighted crossings."""
        total = 0.0
        for (early, late), matrix in self.between.items():
            sorted_ = matrix[np.ix_(order[early], order[late])]
            total += float((sorted_[:-1, 1:] * _below_left(sorted_)[1:, :-1]).sum()) if min(sorted_.shape) > 1 else 0.0
        return total

    def beside(self, column: int, order: Sequence[Sequence[int]]) -> list[tuple[int, Float[np.ndarray, "n m"]]]:
        """(other column, weights with that column in its present order), of all columns joined to this one."""
        found = []
        for (early, late), matrix in self.between.items():
            if column == early:
                found.append((late, matrix[:, order[late]]))
            elif column == late:
                found.append((early, matrix.T[:, order[early]]))
        return found


def _below_left(matrix: Float[np.ndarray, "n m"]) -> Float[np.ndarray, "n m"]:
    """`[i, j]`: sum over rows >= i and columns <= j."""
    return matrix[::-1].cumsum(0)[::-1].cumsum(1)


def _starts(first: list[list[int]], weights: _Weights, held: Sequence[int]) -> Iterator[list[list[int]]]:
    """Orders for sifting to start from: the one given, what barycentre sweeps make of it, and seeded shuffles."""
    order = [list(one) for one in first]
    for sweep in range(SWEEPS + 1):
        yield [list(one) for one in order]
        _sweep(order, weights, held, backwards=sweep % 2 == 1)
    random = np.random.default_rng(0)
    for _ in range(SHUFFLES):
        free = [random.permutation(len(one) - keep).tolist() for one, keep in zip(first, held, strict=True)]
        yield [[*some, *range(len(some), len(one))] for some, one in zip(free, first, strict=True)]


def _sweep(order: list[list[int]], weights: _Weights, held: Sequence[int], backwards: bool) -> None:
    """Sort every column by the weighted mean place of its neighbours on the side that the sweep comes from."""
    numbers = range(weights.columns)
    for column in reversed(numbers) if backwards else numbers:
        total, mass = np.zeros(len(order[column])), np.zeros(len(order[column]))
        for other, matrix in weights.beside(column, order):
            if (other > column) == backwards:
                at = (np.arange(matrix.shape[1]) + 0.5) / matrix.shape[1]
                total += matrix @ at
                mass += matrix.sum(1)
        free = len(order[column]) - held[column]
        own = {one: (place + 0.5) / len(order[column]) for place, one in enumerate(order[column])}
        mean = {one: total[one] / mass[one] if mass[one] > 0 else own[one] for one in order[column]}
        order[column] = [*sorted(order[column][:free], key=mean.__getitem__), *order[column][free:]]


def _sift(order: list[list[int]], column: int, weights: _Weights, held: int) -> bool:
    """Move every free node of a column to its best place; whether any moved."""
    size = len(order[column])
    free = size - held
    if free < 2:
        return False
    before = np.zeros((size, size))  # [u, v]: crossings of u's edges with v's while u stands before v
    for _, matrix in weights.beside(column, order):
        behind = np.hstack([np.zeros((size, 1)), matrix.cumsum(1)[:, :-1]])
        before += matrix @ behind.T
    moved = False
    scale = before.sum() * BETTER
    for one in list(order[column][:free]):
        present = order[column].index(one)
        others = [other for other in order[column] if other != one]
        turn = before[others, one] - before[one, others]  # what stepping past each of them adds
        costs = np.concatenate([[0.0], np.cumsum(turn)])[:free]
        best = int(costs.argmin())
        if costs[best] < costs[present] - scale:
            order[column] = [*others[:best], one, *others[best:]]
            moved = True
    return moved
