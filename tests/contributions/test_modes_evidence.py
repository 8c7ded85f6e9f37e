"""Planted correlations are found; where nothing is planted, chance and other samples say so."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr

from backlight.contributions.concepts import Concepts
from backlight.contributions.evidence import check_whole, difference, evidence, halves, median, with_fixed
from backlight.contributions.exemplars import exemplars
from backlight.data import ClassNames
from backlight.data.hierarchy import Hierarchy
from backlight.errors import InputError, UnknownNameError
from backlight.store import rows as reading
from backlight.store.rows import TensorRows


def noise(n: int = 200, columns: int = 40, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, columns, generator=torch.Generator().manual_seed(seed))


def classes(n: int = 200, count: int = 10) -> torch.Tensor:
    return torch.arange(n)[:, None] % count == torch.arange(count)


def test_planted_modes_are_found_and_hold_on_other_samples() -> None:
    masks = classes()
    rows = noise()
    rows[:, :5] += 3 * masks[:, 5:].float()
    found = evidence(TensorRows(rows), masks, draws=20)
    assert found.best[:5].tolist() == [5, 6, 7, 8, 9]
    assert (found.strongest[:5] > 0.9).all()
    torch.testing.assert_close(found.held_out[:5], found.strongest[:5], atol=0.03, rtol=0)
    assert (found.chance[:5] < 0.3).all()


def test_without_structure_the_largest_r_is_chance_and_nothing_is_left_on_other_samples() -> None:
    found = evidence(TensorRows(noise(columns=300)), classes(), draws=0)
    summary = found.summary()
    assert summary["median_r"] > 0.08  # although there is nothing
    assert abs(summary["median_r"] - summary["median_r_chance"]) < 0.01
    assert abs(summary["median_r_held_out"]) < 0.01


def test_dead_columns_count_among_all_alone() -> None:
    rows = torch.cat([classes()[:, :3].float(), torch.zeros(200, 5)], 1)
    summary = evidence(TensorRows(rows), classes(), permutations=2, draws=0).summary()
    assert (summary["columns"], summary["alive"], summary["correlated"], summary["covered"]) == (8, 3, 3, 3)
    assert summary["median_r"] == pytest.approx(1)
    assert summary["median_r_all"] == 0


def test_halves_share_classes_evenly() -> None:
    masks = classes(205, 10)
    first = halves(masks, 3)
    assert abs(int(first.sum()) - 102.5) < 1
    for mask in masks.T:
        assert abs(int((mask & first).sum()) - int((mask & ~first).sum())) <= 2
    assert torch.equal(first, halves(masks, 3))
    assert not torch.equal(first, halves(masks, 4))


def test_fixed_choices_are_pearsons_on_repeated_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading.pieces, "__defaults__", (17,))
    rows, masks = 1e3 + noise(60, 6), classes(60, 4)
    rows[:, 4] = 0.3
    rows[1:, 5] = 7.0  # constant where the first sample is not drawn
    choice = torch.tensor([0, 1, 2, 3, 0, 1])
    weights = torch.randint(0, 3, (3, 60), generator=torch.Generator().manual_seed(1)).float()
    weights[:, 0] = torch.tensor([1.0, 0.0, 2.0])
    got = with_fixed(TensorRows(rows), masks, choice, weights)
    for draw in range(3):
        times = weights[draw].long()
        x, m = rows.repeat_interleave(times, 0).double(), masks.repeat_interleave(times, 0).double()
        for column in (0, 1, 2, 3):
            expected = pearsonr(x[:, column], m[:, choice[column]]).statistic
            assert got[draw, column] == pytest.approx(expected, abs=1e-9)
    assert not got[:, 4].any()
    assert got[1, 5] == 0
    assert got[0, 5] != 0


def test_rounding_is_not_taken_for_a_variance() -> None:
    """Columns that are constant on the samples that count, where sums of so many squares are not exact."""
    rows = noise(1, 50).repeat(5000, 1)
    rows[0] = noise(1, 50, seed=1)[0]
    weights = torch.randint(0, 4, (3, 5000), generator=torch.Generator().manual_seed(1)).float()
    weights[:, 0] = 0
    assert not with_fixed(TensorRows(rows), classes(5000, 4), torch.zeros(50, dtype=torch.long), weights).any()


def test_modes_minus_channels_is_paired_and_signed() -> None:
    masks, rows = classes(), noise()
    planted = rows + 1.0 * masks.repeat(1, 4).float()
    weaker, stronger = (evidence(TensorRows(x), masks, permutations=0, draws=100) for x in (rows, planted))
    for held_out in (False, True):
        found = difference(stronger, weaker, held_out=held_out)
        assert 0 < found.low < found.estimate < found.high
        same = difference(stronger, stronger, held_out=held_out)
        assert same.estimate == same.low == same.high == 0


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    """Two sets of columns of the same strength: 0 lies in most of the intervals of their difference."""
    masks, inside = classes(100, 5), 0
    for seed in range(20):
        pair = noise(100, 60, seed) + masks.repeat(1, 12).float()
        a, b = (evidence(TensorRows(x), masks, permutations=0, draws=100) for x in pair.split(30, 1))
        found = difference(a, b, held_out=True)
        inside += found.low <= 0 <= found.high
    assert inside >= 16


def test_settings_that_cannot_be() -> None:
    with pytest.raises(InputError, match="min_images"):
        evidence(TensorRows(noise()), torch.zeros(200, 0, dtype=torch.bool))
    with pytest.raises(InputError, match=r"draws .* at least 0, got -1"):
        evidence(TensorRows(noise()), classes(), draws=-1)
    with pytest.raises(InputError, match=r"seed .* at least 0, got -1"):
        evidence(TensorRows(noise()), classes(), seed=-1)
    with pytest.raises(InputError, match=r"permutations .* whole number .* 1\.5"):
        check_whole(draws=np.int64(3), permutations=1.5)


def test_exemplars_are_the_largest_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading.pieces, "__defaults__", (7,))
    x = noise(50, 4)
    x[:, 3] = 0.0
    x[[8, 30], 3] = 1.0
    found = exemplars(TensorRows(x), 3)
    expected = x.sort(dim=0, descending=True, stable=True)
    assert torch.equal(found.samples[:3], expected.indices[:3].T[:3])
    assert torch.equal(found.loadings, expected.values[:3].T)
    assert found.samples[3].tolist() == [8, 30, 0]
    assert found.active.tolist() == [1, 1, 1, 2 / 50]


def test_median_of_none_is_not_a_number() -> None:
    assert np.isnan(median(torch.ones(3), torch.zeros(3, dtype=torch.bool)))


def test_classes_with_too_few_images_are_left_out_and_named() -> None:
    labels = [0] * 5 + [2] * 3 + [1] + [-1]
    found = Concepts.of_classes(labels, ClassNames(("crane", "pug", "crane")), 3)
    assert found.names == ("crane (0)", "crane (2)")
    assert found.images == [5, 3]
    assert found.left_out == {"pug": 1}
    unknown = Concepts.of_classes([0] * 5 + [2] * 3 + [-1] * 9, None, 4)
    assert not len(unknown)  # three are outside of class 0; the 9 without a label may be inside
    assert found.index("CRANE (2)") == 1
    with pytest.raises(UnknownNameError, match="1 samples, too few"):
        found.index("pug")
    with pytest.raises(InputError, match="no sample has a label"):
        Concepts.of_classes([-1, -1])


def test_concepts_of_the_same_samples_are_one_and_whole_sets_say_nothing() -> None:
    hierarchy = Hierarchy({"all": ["animal", 9], "animal": ["dog", "cat"], "dog": [1, 2], "cat": [3], "boat": [4]})
    found = Concepts.of_hierarchy([1, 1, 3, 1, 9], hierarchy, 1)
    # boats have no samples; "all" holds every sample; class 2 has none, so class 1 would be the same as dogs
    assert dict(zip(found.names, found.images, strict=True)) == {"dog": 3, "cat": 1, "animal": 4}
    assert found.left_out == {"all": 5}
    same = Concepts.of_hierarchy([1, 1, 4], hierarchy, 1)
    assert same.names[same.index("animal")] == "dog"
    assert same.also[same.index("dog")] == ("animal", "all")
