"""Specificity and coverage in closed form; stability of equal, shuffled and unrelated decompositions."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import pearsonr

from backlight.contributions.modes import top_channels
from backlight.contributions.specificity import coverage, specificity
from backlight.contributions.stability import class_atoms, match, stability
from backlight.errors import InputError


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def test_one_class_and_all_classes_are_the_ends() -> None:
    r = torch.tensor([[0.5, -0.3, 0, 0, -0.1, 0, 0, 0], [0.2] * 8, [-0.1] * 8])
    found = specificity(r)
    torch.testing.assert_close(found.entropy, torch.tensor([1, 0, math.nan]).double(), equal_nan=True)
    torch.testing.assert_close(found.gini, torch.tensor([7 / 8, 0, math.nan]).double(), equal_nan=True)
    torch.testing.assert_close(found.top1, torch.tensor([1, 1 / 8, math.nan]).double(), equal_nan=True)
    torch.testing.assert_close(found.top5, torch.tensor([1, 5 / 8, math.nan]).double(), equal_nan=True)
    with pytest.raises(InputError, match="at least 2"):
        specificity(r[:, :1])


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), masks=st.integers(2, 12), scale=st.floats(0.01, 100))
def test_specificity_ignores_scale_and_order_and_stays_in_range(seed: int, masks: int, scale: float) -> None:
    r = drawn(5, masks, seed=seed) - 0.3
    found = specificity(r)
    other = specificity(scale * r[:, torch.randperm(masks, generator=torch.Generator().manual_seed(seed))])
    for name in ("entropy", "gini", "top1", "top5"):
        values = getattr(found, name)
        torch.testing.assert_close(getattr(other, name), values, rtol=1e-4, atol=1e-6, equal_nan=True)
        held = values[~values.isnan()]
        assert ((held >= -1e-12) & (held <= 1 + 1e-12)).all()


def test_gini_is_the_mean_difference() -> None:
    """The Gini coefficient by its definition: mean absolute difference of pairs over twice the mean."""
    r = drawn(6, 9)
    pairs = (r[:, :, None] - r[:, None]).abs().mean((1, 2)) / (2 * r.mean(1))
    torch.testing.assert_close(specificity(r).gini, pairs.double(), rtol=1e-5, atol=1e-6)


def test_coverage_sorts_each_class_and_each_mode() -> None:
    r = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.3, -0.4]])
    by_class, by_mode = coverage(r)
    torch.testing.assert_close(by_class, torch.tensor([(0.9 + 0.8) / 2, (0.3 + 0.1) / 2, (0.2 - 0.4) / 2]))
    torch.testing.assert_close(by_mode, torch.tensor([(0.9 + 0.8 + 0.3) / 3, (0.1 + 0.2 - 0.4) / 3]))


def test_class_atoms_are_sums_of_correlated_modes_else_the_best() -> None:
    modes = torch.tensor([[1.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 4.0]])
    r = torch.tensor([[0.5, 0.1, 0.2], [0.3, 0.15, -0.5], [0.2, -0.9, -0.5]])
    assert class_atoms(modes, r).tolist() == [[1, 2, 0], [0, 2, 0], [1, 0, 0]]


def test_a_decomposition_is_as_stable_as_can_be_against_itself() -> None:
    modes, r = drawn(12, 30), drawn(12, 5, seed=1)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(2))
    found = stability(modes, r, 3 * modes[order], r[order])
    torch.testing.assert_close(found.by_class, torch.ones(5).double())
    torch.testing.assert_close(found.cosine, torch.ones(12).double())
    assert sorted(found.first.tolist()) == list(range(12))
    assert torch.equal(order[found.second], found.first)
    assert abs(found.by_class_chance) < 0.2
    assert found.cosine_chance < 0.9


def test_shuffled_channels_are_as_stable_as_chance() -> None:
    modes, r = drawn(20, 200), drawn(20, 10, seed=1)
    other = modes[:, torch.randperm(200, generator=torch.Generator().manual_seed(5))]
    found = stability(modes, r, other, r)
    assert abs(float(found.by_class.mean()) - found.by_class_chance) < 0.2
    assert abs(float(found.cosine.mean()) - found.cosine_chance) < 0.01


def test_what_all_modes_share_is_told_apart_from_what_a_class_shares() -> None:
    """A few large channels in every mode make unrelated decompositions look alike."""
    common = 50 * (drawn(100) > 0.9).float()
    found = stability(drawn(9, 100) + common, torch.eye(9), drawn(9, 100, seed=4) + common, torch.eye(9))
    assert found.by_class.mean() > 0.9
    assert found.by_class_others == pytest.approx(float(found.by_class.mean()), abs=0.02)
    none = torch.zeros(9, 9, dtype=torch.bool)
    one = stability(drawn(9, 100), torch.eye(9), drawn(9, 100), torch.eye(9), apart=none, draws=0)
    assert math.isnan(one.by_class_others)  # no class is apart from another
    assert abs(found.by_class_chance) < 0.2


def test_by_class_is_scipys_pearson() -> None:
    a, b, ra, rb = drawn(7, 15), drawn(9, 15, seed=1), drawn(7, 3, seed=2) - 0.5, drawn(9, 3, seed=3) - 0.5
    found = stability(a, ra, b, rb, draws=0)
    for one, x, y in zip(found.by_class, class_atoms(a, ra), class_atoms(b, rb), strict=True):
        assert float(one) == pytest.approx(pearsonr(x.double(), y.double()).statistic)


def test_matching_is_the_best_assignment_not_the_greedy_one() -> None:
    first = torch.tensor([[1.0, 0.0], [0.8, 0.6]])
    second = torch.tensor([[0.95, 0.3], [0.0, 1.0]])
    rows, columns, cosine = match(first, second)
    assert dict(zip(rows.tolist(), columns.tolist(), strict=True)) == {0: 0, 1: 1}
    assert (cosine.diff() <= 0).all()


def test_errors_of_sizes() -> None:
    with pytest.raises(InputError, match="30 and 31 channels"):
        match(drawn(2, 30), drawn(2, 31))
    with pytest.raises(InputError, match="5 and 4 classes"):
        stability(drawn(2, 3), drawn(2, 5), drawn(2, 3), drawn(2, 4))
    with pytest.raises(InputError, match="alive"):
        stability(drawn(0, 3), drawn(0, 5), drawn(2, 3), drawn(2, 5))


def test_top_channels_are_the_largest_signed_entries() -> None:
    mode = torch.tensor([0.1, -5.0, 3.0, 0.1, 2.0])
    assert top_channels(mode, count=3).tolist() == [2, 4, 0]
    assert top_channels(mode, share=0.4).tolist() == [2, 4]
    assert top_channels(mode, share=0.01).tolist() == [2]
    assert top_channels(mode, share=1.0).tolist() == [2, 4, 0, 3, 1]
    assert len(top_channels(torch.rand(100), share=0.29)) == 29
    for wrong in ({}, {"share": 0.5, "count": 1}, {"share": 0.0}, {"share": 1.5}, {"count": 0}, {"count": 6}):
        with pytest.raises(InputError):
            top_channels(mode, **wrong)
