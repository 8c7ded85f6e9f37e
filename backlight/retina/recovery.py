"""What an analysis finds of a retina whose wiring is known: types of cells, groups of subunits, receptive fields."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from backlight.retina.clusters import Agreement, agreement, cell_modes, cluster_cells, cluster_rows, standardised
from backlight.retina.receptive_fields import receptive_fields
from backlight.retina.recording import pearson
from backlight.retina.simulator import SUBUNITS, RetinaSimulator
from backlight.shapes import Float, Int


@dataclass(frozen=True, eq=False)
class Recovery:
    """How well columns (loadings of modes, channels) tell what is known.

    `types`: clusters of cells by their correlations with the columns, against their types, the number of clusters
    chosen by silhouette; `types_told`: with the true number. `clusters`: how many were chosen. `groups`: clusters of
    frames by the columns, as many as there are `SUBUNITS`, against the kind of subunit that is strongest there; chance
    keeps the order of frames. `tracked` `[SUBUNITS]`: the largest |correlation| of a column with each kind's activity,
    `tracked_chance` the same after a shift in time, the mean of several.
    """

    types: Agreement
    types_told: Agreement
    clusters: int
    groups: Agreement
    tracked: Float[Tensor, "four"]
    tracked_chance: Float[Tensor, "four"]

    def record(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "types": self.types.record(),
            "types_told": self.types_told.record(),
            "clusters": self.clusters,
            "groups": self.groups.record(),
            "tracked": self.tracked.tolist(),
            "tracked_chance": self.tracked_chance.tolist(),
        }


def recovery(
    columns: Float[Tensor, "n K"],
    rates: Float[Tensor, "n cells"],
    simulator: RetinaSimulator,
    activity: Float[Tensor, "n four"],
    *,
    seed: int = 0,
) -> Recovery:
    """Compare columns at the frames of a movie with the wiring of the retina that answered it.

    Args:
        rates: of the fitted network, or of the cells.
        activity: see `subunit_activity`.
    """
    names = sorted(set(simulator.types))
    truth = torch.tensor([names.index(name) for name in simulator.types])
    association = cell_modes(rates, columns)
    chosen = cluster_cells(association, seed=seed)
    told = cluster_cells(association, counts=[len(names)], seed=seed)
    frames = cluster_rows(columns, len(SUBUNITS), seed)
    tracked = pearson(columns, activity).abs().amax(0)
    draw = np.random.default_rng((seed, 19))
    n = len(columns)
    shifts = draw.integers(n // 10, n - n // 10, 10).tolist()
    chance = torch.stack([pearson(columns.roll(s, 0), activity).abs().amax(0) for s in shifts]).mean(0)
    return Recovery(
        agreement(chosen.labels, truth, seed=seed),
        agreement(told.labels, truth, seed=seed),
        chosen.count,
        agreement(frames, dominant(activity), in_time=True, seed=seed),
        tracked.float(),
        chance.float(),
    )


def subunit_activity(simulator: RetinaSimulator, movie: Float[Tensor, "T H W"]) -> Float[Tensor, "n four"]:
    """What each kind of subunit excites all cells with, in the last frame of every window."""
    return simulator.pathways(movie)[:, :, : len(SUBUNITS)].sum(1)


def dominant(activity: Float[Tensor, "n four"]) -> Int[Tensor, "n"]:
    """The kind of subunit farthest above its own mean, in its own standard deviations."""
    return standardised(activity).argmax(1)


@dataclass(frozen=True, eq=False)
class FieldRecovery:
    """Correlations `[cells]` of receptive fields with the true ones, over all entries of space and time.

    `frames`: the mean over frames of each frame's own; `means`: of the fields averaged over those frames;
    `shuffled`: the mean of each frame's with the true field of another of them: what a fixed field would have.
    """

    frames: Float[Tensor, "cells"]
    means: Float[Tensor, "cells"]
    shuffled: Float[Tensor, "cells"]

    def record(self) -> dict[str, list[float]]:
        """As plain values."""
        return {name: getattr(self, name).tolist() for name in ("frames", "means", "shuffled")}


def field_recovery(
    network: nn.Module, simulator: RetinaSimulator, windows: Float[Tensor, "n F H W"], *, frames: int = 32
) -> FieldRecovery:
    """Compare the fields of network and simulator, for each cell in the `frames` where it should fire most."""
    with torch.no_grad():
        truth = torch.cat([simulator(part) for part in windows.split(256)])
    own, mean, other = [], [], []
    for cell in range(truth.shape[1]):
        chosen = truth[:, cell].topk(min(frames, len(truth))).indices.sort().values
        here = windows[chosen]
        true, found = (receptive_fields(one, here, [cell])[:, 0].flatten(1) for one in (simulator.eval(), network))
        own.append(_row_correlations(found, true).mean())
        mean.append(_row_correlations(found.mean(0, keepdim=True), true.mean(0, keepdim=True)).mean())
        other.append(_row_correlations(found, true.roll(len(true) // 2, 0)).mean())
    return FieldRecovery(*(torch.stack(one).float() for one in (own, mean, other)))


def _row_correlations(a: Float[Tensor, "n d"], b: Float[Tensor, "n d"]) -> Float[Tensor, "n"]:
    """Pearson's correlation of each row with its counterpart; 0 where one is constant."""
    left, right = (one.double() - one.double().mean(1, keepdim=True) for one in (a, b))
    return (left * right).sum(1) / (left.norm(dim=1) * right.norm(dim=1)).clamp(min=1e-30)
