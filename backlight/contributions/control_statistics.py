"""Means, areas and their intervals: what control curves say, and how sure it is.

AUC is the trapezoid on [0, 1], with the measured end points. Two differences of areas go by their names here:
`absolute` = AUC_target - AUC_off, and `relative` = (AUC_target - AUC_off) / AUC_off, which the paper plots (figure 6E)
under the name of the first. For ablation, the more negative the more specific; for preservation, the more positive.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from backlight.contributions.control_curves import ControlCurves
from backlight.errors import UnknownNameError
from backlight.shapes import Float

MEASURES = ("ratio", "accuracy")
RESAMPLES, LEVEL = 2000, 0.95


@dataclass(frozen=True)
class Interval:
    """A mean or a difference of means, with percentiles of the bootstrap over concepts; NaN where there are too few."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Band:
    """A curve over the grid: mean, low, high `[F]`, of `n` trials; `excluded`: those with an accuracy of 0 before."""

    mean: Float[np.ndarray, "F"]
    low: Float[np.ndarray, "F"]
    high: Float[np.ndarray, "F"]
    n: int
    excluded: int


@dataclass(frozen=True)
class Areas:
    """Areas under both curves and their differences; `excluded`: trials without a ratio, on each side."""

    target: Interval
    off: Interval
    absolute: Interval
    relative: Interval
    excluded: tuple[int, int]


@dataclass(frozen=True)
class Against:
    """One direction's differences less another's, on the same trials."""

    absolute: Interval
    relative: Interval


@dataclass(frozen=True)
class ControlStatistics:
    """Statistics of control curves.

    Trials are resampled by concept: all trials of a concept go together, with their images; trials of different
    concepts may share images of others. Every statistic sees the same resamples, so differences are paired.

    - `measure`: "ratio", accuracy after / before (the paper's); trials with 0 before have none, and are counted; or
      "accuracy";
    - `top`: 1 or 5.
    """

    curves: ControlCurves
    measure: str = "ratio"
    top: int = 1
    resamples: int = RESAMPLES
    level: float = LEVEL
    seed: int = 0

    def __post_init__(self) -> None:
        if self.measure not in MEASURES:
            raise UnknownNameError("measure", self.measure, MEASURES)
        if self.top not in (1, 5):
            raise UnknownNameError("rank", self.top, ("1", "5"))

    def values(self, place: str, direction: str, action: str) -> Float[np.ndarray, "T 2 F"]:
        """Of each trial and side, over the grid; NaN where there is no ratio."""
        one = self.curves
        at = (_place(one.places, place), _place(one.directions, direction), _place(one.actions, action))
        rank = 0 if self.top == 1 else 1
        after = one.after[:, :, *at, :, rank]
        if self.measure == "accuracy":
            return after
        before = one.before[:, :, None, rank]
        return np.divide(after, before, out=np.full_like(after, np.nan), where=before > 0)

    def band(self, place: str, direction: str, action: str, side: int) -> Band:
        """A curve with its interval at each point. `side`: 0 target, 1 off-target."""
        values = self.values(place, direction, action)[:, side]
        mean, draws = self._means(values)
        low, high = _bounds(draws, self.level)
        defined = int((~np.isnan(values[:, 0])).sum())
        return Band(mean, low, high, defined, len(values) - defined)

    def areas(self, place: str, direction: str, action: str) -> Areas:
        """Areas under both curves, and how much they differ."""
        exact, draws, missing = self._areas(place, direction, action)
        names = ("target", "off", "absolute", "relative")
        found = {name: self._interval(exact[name], draws[name]) for name in names}
        return Areas(**found, excluded=missing)

    def against(self, place: str, direction: str, other: str, action: str) -> Against:
        """`direction` less `other`: their absolute, and their relative differences."""
        (exact, draws, _), (exact2, draws2, _) = (self._areas(place, one, action) for one in (direction, other))
        return Against(*(self._interval(exact[n] - exact2[n], draws[n] - draws2[n]) for n in ("absolute", "relative")))

    def _areas(
        self, place: str, direction: str, action: str
    ) -> tuple[dict[str, float], dict[str, np.ndarray], tuple[int, int]]:
        values = area(self.values(place, direction, action), np.array(self.curves.grid))
        mean, draws = self._means(values)
        missing = np.isnan(values).sum(0)
        with np.errstate(divide="ignore", invalid="ignore"):
            exact = _differences(mean[None])
            resampled = _differences(draws)
        return {name: float(one[0]) for name, one in exact.items()}, resampled, (int(missing[0]), int(missing[1]))

    def _means(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Means over trials `[K]`, and those of the resamples `[R, K]`."""
        counts = cluster_counts(self.curves.concepts, self.resamples, self.seed)
        there = ~np.isnan(values)
        filled = np.where(there, values, 0.0)
        with np.errstate(invalid="ignore", divide="ignore"):
            return filled.sum(0) / there.sum(0), (counts @ filled) / (counts @ there)

    def _interval(self, value: float, draws: np.ndarray) -> Interval:
        low, high = _bounds(draws[:, None], self.level)
        return Interval(value, float(low[0]), float(high[0]))


def area(values: Float[np.ndarray, "*axes F"], grid: Float[np.ndarray, "F"]) -> Float[np.ndarray, "*axes"]:
    """The trapezoid over a grid from 0 to 1, not in percent."""
    return np.asarray(((values[..., 1:] + values[..., :-1]) / 2 * np.diff(grid)).sum(-1))


@lru_cache(maxsize=8)
def cluster_counts(groups: tuple[str, ...], resamples: int, seed: int) -> Float[np.ndarray, "R T"]:
    """How often each trial counts in each resample: groups are drawn with replacement, with all their trials."""
    _, members = np.unique(np.array(groups), return_inverse=True)
    number = int(members.max()) + 1
    if number < 2:  # one group says nothing about others
        return np.full((1, len(groups)), np.nan)
    drawn = np.random.default_rng(seed).integers(0, number, (resamples, number))
    drawn += number * np.arange(resamples)[:, None]
    counts = np.bincount(drawn.ravel(), minlength=resamples * number).reshape(resamples, number)
    return counts[:, members].astype(float)


def _differences(means: Float[np.ndarray, "R 2"]) -> dict[str, np.ndarray]:
    target, off = means[:, 0], means[:, 1]
    relative = np.where(off > 0, (target - off) / off, np.nan)
    return {"target": target, "off": off, "absolute": target - off, "relative": relative}


def _bounds(draws: Float[np.ndarray, "R K"], level: float) -> tuple[np.ndarray, np.ndarray]:
    """Percentiles of what is defined among the draws; NaN without any."""
    low, high = np.full(draws.shape[1], np.nan), np.full(draws.shape[1], np.nan)
    for place, column in enumerate(draws.T):
        seen = column[~np.isnan(column)]
        if len(seen):
            low[place], high[place] = np.quantile(seen, [(1 - level) / 2, (1 + level) / 2])
    return low, high


def _place(names: tuple[str, ...], wanted: str) -> int:
    if wanted not in names:
        raise UnknownNameError("part of the curves", wanted, names)
    return names.index(wanted)
