"""Statistics of channels, an image each: sparsity, the two signs against each other; and the dimensions of class means.

What is undefined is NaN, and drops out of medians, counted (as everywhere here: see `backlight.evaluation.statistics`).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log, sqrt

import numpy as np
import torch
from torch import Tensor

from backlight.errors import InputError
from backlight.shapes import Float

OFFSET = 1e-6  # of the paper's figures
SHARE = 0.95  # of the variance
LEVEL = 0.95  # of intervals
_ROUNDING = 1e-12  # of a sum of squares of float64


def hoyer(values: Float[Tensor, "n d"], offset: float = OFFSET) -> Float[Tensor, "n"]:
    """Hoyer's sparsity of each row, (sqrt d - |v|_1 / (|v|_2 + offset)) / (sqrt d - 1), in float64.

    CODEC, section 3 and figure 3B. 0 where all entries are equally large, 1 where one alone is not 0; NaN for a row of
    zeros, which is neither, and where d = 1.

    Args:
        offset: as in the paper's figures. It lifts rows whose norm is not far above it (a norm of 1000 offsets by less
            than 0.2 %); with 0 the value does not depend on scale.

    Raises:
        InputError: a negative offset.
    """
    if not offset >= 0:
        raise InputError(f"the offset must be at least 0, got {offset}")
    wide = values.double()
    root, norm = sqrt(wide.shape[1]), wide.norm(dim=1)
    sparsity = (root - wide.abs().sum(1) / (norm + offset)) / max(root - 1, 1e-300)
    return torch.where((norm > 0) & (root > 1), sparsity, torch.nan)


def sign_correlation(positive: Float[Tensor, "n C"], negative: Float[Tensor, "n C"]) -> Float[Tensor, "n"]:
    """Pearson's correlation r(P, -N) across the channels of each row, float64, in [-1, 1] (CODEC, figure 3D).

    1 where channels that speak for the target speak as much against it. NaN where either part is the same in all
    channels: the activations of a ReLU have no negative part.
    """
    p, n = positive.double(), -negative.double()
    still = (p.amax(1) == p.amin(1)) | (n.amax(1) == n.amin(1))
    p, n = p - p.mean(1, keepdim=True), n - n.mean(1, keepdim=True)
    scale = p.norm(dim=1) * n.norm(dim=1)
    r = (p * n).sum(1) / scale.clamp_min(torch.finfo(torch.float64).tiny)
    return r.clamp(-1, 1).masked_fill(still, torch.nan)


def principal_components(means: Float[Tensor, "K C"], share: float = SHARE) -> int:
    """How many principal components the rows' variance needs to reach a share of it (CODEC, figure 3F).

    The rows are centred; at most min(K - 1, C), and 0 where they are all the same. Exact: all singular values, float64.

    Raises:
        InputError: a share outside of (0, 1].
    """
    if not 0 < share <= 1:
        raise InputError(f"a share of the variance is in (0, 1], got {share}")
    wide = means.double()
    centred = wide - wide.mean(0)
    variances = torch.linalg.svdvals(centred) ** 2
    if not bool(variances.sum() > _ROUNDING * (wide**2).sum()):
        return 0
    reached = variances.cumsum(0) / variances.sum()
    return int((reached < share - _ROUNDING).sum()) + 1


@dataclass(frozen=True)
class Median:
    """The median of `n` values, those that were undefined left out and counted, and an interval that bounds it.

    `median`: None where there is no value. `low`, `high`: see `interval`; None where there are too few values for one.
    """

    n: int
    undefined: int
    median: float | None
    low: float | None
    high: float | None

    @classmethod
    def of(cls, values: Float[np.ndarray, "n"], level: float = LEVEL) -> Median:
        """Of values, NaN where undefined."""
        known = np.sort(values[~np.isnan(values)])
        undefined = len(values) - len(known)
        if not len(known):
            return cls(0, undefined, None, None, None)
        low, high = interval(known, level) or (None, None)
        return cls(len(known), undefined, float(np.median(known)), low, high)


def interval(ascending: Float[np.ndarray, "n"], level: float = LEVEL) -> tuple[float, float] | None:
    """The k-th least and the k-th largest value, which hold the median of what the values are drawn from.

    At least as often as `level` says, of any distribution: it lies below the k-th least of n values no more often than
    a binomial (n, 1/2) is below k. k is the largest for which that is at most (1 - level) / 2 (Thompson 1936). None
    where the least and the largest are not enough: 5 values or fewer at 95 %.

    Raises:
        InputError: a level outside of (0, 1).
    """
    if not 0 < level < 1:
        raise InputError(f"the level of an interval is in (0, 1), got {level}")
    count = len(ascending)
    terms, total = torch.arange(count + 1, dtype=torch.float64), torch.tensor(float(count), dtype=torch.float64)
    ways = torch.lgamma(total + 1) - torch.lgamma(terms + 1) - torch.lgamma(total - terms + 1)
    below = (ways - count * log(2)).exp().cumsum(0)  # at most so many of n
    k = int((below <= (1 - level) / 2).sum())
    return (float(ascending[k - 1]), float(ascending[count - k])) if k else None


class ClassMeans:
    """Means of rows by class, summed up in float64 as the rows come: `[K, C]` for each way to group them.

    Ways: all images; two halves of every class that has two images (`first`, `second`); and the classes permuted over
    the images, which leaves what chance alone gives means of so few images.
    """

    WAYS = ("all", "first", "second", "permuted")

    def __init__(self, classes: np.ndarray, channels: int, seed: int) -> None:
        labelled = classes >= 0
        self.classes = np.unique(classes[labelled])
        self.images = int(labelled.sum())
        group = np.searchsorted(self.classes, classes)
        draw = np.random.default_rng(seed)
        halves = _halves(group, labelled, draw)
        permuted = group.copy()
        permuted[labelled] = draw.permutation(group[labelled])
        groups = {"all": group, "first": group, "second": group, "permuted": permuted}
        chosen = {"all": labelled, "first": halves == 0, "second": halves == 1, "permuted": labelled}
        spare = len(self.classes)  # what no group holds
        self._groups = {way: torch.from_numpy(np.where(chosen[way], groups[way], spare)) for way in self.WAYS}
        self._sums = {way: torch.zeros(spare + 1, channels, dtype=torch.float64) for way in self.WAYS}

    def add(self, start: int, rows: Float[Tensor, "n C"]) -> None:
        wide = rows.double()
        for way, sums in self._sums.items():
            sums.index_add_(0, self._groups[way][start : start + len(rows)], wide)

    def means(self, way: str) -> Float[Tensor, "K C"]:
        """Of the classes that have an image in this way; in halves, those with one in both."""
        counts = {w: torch.bincount(g, minlength=len(self.classes) + 1)[:-1] for w, g in self._groups.items()}
        there = counts[way] > 0
        if way in ("first", "second"):
            there = (counts["first"] > 0) & (counts["second"] > 0)
        return (self._sums[way][:-1] / counts[way].clamp_min(1)[:, None])[there]


def _halves(group: np.ndarray, labelled: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """0 or 1 for the images of each class in turn, in random order; -1 for those that have no class or no partner."""
    found = np.full(len(group), -1)
    places = draw.permutation(np.flatnonzero(labelled))
    seen: dict[int, int] = {}
    size = np.bincount(group[labelled], minlength=1)
    for place in places:
        turn = seen.get(int(group[place]), 0)
        seen[int(group[place])] = turn + 1
        if turn < 2 * (size[group[place]] // 2):
            found[place] = turn % 2
    return found
