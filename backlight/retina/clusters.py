"""Cells by the modes that go with them: correlations, and a clustering whose number of groups the data choose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from backlight.errors import InputError, MissingExtraError
from backlight.retina.recording import pearson
from backlight.shapes import Float, Int

FEWEST, MOST = 2, 8  # clusters that are tried


@dataclass(frozen=True, eq=False)
class CellClusters:
    """`labels` `[cells]`; `silhouettes`: `{k: mean silhouette}` of the numbers of clusters that were tried, the best
    of which is taken. Empty, with one cluster, where cells are fewer than three or all alike."""

    labels: Int[Tensor, "cells"]
    silhouettes: dict[int, float]

    @property
    def count(self) -> int:
        """The number of clusters."""
        return int(self.labels.max()) + 1


@dataclass(frozen=True)
class Agreement:
    """The adjusted Rand index of two groupings (1: the same; 0: what chance gives), and what chance gives here.

    `chance_mean`, `chance_high`: the mean and the 95 % quantile over permutations (of rows in time: circular shifts).
    """

    index: float
    chance_mean: float
    chance_high: float

    def record(self) -> dict[str, float]:
        """As plain values."""
        return {"index": self.index, "chance_mean": self.chance_mean, "chance_high": self.chance_high}


def cell_modes(rates: Float[Tensor, "n cells"], loadings: Float[Tensor, "n K"]) -> Float[Tensor, "cells K"]:
    """Pearson's correlation of each cell's rate with each mode's loading; 0 for modes (or cells) that do not vary."""
    return pearson(rates, loadings)


def cluster_cells(
    patterns: Float[Tensor, "cells K"],
    *,
    counts: Sequence[int] | None = None,
    seed: int = 0,
    n_init: int = 10,
) -> CellClusters:
    """k-means of cells by their patterns over modes, each mode standardised; k of the largest mean silhouette.

    Modes without variance over cells say nothing and stay 0. `counts`: numbers of clusters to try; None: 2 to 8, and
    fewer than there are cells.

    Raises:
        InputError: a number of clusters that is not between 1 and the number of cells.
        MissingExtraError: scikit-learn is not installed.
    """
    cluster, metrics = _sklearn()
    x = standardised(patterns).numpy()
    n = len(x)
    tried = list(range(FEWEST, min(MOST, n - 1) + 1)) if counts is None else list(counts)
    if any(not 1 < k < n for k in tried):
        raise InputError(f"{n} cells have from 2 to {n - 1} clusters, asked for {tried}")
    different = len(np.unique(x, axis=0))
    found: dict[int, float] = {}
    labels: dict[int, np.ndarray] = {}
    for k in (one for one in tried if one <= different):
        labels[k] = cluster.KMeans(k, n_init=n_init, random_state=seed).fit(x).labels_
        found[k] = float(metrics.silhouette_score(x, labels[k]))
    if not found:
        return CellClusters(torch.zeros(n, dtype=torch.long), {})
    best = max(found, key=lambda k: found[k])
    return CellClusters(torch.from_numpy(labels[best]).long(), found)


def cluster_rows(rows: Float[Tensor, "n K"], k: int, seed: int = 0) -> Int[Tensor, "n"]:
    """k-means of frames by the direction of their rows, standardised; fewer clusters where fewer rows differ.

    The length is left out: where a frame surprises more, all of its contributions are larger.
    """
    cluster, _ = _sklearn()
    x = standardised(rows / rows.norm(dim=1, keepdim=True).clamp(min=torch.finfo(rows.dtype).tiny)).numpy()
    return torch.from_numpy(cluster.KMeans(min(k, len(x)), n_init=4, random_state=seed).fit(x).labels_).long()


def standardised(x: Float[Tensor, "n K"]) -> Float[Tensor, "n K"]:
    """Each column less its mean, over its standard deviation; 0 where it is constant."""
    wide = x.detach().double().cpu()
    centred, std = wide - wide.mean(0), wide.std(0, correction=0)
    small = std <= 1e-12 * wide.abs().amax(0).clamp(min=1e-300)
    return torch.where(small, torch.zeros_like(wide), centred / std.clamp(min=1e-300))


def agreement(
    found: Int[Tensor, "n"], truth: Int[Tensor, "m"], *, in_time: bool = False, draws: int = 200, seed: int = 0
) -> Agreement:
    """How well a grouping is the true one, beside chance.

    `in_time`: rows are successive frames, whose groups persist: chance is then a shift of the found labels in time by
    at least a tenth of the rows, which keeps that; else a permutation.

    Raises:
        InputError: other numbers of labels, or fewer than two.
        MissingExtraError: scikit-learn is not installed.
    """
    _, metrics = _sklearn()
    n = len(truth)
    if len(found) != n or n < 2:
        raise InputError(f"expected as many labels as truths, two or more, got {len(found)} and {n}")
    left, right = found.cpu().numpy(), truth.cpu().numpy()
    draw = np.random.default_rng((seed, 17))
    values = []
    for _ in range(draws):
        moved = np.roll(left, int(draw.integers(n // 10, n - n // 10))) if in_time else draw.permutation(left)
        values.append(metrics.adjusted_rand_score(right, moved))
    index = float(metrics.adjusted_rand_score(right, left))
    return Agreement(index, float(np.mean(values)), float(np.quantile(values, 0.95)))


def _sklearn() -> tuple[Any, Any]:
    try:
        from sklearn import cluster, metrics
    except ModuleNotFoundError:
        raise MissingExtraError("scikit-learn", "contributions") from None
    return cluster, metrics
