"""Statistics against numpy, scipy and a loop over resamples."""

from __future__ import annotations

import numpy as np
import pytest

from backlight.evaluation import Paired, Summary, bootstrap, paired, statistics, summaries

NAN = float("nan")


def test_a_summary_by_hand() -> None:
    values = np.array([[1.0, 4.0], [2.0, NAN], [6.0, NAN], [NAN, NAN]])
    first, second = summaries(values, resamples=200)
    assert (first.n, first.mean, first.median) == (3, 3.0, 2.0)
    assert first.deviation == pytest.approx(np.sqrt((4 + 1 + 9) / 2))
    assert first.error == pytest.approx(first.deviation / np.sqrt(3))
    assert 1 <= first.low < 3 < first.high <= 6
    assert (second.n, second.mean, second.median) == (1, 4.0, 4.0)
    assert all(np.isnan(value) for value in (second.deviation, second.error, second.low, second.high))


def test_nothing_defined_is_nan_without_a_warning() -> None:
    (one,) = summaries(np.full((3, 1), NAN))
    assert one.n == 0
    assert all(np.isnan(value) for value in (one.mean, one.median, one.deviation, one.error, one.low, one.high))
    assert summaries(np.empty((0, 0))) == []
    (pair,) = paired(np.full((3, 1), NAN), np.zeros(3), True)
    assert (pair.n, np.isnan(pair.wins)) == (0, True)


@pytest.mark.parametrize("entries", [1, 23, 4_000_000])
def test_bootstrap_is_a_loop_over_resamples(entries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "_ENTRIES", entries)  # the chunks of draws must not matter
    draws = np.random.default_rng(1)
    values = draws.normal(size=(11, 3))
    values[[2, 5, 7], 1] = NAN
    generator = np.random.default_rng(4)
    means = []
    for _ in range(300):
        rows = generator.integers(0, 11, 11)
        means.append([np.nanmean(column[rows]) for column in values.T])
    expected = np.quantile(np.array(means), [0.05, 0.95], axis=0)
    low, high = bootstrap(values, resamples=300, level=0.9, seed=4)
    np.testing.assert_allclose([low, high], expected, rtol=1e-12)


def test_bootstrap_agrees_with_scipy_and_covers_the_mean() -> None:
    stats = pytest.importorskip("scipy.stats")
    values = np.random.default_rng(0).exponential(size=(80, 1))
    theirs = stats.bootstrap((values[:, 0],), np.mean, n_resamples=20_000, method="percentile", random_state=1)
    low, high = bootstrap(values, resamples=20_000)
    spread = values.std() / np.sqrt(80)
    assert abs(low[0] - theirs.confidence_interval.low) < 0.06 * spread
    assert abs(high[0] - theirs.confidence_interval.high) < 0.06 * spread
    samples = np.random.default_rng(2).normal(size=(60, 300))  # 300 experiments of 60 samples each
    low, high = bootstrap(samples, resamples=500)
    inside = np.mean((np.array(low) < 0) & (np.array(high) > 0))
    assert 0.9 < inside < 0.98


def test_an_interval_does_not_depend_on_the_other_columns() -> None:
    values = np.random.default_rng(0).normal(size=(20, 4))
    low, high = bootstrap(values, 400)
    alone = bootstrap(values[:, 2:3], 400)
    np.testing.assert_allclose([low[2], high[2]], [alone[0][0], alone[1][0]], rtol=1e-12)
    assert bootstrap(values, 400, seed=1)[0] != low


def test_a_column_defined_hardly_anywhere_has_no_say_in_resamples_without_it() -> None:
    values = np.full((40, 1), NAN)
    values[:2, 0] = (1.0, 3.0)
    low, high = bootstrap(values, 2000)
    assert (low[0], high[0]) == (1.0, 3.0)


def test_paired_differences_by_hand() -> None:
    values = np.array([[1.0, 5.0], [3.0, 2.0], [2.0, NAN], [4.0, 1.0]])
    own = np.array([1.0, 2.0, 4.0, NAN])
    first, second = paired(values, own, higher_is_better=True, resamples=100)
    assert (first.n, first.mean, first.wins) == (3, pytest.approx(-1 / 3), pytest.approx((0.5 + 1 + 0) / 3))
    assert (second.n, second.mean, second.wins) == (2, 2.0, 0.75)
    lower = paired(values, own, higher_is_better=False, resamples=100)
    assert [one.wins for one in lower] == [pytest.approx(1 - one.wins) for one in (first, second)]
    assert lower[0].mean == first.mean
    (rounded,) = paired(own[:, None] * (1 + 1e-9), own, True)
    assert rounded.wins == 0.5
    (itself,) = paired(own[:, None], own, True)
    assert itself == Paired(3, 0.0, 0.0, 0.0, 0.5)


def test_pairing_sees_what_means_do_not() -> None:
    hard = np.random.default_rng(0).normal(size=100) * 10
    values = np.stack([hard, hard + 0.1 + 0.01 * np.random.default_rng(1).normal(size=100)], 1)
    one, other = summaries(values, 1000)
    assert one.high > other.low
    (difference,) = paired(values[:, 1:], values[:, 0], True, 1000)
    assert 0.09 < difference.low < difference.high < 0.11
    assert isinstance(one, Summary)
