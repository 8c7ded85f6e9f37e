"""The insertion test without networks: orders, curves and areas against closed forms."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from backlight.concepts.insertion import (
    InsertionCurves,
    budgets_of,
    insertion_curve,
    insertion_curves,
    normalised,
    ranks_of,
    stochastic_gain,
)
from backlight.errors import InputError, UnknownNameError


class Linear:
    """z = sum of the contributions of what is there, plus a constant; counts what it is asked."""

    def __init__(self, parts: Tensor, constant: float = 0.0) -> None:
        self.parts, self.constant, self.asked, self.sizes = parts.double(), constant, 0, list[int]()

    def __call__(self, rows: Tensor, masks: Tensor) -> Tensor:
        self.asked += len(rows)
        self.sizes.append(len(rows))
        return (self.parts[rows] * masks).sum(1) + self.constant


def test_budgets_are_the_lab_s() -> None:
    assert budgets_of("lab", 256).tolist() == [0, 1, 2, 4, *range(8, 257, 8)]
    assert budgets_of("lab", 49).tolist() == [0, 1, 2, 4, 8, 16, 24, 32, 40, 48, 49]
    assert budgets_of("lab", 5).tolist() == [0, 1, 2, 4, 5]
    assert budgets_of("doubling", 49).tolist() == [0, 1, 2, 4, 8, 16, 32, 49]
    assert budgets_of("doubling", 1).tolist() == [0, 1]
    assert budgets_of(4, 10).tolist() == [0, 2, 5, 8, 10]
    assert budgets_of(100, 3).tolist() == [0, 1, 2, 3]
    assert budgets_of([5, 2], 9).tolist() == [0, 2, 5, 9]


@pytest.mark.parametrize("steps", [0, [10], [-1], [True]])
def test_budgets_that_cannot_be(steps: object) -> None:
    with pytest.raises(InputError):
        budgets_of(steps, 9)  # type: ignore[arg-type]


def test_an_unknown_schedule_lists_close_ones() -> None:
    with pytest.raises(UnknownNameError, match="doubling"):
        budgets_of("doublng", 9)


def test_ties_keep_the_order_of_their_index() -> None:
    assert ranks_of(torch.tensor([[1.0, 3.0, 1.0, 3.0, 1.0]])).tolist() == [[2, 0, 3, 1, 4]]
    with pytest.raises(InputError, match="no order"):
        ranks_of(torch.tensor([[1.0, torch.nan]]))


def test_a_linear_response_has_the_sums_of_its_largest_parts() -> None:
    """Sorted contributions c: after k patches their sum; the area is sum over i of c_(i) (P - i + 1/2) / P."""
    parts = torch.randn(4, 12, dtype=torch.float64)
    budgets = budgets_of(12, 12)
    curve = insertion_curve(Linear(parts, 0.5), parts, budgets)
    ordered = parts.sort(dim=1, descending=True).values
    expected = torch.cat((torch.zeros(4, 1), ordered.cumsum(1)), 1) + 0.5
    torch.testing.assert_close(curve, expected)
    found = InsertionCurves(("own",), curve[None], budgets, 12, torch.zeros(4, dtype=torch.long))
    weights = (12 - torch.arange(1, 13, dtype=torch.float64) + 0.5) / 12
    torch.testing.assert_close(found.auc[0], ((ordered * weights).sum(1) + 0.5) / (parts.sum(1) + 0.5))


def test_deletion_is_what_is_left() -> None:
    parts = torch.rand(3, 9, dtype=torch.float64)
    budgets = budgets_of([1, 4], 9)
    there = insertion_curve(Linear(parts), parts, budgets)
    gone = insertion_curve(Linear(parts), parts, budgets, delete=True)
    torch.testing.assert_close(there + gone, parts.sum(1, keepdim=True).expand(3, 4))
    found = InsertionCurves(("own",), gone[None], budgets, 9, torch.zeros(3, dtype=torch.long), delete=True)
    torch.testing.assert_close(found.full, parts.sum(1))
    assert found.empty.eq(0).all()


def test_the_right_order_beats_chance_beats_the_reverse() -> None:
    parts = torch.rand(8, 30, dtype=torch.float64) ** 4
    random = torch.rand(8, 30, dtype=torch.float64)
    budgets = budgets_of("doubling", 30)
    curves = insertion_curves(Linear(parts), torch.stack((parts, random, -parts)), budgets)
    area = InsertionCurves(("a", "b", "c"), curves, budgets, 30, torch.zeros(8, dtype=torch.long)).auc
    assert (area[0] > area[1]).all()
    assert (area[1] > area[2]).all()
    torch.testing.assert_close(area[1].mean(), torch.tensor(0.5, dtype=torch.float64), atol=0.08, rtol=0)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 12), st.integers(1, 4), st.integers(1, 3), st.integers(1, 40), st.integers(0, 10**6))
def test_curves_are_those_of_a_slow_loop_at_any_batch_size(
    count: int, rows: int, methods: int, batch: int, seed: int
) -> None:
    draw = torch.Generator().manual_seed(seed)
    parts = torch.randn(rows, count, generator=draw, dtype=torch.float64)
    scores = torch.randint(0, 4, (methods, rows, count), generator=draw).double()  # with ties
    budgets = budgets_of("doubling", count)
    response = Linear(parts)
    found = insertion_curves(response, scores, budgets, batch_size=batch)
    assert max(response.sizes) <= batch
    assert response.asked == rows * (2 + methods * (len(budgets) - 2))
    for one in range(methods):
        for row in range(rows):
            order = sorted(range(count), key=lambda patch, o=one, r=row: (-float(scores[o, r, patch]), patch))
            for place, budget in enumerate(budgets.tolist()):
                expected = sum(float(parts[row, patch]) for patch in order[:budget])
                assert abs(float(found[one, row, place]) - expected) < 1e-9


def test_pairs_without_a_value_are_dropped_and_counted() -> None:
    curves = torch.tensor([[[0.0, 1.0, 2.0], [0.0, 5.0, 0.0], [1.0, -3.0, -2.0]]], dtype=torch.float64)
    found = InsertionCurves(("a",), curves, torch.tensor([0, 1, 2]), 2, torch.zeros(3, dtype=torch.long))
    assert found.dropped == 1
    assert found.normalised[0, 0].tolist() == [0, 0.5, 1]
    assert found.normalised[0, 1].isnan().all()
    assert found.normalised[0, 2].tolist() == [-0.5, 1.5, 1]
    assert found.auc[0, 0] == 0.5
    assert found.auc[0, 1].isnan()
    clipped = normalised(curves, found.full, clip=True)
    assert clipped[0, 2].tolist() == [-0.5, 1, 1]


def test_draws_by_the_scores_gain_over_uniform_ones() -> None:
    parts = torch.rand(3, 16, dtype=torch.float64) ** 3
    budgets = budgets_of(8, 16)
    gain = stochastic_gain(Linear(parts), parts, budgets, draws=64)
    assert (gain[:, 1:-1] > 0).all()
    assert gain[:, [0, -1]].eq(0).all()
    assert stochastic_gain(Linear(parts), torch.ones_like(parts), budgets, draws=3).eq(0).all()
    again = stochastic_gain(Linear(parts), parts, budgets, draws=64)
    assert torch.equal(gain, again)
    assert not torch.equal(gain, stochastic_gain(Linear(parts), parts, budgets, draws=64, seed=1))
    own = stochastic_gain(Linear(parts), parts, budgets, draws=4, seed=[5, 6, 7])
    alone = stochastic_gain(Linear(parts[1:2]), parts[1:2], budgets, draws=4, seed=6)
    torch.testing.assert_close(own[1:2], alone)


def test_draws_follow_the_probabilities() -> None:
    """The first patch is drawn with probability score / sum: the first step's mean is the sum of p c."""
    scores = torch.tensor([[1.0, 2.0, 5.0]], dtype=torch.float64)
    parts = torch.tensor([[1.0, 0.0, 10.0]], dtype=torch.float64)
    gain = stochastic_gain(Linear(parts), scores, torch.tensor([0, 1, 3]), draws=4000)
    expected = (1 / 8 + 5 / 8 * 10) - 11 / 3
    assert abs(float(gain[0, 1]) - expected) < 0.25


def test_what_cannot_be_asked() -> None:
    parts = torch.rand(2, 4)
    with pytest.raises(InputError, match="budgets"):
        insertion_curve(Linear(parts), parts, torch.tensor([0, 5]))
    with pytest.raises(InputError, match="batch_size"):
        insertion_curve(Linear(parts), parts, torch.tensor([0, 4]), batch_size=0)
    with pytest.raises(InputError, match="draw"):
        stochastic_gain(Linear(parts), parts, torch.tensor([0, 4]), draws=0)
