"""Statistics over samples: what is undefined (NaN) drops out, and every method sees the same resamples."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from backlight.shapes import Float

RESAMPLES = 10_000
LEVEL = 0.95
_ENTRIES = 4_000_000  # of the largest array of draws
_TIE = 1e-6  # of the larger of two values: what rounding leaves of equal ones


@dataclass(frozen=True)
class Summary:
    """Of the `n` defined values: `deviation` divides by n - 1, `error` is deviation / sqrt(n), `low` and `high` bound
    the mean by bootstrap percentiles. NaN where n is too small for it."""

    n: int
    mean: float
    median: float
    deviation: float
    error: float
    low: float
    high: float


@dataclass(frozen=True)
class Paired:
    """Differences (method - baseline) at the samples where both are defined; `wins`: the share of those where the
    method is the better one, ties half. Values that differ by rounding alone tie."""

    n: int
    mean: float
    low: float
    high: float
    wins: float


def summaries(
    values: Float[np.ndarray, "N K"], resamples: int = RESAMPLES, level: float = LEVEL, seed: int = 0
) -> list[Summary]:
    """One `Summary` a column."""
    low, high = bootstrap(values, resamples, level, seed)
    found = []
    for column, lowest, highest in zip(values.T, low, high, strict=True):
        there = column[~np.isnan(column)]
        n = len(there)
        spread = float(there.std(ddof=1)) if n > 1 else np.nan
        mean, median = (float(there.mean()), float(np.median(there))) if n else (np.nan, np.nan)
        found.append(Summary(n, mean, median, spread, spread / np.sqrt(n) if n else np.nan, lowest, highest))
    return found


def paired(
    values: Float[np.ndarray, "N K"],
    baseline: Float[np.ndarray, "N"],
    higher_is_better: bool,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
) -> list[Paired]:
    """One `Paired` a column."""
    differences = values - baseline[:, None]
    low, high = bootstrap(differences, resamples, level, seed)
    found = []
    larger = np.maximum(np.abs(values), np.abs(baseline[:, None]))
    better = np.where(np.abs(differences) <= _TIE * larger, 0, differences if higher_is_better else -differences)
    for column, sides, lowest, highest in zip(differences.T, better.T, low, high, strict=True):
        known = ~np.isnan(column)
        there, n = column[known], int(known.sum())
        wins = float((sides[known] > 0).mean() + (sides[known] == 0).mean() / 2) if n else np.nan
        found.append(Paired(n, float(there.mean()) if n else np.nan, lowest, highest, wins))
    return found


def bootstrap(
    values: Float[np.ndarray, "N K"], resamples: int = RESAMPLES, level: float = LEVEL, seed: int = 0
) -> tuple[list[float], list[float]]:
    """Percentile intervals of the columns' means: `(low, high)`, NaN where a column has fewer than two values.

    Each resample takes N of the N samples with replacement, the same ones for all columns; a column's mean is over its
    defined values among them, and a resample without any has no say.
    """
    count = len(values)
    if count < 2:
        return [np.nan] * values.shape[1], [np.nan] * values.shape[1]
    there = ~np.isnan(values)
    filled = np.where(there, values, 0.0)
    draws = np.random.default_rng(seed)
    means = np.empty((resamples, values.shape[1]))
    for start in range(0, resamples, step := max(1, _ENTRIES // max(count, 1))):
        stop = min(start + step, resamples)
        taken = draws.integers(0, count, (stop - start, count)) + count * np.arange(stop - start)[:, None]
        times = np.bincount(taken.ravel(), minlength=(stop - start) * count).reshape(-1, count).astype(float)
        with np.errstate(invalid="ignore"):
            means[start:stop] = (times @ filled) / (times @ there.astype(float))
    low, high = [], []
    for column, known in zip(means.T, there.sum(0), strict=True):
        seen = column[~np.isnan(column)]
        tails = [(1 - level) / 2, (1 + level) / 2]
        lowest, highest = np.quantile(seen, tails) if known > 1 else (np.nan, np.nan)
        low.append(float(lowest))
        high.append(float(highest))
    return low, high
