"""2-means of many clusters at once: rows in the order of their clusters, and a pass over them is a step of all."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from backlight.shapes import Bool, Float, Int

BLOCK = 512  # rows that are handled at once on a CPU, so that they stay in its cache
WIDE = 65536  # elsewhere
COMPACT = 0.7  # of the rows in hand: where fewer are of clusters that still move, they are gathered anew


@dataclass(frozen=True)
class Halves:
    """What clusters were split into. `side`: of each row. `split`: False where all rows of a cluster are equal."""

    side: Bool[Tensor, "m"]
    split: Bool[Tensor, "S"]
    means: Float[Tensor, "S 2 C"]
    sizes: Int[Tensor, "S 2"]
    inertia: Float[Tensor, "S 2"]

    def better(self, other: Halves, own: Int[Tensor, "m"]) -> Halves:
        """For each cluster, the halves of less inertia."""
        take = other.inertia.sum(1) < self.inertia.sum(1) * (1 - 1e-6)  # less than rounding does is not better
        return Halves(
            torch.where(take[own], other.side, self.side),
            self.split,
            torch.where(take[:, None, None], other.means, self.means),
            torch.where(take[:, None], other.sizes, self.sizes),
            torch.where(take[:, None], other.inertia, self.inertia),
        )


def two_means(
    x: Float[Tensor, "m C"],
    own: Int[Tensor, "m"],
    draws: Float[Tensor, "2 m"],
    *,
    distant: bool,
    enough: float,
    steps: int,
) -> Halves:
    """Split every cluster in two by Lloyd's algorithm.

    Cost: a product of each row with one direction a step; rows are summed when they change sides. Clusters that are
    done leave.

    Args:
        x: rows about the mean of their cluster, in ascending order of `own`.
        own: the number of each row's cluster; every number from 0 on has rows.
        draws: uniform numbers, which the first row and the second of a cluster are drawn with.
        distant: draw the second in proportion to its squared distance (k-means++), else evenly among the rows that
            differ from the first.
        enough: squared distances that the two means move by, together, at which a cluster is done.
        steps: at most.
    """
    sizes = own.bincount()
    seeds, split = _seeds(x, own, draws, distant, len(sizes))
    near = _sides(x, own, seeds)
    side = near & split[own]
    sums, counts = torch.zeros(len(sizes), x.shape[1], dtype=torch.float64, device=x.device), torch.zeros_like(sizes)
    _move(sums, counts, x, own, side, torch.ones_like(own))
    means = _means(sums, counts, sizes)
    data, numbers, rows, going = x, own, torch.arange(len(x), device=x.device), split.clone()
    for _ in range(steps - 1):
        stay = going[numbers]
        if (left := int(stay.sum())) < COMPACT * len(stay):
            data, numbers, rows, stay = data[stay], numbers[stay], rows[stay], stay[stay]
        if not left:
            break
        new = _sides(data, numbers, means.to(x.dtype))
        change = (new != side[rows]) & stay
        _move(sums, counts, data, numbers, change, new.long() * 2 - 1)
        side[rows[change]] = new[change]
        moved = torch.zeros_like(going).index_fill_(0, numbers[change], True)
        later = _means(sums, counts, sizes)
        shift = (later - means).square().sum((1, 2))
        means, going = later, going & moved & (shift > enough)
    lost = split & ((counts == 0) | (counts == sizes))  # by rounding alone: take the sides of the two rows
    if lost.any():
        side = torch.where(lost[own], near, side)
        sums.zero_(), counts.zero_()
        _move(sums, counts, x, own, side, torch.ones_like(own))
        means = _means(sums, counts, sizes)
    both = torch.stack((sizes - counts, counts), 1)
    return Halves(side, split, means, both, _inertia(x, own, side, means.to(x.dtype)))


def _blocks(x: Tensor) -> Iterator[slice]:
    size = BLOCK if x.device.type == "cpu" else WIDE
    for start in range(0, len(x), size):
        yield slice(start, start + size)


def _sides(x: Float[Tensor, "m C"], own: Int[Tensor, "m"], means: Float[Tensor, "S 2 C"]) -> Bool[Tensor, "m"]:
    """Which rows are nearer to the second mean of their cluster; those that are as near to both are not."""
    direction = means[:, 1] - means[:, 0]
    threshold = (direction * (means[:, 1] + means[:, 0])).sum(1) / 2
    found = torch.empty(len(x), dtype=torch.bool, device=x.device)
    for block in _blocks(x):
        rows, places = x[block], own[block]
        if x.device.type == "cpu":  # neighbours are of few clusters: a product with all of theirs is the quickest
            first, last = int(places[0]), int(places[-1]) + 1
            along = (rows @ direction[first:last].T).gather(1, (places - first)[:, None])[:, 0]
        else:
            along = (rows * direction[places]).sum(1)
        found[block] = along > threshold[places]
    return found


def _move(
    sums: Float[Tensor, "S C"],
    counts: Int[Tensor, "S"],
    x: Float[Tensor, "m C"],
    own: Int[Tensor, "m"],
    change: Bool[Tensor, "m"],
    sign: Int[Tensor, "m"],
) -> None:
    """Add the rows that change sides to the sums of the second halves, or take them away."""
    at = change.nonzero().flatten()
    for block in _blocks(at):
        rows = at[block]
        sums.index_add_(0, own[rows], x[rows].double() * sign[rows, None])
    counts.index_add_(0, own[at], sign[at])


def _means(sums: Float[Tensor, "S C"], counts: Int[Tensor, "S"], sizes: Int[Tensor, "S"]) -> Float[Tensor, "S 2 C"]:
    """Of both halves: rows are about the mean of their cluster, so that the sums are opposite."""
    others = (sizes - counts).clamp(min=1)
    return torch.stack((-sums / others[:, None], sums / counts.clamp(min=1)[:, None]), 1)


def _inertia(
    x: Float[Tensor, "m C"], own: Int[Tensor, "m"], side: Bool[Tensor, "m"], means: Float[Tensor, "S 2 C"]
) -> Float[Tensor, "S 2"]:
    place = 2 * own + side
    flat, found = means.flatten(0, 1), torch.zeros(2 * len(means), dtype=torch.float64, device=x.device)
    for block in _blocks(x):
        error = (x[block] - flat[place[block]]).square().sum(1)
        found.index_add_(0, place[block], error.double())
    return found.view(-1, 2)


def _seeds(
    x: Float[Tensor, "m C"], own: Int[Tensor, "m"], draws: Float[Tensor, "2 m"], distant: bool, clusters: int
) -> tuple[Float[Tensor, "S 2 C"], Bool[Tensor, "S"]]:
    """Two different rows of each cluster, and whether it has such."""
    first = x[_last(draws[0], own, clusters)]
    apart = torch.empty(len(x), dtype=torch.float64, device=x.device)
    for block in _blocks(x):
        apart[block] = (x[block] - first[own[block]]).square().sum(1).double()
    # the greatest of u^(1/d) is row i with probability d_i / sum d
    key = draws[1].clamp(min=1e-300).log() / apart if distant else draws[1]
    second = _last(torch.where(apart > 0, key, -torch.inf), own, clusters)
    return torch.stack((first, x[second]), 1), apart[second] > 0


def _last(key: Float[Tensor, "m"], own: Int[Tensor, "m"], clusters: int) -> Int[Tensor, "S"]:
    """The row of the greatest key in each cluster."""
    top = torch.full((clusters,), -torch.inf, dtype=key.dtype, device=key.device)
    top = top.scatter_reduce(0, own, key, "amax")
    rows = torch.where(key == top[own], torch.arange(len(own), device=own.device), len(own))
    return torch.full((clusters,), len(own), device=own.device).scatter_reduce(0, own, rows, "amin")
