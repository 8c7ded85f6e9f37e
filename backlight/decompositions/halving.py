"""2-means of one cluster after another, on a processor: a cluster, or a block of it, stays in its cache."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from backlight.decompositions.two_means import SETTLE, Halves
from backlight.shapes import Float, Int

BLOCK = 1024  # rows that are read twice while they are in the cache

Rows = NDArray[np.float32]
Vector = NDArray[Any]


def halves(
    x: Float[Tensor, "n C"],
    rows: Int[Tensor, "m"],
    own: Int[Tensor, "m"],
    centres: Float[Tensor, "S C"],
    draws: Float[Tensor, "2 m"],
    *,
    distant: bool,
    enough: float,
    steps: int,
    sample: int,
) -> Halves:
    """What `two_means` gives, of the given rows of `x` about the centres of their clusters."""
    sizes = own.bincount(minlength=len(centres)).tolist()
    data, places, about, drawn = x.numpy(), rows.numpy(), centres.to(x.dtype).numpy(), draws.numpy()
    side, split = np.zeros(len(places), bool), np.zeros(len(sizes), bool)
    means, inertia = np.zeros((len(sizes), 2, x.shape[1])), np.zeros((len(sizes), 2))
    counts = np.zeros((len(sizes), 2), np.int64)
    start, room = 0, np.empty((max(sizes), x.shape[1]), data.dtype)
    for cluster, size in enumerate(sizes):
        part = slice(start, start + size)
        start += size
        mine = np.take(data, places[part], 0, out=room[:size], mode="clip")  # "raise" would copy them once more
        mine -= about[cluster]
        pair = _pair(mine, drawn[:, part], distant)
        if pair is None:
            continue
        first = _Plane.between(mine[pair[0]], mine[pair[1]])
        chosen = _sampled(mine, drawn[1, part], first, enough, steps, sample) if 0 < sample < size else None
        found = chosen or _lloyd(mine, first, enough, steps)
        if not found.count or not found.rest:  # by rounding alone
            found = _Parts(np.arange(size) == pair[1], mine[pair[1]].astype(np.float64))
        split[cluster], side[part] = True, found.side
        counts[cluster] = found.rest, found.count
        means[cluster] = found.means(mine)
        squares = np.einsum("ij,ij->i", mine, mine).astype(np.float64)
        second = float(squares @ found.side)
        whole = np.array((squares.sum() - second, second))
        inertia[cluster] = np.maximum(whole - counts[cluster] * np.square(means[cluster]).sum(1), 0)
    return Halves(*(torch.from_numpy(one) for one in (side, split, means, counts, inertia)))


class _Plane:
    """Rows with <x, w> > t are of the second half."""

    def __init__(self, direction: Vector, threshold: float) -> None:
        self.direction, self.threshold = direction.astype(np.float32), threshold

    @classmethod
    def between(cls, one: Vector, other: Vector) -> _Plane:
        direction = other.astype(np.float64) - one
        return cls(direction, float(direction @ (other.astype(np.float64) + one)) / 2)


class _Parts:
    """Two halves of rows that are about their mean, so that the sums of both are opposite."""

    def __init__(self, side: NDArray[np.bool_], total: Vector) -> None:
        self.side, self.total = side, total
        self.count = int(np.count_nonzero(side))
        self.rest = len(side) - self.count
        self.square = float(total @ total)

    @property
    def plane(self) -> _Plane:
        """The plane halfway between the two means, which lie on one line with the origin."""
        return _Plane(self.total, self.square * (1 / max(self.count, 1) - 1 / max(self.rest, 1)) / 2)

    def means(self, x: Rows) -> Vector:
        """Of both halves, from the sum of the smaller one: rows are about their mean but for rounding."""
        total = self.total if self.count <= self.rest else -_total(x, ~self.side)
        return np.stack((-total / self.rest, total / self.count))

    def shift(self, later: _Parts) -> float:
        """The squared distances between the means of both, together."""
        both, found = float(self.total @ later.total), 0.0
        for one, other in ((self.count, later.count), (self.rest, later.rest)):
            old, new = 1 / max(one, 1), 1 / max(other, 1)
            found += self.square * old**2 + later.square * new**2 - 2 * both * old * new
        return found


def _assigned(x: Rows, plane: _Plane) -> _Parts:
    if len(x) <= BLOCK:
        side = x @ plane.direction > plane.threshold
        return _Parts(side, _total(x, side))
    side, total = np.empty(len(x), bool), np.zeros(x.shape[1])
    for start in range(0, len(x), BLOCK):
        block = x[start : start + BLOCK]
        side[start : start + BLOCK] = on = block @ plane.direction > plane.threshold
        total += on.astype(np.float32) @ block
    return _Parts(side, total)


def _total(x: Rows, on: NDArray[np.bool_]) -> Vector:
    if len(x) <= BLOCK:
        return (on.astype(np.float32) @ x).astype(np.float64)
    return sum((_total(x[at : at + BLOCK], on[at : at + BLOCK]) for at in range(0, len(x), BLOCK)), np.zeros(()))


def _lloyd(x: Rows, start: _Plane, enough: float, steps: int) -> _Parts:
    """Lloyd's algorithm from a plane on; the halves that the plane itself makes, where it ends with one part empty."""
    found = first = _assigned(x, start)
    for _ in range(steps - 1):
        later = _assigned(x, found.plane)
        if np.array_equal(later.side, found.side):
            break
        shift = found.shift(later)
        found = later
        if shift <= enough:
            break
    return found if found.count and found.rest else first


def _sampled(x: Rows, draws: Vector, first: _Plane, enough: float, steps: int, sample: int) -> _Parts | None:
    """From the means of a sample; None where these leave a half without rows."""
    few = x[np.sort(np.argpartition(draws, sample - 1)[:sample])]
    centre = few.mean(0)
    few -= centre
    begun = _lloyd(few, _Plane(first.direction, first.threshold - float(first.direction @ centre)), enough, steps)
    if not begun.count or not begun.rest:
        return None
    plane = begun.plane
    plane.threshold += float(plane.direction @ centre)
    found = _lloyd(x, plane, enough, min(steps, SETTLE))
    return found if found.count and found.rest else None


def _pair(x: Rows, draws: Vector, distant: bool) -> tuple[int, int] | None:
    """Two rows that differ, the first with the greatest draw; None where all are equal."""
    first = int(draws[0].argmax())
    if not distant:
        second = int(draws[1].argmax())
        if np.square(x[second] - x[first]).sum() > 0:
            return first, second
    apart = np.square(x - x[first]).sum(1).astype(np.float64)
    with np.errstate(divide="ignore"):
        # the greatest of u^(1/d) is row i with probability d_i / sum d
        key = np.log(np.maximum(draws[1], 1e-300)) / apart if distant else draws[1]
    second = int(np.where(apart > 0, key, -np.inf).argmax())
    return (first, second) if apart[second] > 0 else None
