"""2-means of many clusters at once, for an accelerator: one pass over the rows, by clusters, is a step of all."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from backlight.shapes import Bool, Float, Int

BLOCK = 65536  # rows that are handled at once
SETTLE = 2  # steps on all rows of a cluster, after its sample is done
MANY = 0.25  # of the rows: where more are in doubt, all are computed anew, without gathering them
ROUNDING = 1e-4  # of a direction, beyond what the bounds say
COMPACT = 0.7  # of the rows in hand: where fewer are of clusters that still move, they are gathered anew


@dataclass(frozen=True)
class Halves:
    """What clusters were split into. `side`: of each row. `split`: False where all rows of a cluster are equal."""

    side: Bool[Tensor, "m"]
    split: Bool[Tensor, "S"]
    means: Float[Tensor, "S 2 C"]
    sizes: Int[Tensor, "S 2"]
    inertia: Float[Tensor, "S 2"]

    def cpu(self) -> Halves:
        return Halves(self.side.cpu(), self.split.cpu(), self.means.cpu(), self.sizes.cpu(), self.inertia.cpu())

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
    sample: int,
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
        sample: in clusters of more rows, the algorithm runs on so many of them, those of the least second draws; then
            `SETTLE` steps, from there, on all. 0: on all from the first.
    """
    sizes = own.bincount()
    seeds, split = _seeds(x, own, draws, distant, len(sizes))
    sampled = sizes > sample if sample > 0 else torch.zeros_like(split)
    starts = _sampled(x, own, draws, seeds, sampled, sample, enough, steps) if sampled.any() else seeds
    return _lloyd(x, own, seeds, starts, split, enough, torch.where(sampled, min(steps, SETTLE), steps))


def _lloyd(
    x: Float[Tensor, "m C"],
    own: Int[Tensor, "m"],
    seeds: Float[Tensor, "S 2 C"],
    starts: Float[Tensor, "S 2 C"],
    split: Bool[Tensor, "S"],
    enough: float,
    steps: Int[Tensor, "S"],
) -> Halves:
    """From the starts on; where that leaves a half without rows, the sides of the two seeds."""
    sizes = own.bincount()
    margin = _margins(x, own, starts)
    side = (margin > 0) & split[own]
    sums, counts = torch.zeros(len(sizes), x.shape[1], dtype=torch.float64, device=x.device), torch.zeros_like(sizes)
    _move(sums, counts, x, own, side.nonzero().flatten(), None)
    means = _means(sums, counts, sizes)
    state, going = _Moving.begun(x, own, margin, starts), split.clone()
    for step in range(1, int(steps.max())):
        going &= steps > step
        state = state.kept(going)
        if not len(state.rows):
            break
        new, doubted = state.advanced(means.to(x.dtype))
        rows = state.rows[doubted]
        change = (new != side[rows]) & going[own[rows]]
        where = doubted[change]
        _move(sums, counts, state.x, state.own, where, new[change].long() * 2 - 1)
        side[rows[change]] = new[change]
        moved = torch.zeros_like(going).index_fill_(0, state.own[where], True)
        later = _means(sums, counts, sizes)
        shift = (later - means).square().sum((1, 2))
        means, going = later, going & moved & (shift > enough)
    lost = split & ((counts == 0) | (counts == sizes))  # by rounding alone: take the sides of the two rows
    if lost.any():
        side = torch.where(lost[own], _margins(x, own, seeds) > 0, side)
        sums.zero_(), counts.zero_()
        _move(sums, counts, x, own, side.nonzero().flatten(), None)
        means = _means(sums, counts, sizes)
    both = torch.stack((sizes - counts, counts), 1)
    return Halves(side, split, means, both, _inertia(x, own, side, means.to(x.dtype)))


def _sampled(
    x: Float[Tensor, "m C"],
    own: Int[Tensor, "m"],
    draws: Float[Tensor, "2 m"],
    seeds: Float[Tensor, "S 2 C"],
    sampled: Bool[Tensor, "S"],
    sample: int,
    enough: float,
    steps: int,
) -> Float[Tensor, "S 2 C"]:
    """The seeds, and the two means of a sample in place of those of sampled clusters."""
    order = draws[1].argsort(stable=True)
    order = order[own[order].argsort(stable=True)]  # by clusters, and by draws within them
    sizes = own.bincount()
    place = torch.arange(len(own), device=own.device) - (sizes.cumsum(0) - sizes)[own[order]]
    rows = order[(place < sample) & sampled[own[order]]].sort().values
    number = sampled.long().cumsum(0) - 1
    few, mine = x[rows], number[own[rows]]
    centres = torch.zeros_like(seeds[sampled][:, 0]).index_add_(0, mine, few) / sample
    begun, every = seeds[sampled] - centres[:, None], torch.ones_like(centres[:, 0], dtype=torch.bool)
    found = _lloyd(few - centres[mine], mine, begun, begun, every, enough, torch.full_like(mine[: len(centres)], steps))
    starts = seeds.clone()
    starts[sampled] = found.means.to(seeds.dtype) + centres[:, None]
    return starts


def _blocks(x: Tensor) -> Iterator[slice]:
    for start in range(0, len(x), BLOCK):
        yield slice(start, start + BLOCK)


@dataclass
class _Moving:
    """The rows of clusters that still move, and how far each is from changing sides, at least.

    A row's margin is <x, w> - t, with the direction w between the two means and its threshold t. For new ones, with
    any number s, margin' = s margin + <x, w' - s w> - (t' - s t): rows whose |margin| outweighs the rest need no
    product (the bounds of Hamerly 2010, for two means).
    """

    x: Float[Tensor, "m C"]
    own: Int[Tensor, "m"]
    rows: Int[Tensor, "m"]
    length: Float[Tensor, "m"]
    margin: Float[Tensor, "m"]
    direction: Float[Tensor, "S C"]
    threshold: Float[Tensor, "S"]

    @classmethod
    def begun(
        cls, x: Float[Tensor, "m C"], own: Int[Tensor, "m"], margin: Float[Tensor, "m"], means: Float[Tensor, "S 2 C"]
    ) -> _Moving:
        length = torch.linalg.vector_norm(x, dim=1)
        return cls(x, own, torch.arange(len(x), device=x.device), length, margin.abs(), *_plane(means))

    def kept(self, going: Bool[Tensor, "S"]) -> _Moving:
        """Without the rows of clusters that are done, where they are many."""
        stay = going[self.own]
        if int(stay.sum()) >= COMPACT * len(stay):
            return self
        x, own, rows = self.x[stay], self.own[stay], self.rows[stay]
        return _Moving(x, own, rows, self.length[stay], self.margin[stay], self.direction, self.threshold)

    def advanced(self, means: Float[Tensor, "S 2 C"]) -> tuple[Bool[Tensor, "d"], Int[Tensor, "d"]]:
        """The sides of the rows that may have changed theirs, and which these are."""
        direction, threshold = _plane(means)
        tiny = torch.finfo(direction.dtype).tiny
        scale = (direction * self.direction).sum(1) / self.direction.square().sum(1).clamp(min=tiny)
        turn = (direction - scale[:, None] * self.direction).norm(dim=1) + ROUNDING * direction.norm(dim=1)
        lift = (threshold - scale * self.threshold).abs()
        self.margin = scale[self.own] * self.margin - turn[self.own] * self.length - lift[self.own]
        self.direction, self.threshold = direction, threshold
        doubted = (self.margin <= 0).nonzero().flatten()
        if len(doubted) > MANY * len(self.rows):
            margin = _margins(self.x, self.own, means)
            self.margin = margin.abs()
            return margin > 0, torch.arange(len(margin), device=margin.device)
        margin = _margins(self.x[doubted], self.own[doubted], means)
        self.margin[doubted] = margin.abs()
        return margin > 0, doubted


def _plane(means: Float[Tensor, "S 2 C"]) -> tuple[Float[Tensor, "S C"], Float[Tensor, "S"]]:
    """The direction from the first mean to the second, and where along it both are as near."""
    direction = means[:, 1] - means[:, 0]
    return direction, (direction * (means[:, 1] + means[:, 0])).sum(1) / 2


def _margins(x: Float[Tensor, "m C"], own: Int[Tensor, "m"], means: Float[Tensor, "S 2 C"]) -> Float[Tensor, "m"]:
    """How much further along the direction of its cluster a row is than the plane: above 0 on the second side."""
    direction, threshold = _plane(means)
    found = torch.empty(len(x), dtype=x.dtype, device=x.device)
    for block in _blocks(x):
        rows, places = x[block], own[block]
        found[block] = (rows * direction[places]).sum(1) - threshold[places]
    return found


def _move(
    sums: Float[Tensor, "S C"],
    counts: Int[Tensor, "S"],
    x: Float[Tensor, "m C"],
    own: Int[Tensor, "m"],
    rows: Int[Tensor, "d"],
    sign: Int[Tensor, "d"] | None,
) -> None:
    """Add rows to the sums of the second halves, or take them away, by their sign; None is all are added."""
    for block in _blocks(rows):
        moved = x[rows[block]].double()
        sums.index_add_(0, own[rows[block]], moved if sign is None else moved * sign[block, None])
    counts.index_add_(0, own[rows], torch.ones_like(rows) if sign is None else sign)


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
