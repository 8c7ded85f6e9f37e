"""Bisecting k-means: one cluster is split in two, again and again; many splits are solved at once."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from backlight.decompositions.checkpoints import Checkpoints
from backlight.decompositions.decomposition import Decomposition, Epoch, Work
from backlight.decompositions.halving import halves
from backlight.decompositions.scaling import moments
from backlight.decompositions.scores import score
from backlight.decompositions.split_tree import SplitTree
from backlight.decompositions.two_means import Halves, two_means
from backlight.errors import InputError
from backlight.shapes import Float, Int
from backlight.store.rows import READ, pieces

STRATEGIES = ("biggest_inertia", "largest_cluster")
STARTS = ("random", "k-means++")


@dataclass(kw_only=True)
class BisectingKMeans(Decomposition):
    """z is 1 at the nearest centroid and 0 elsewhere; the atoms are the centroids of `n_modes` clusters.

    Beginning with all rows, the cluster of the greatest inertia (`strategy="biggest_inertia"`: its sum of squared
    distances to its mean) or of most rows ("largest_cluster") is split by 2-means, until there are `n_modes`: the
    sequence of scikit-learn's `BisectingKMeans`. What a cluster is split into depends on the seed and on its own
    rows, not on when it is split, and a part never has more inertia than the whole: so the clusters that the sequence
    would split are those of greatest inertia in the tree of all splits, and they are solved in rounds, all that are
    sure or likely to be among them at once.

    2-means: Lloyd's algorithm from two different rows, drawn evenly ("random") or the second in proportion to its
    squared distance from the first ("k-means++"); the best of `n_init` starts. It ends when no row changes sides,
    when the two means move by less than `tolerance` times the mean variance of the channels (squared, as in
    `KMeans`), or after `steps`. Equal rows are never split. A cluster of more than `sample` rows is first split by a
    sample of so many, and the means of its halves take two steps among all of its rows (0: all rows from the first, as
    the lab's do).

    `refine`: steps of Lloyd's algorithm among all centroids in the end; the lab's clusters have none (0).
    `descend`: a row goes down the tree of splits, to the nearer of two means at each, in place of being compared with
    all centroids: as scikit-learn's `predict`; cheaper, and not always the nearest.

    The tree is kept: `children`, and in `state` "tree.means", "tree.sizes" and "tree.inertia" of every node, in the
    order of the splits: the first k - 1 of them are the clustering into k. Rows and one copy of them are in memory.
    """

    source: ClassVar[str] = "Steinbach, Karypis and Kumar 2000; Concept iERF framework, section V-A"
    formula: ClassVar[str] = "z = onehot(argmin_k |x - D_k|); x_hat = z D"
    claims: ClassVar[tuple[str, ...]] = ("nonnegative loadings", "one mode")

    n_modes: int | str = "8x"
    strategy: str = "biggest_inertia"
    start: str = "random"
    n_init: int = 1
    steps: int = 300
    tolerance: float = 1e-4
    sample: int = 1024
    refine: int = 0
    descend: bool = False

    def check(self, n: int, channels: int) -> None:
        count = self.count(channels)
        if count > n:
            raise InputError(f"{count} centroids of {n} rows: give fewer modes")
        for name, given, known in (("strategy", self.strategy, STRATEGIES), ("start", self.start, STARTS)):
            if given not in known:
                raise InputError(f"{name} is one of {', '.join(known)}; got {given!r}")
        if self.n_init < 1 or self.steps < 1 or self.tolerance < 0 or self.refine < 0 or self.sample < 0:
            raise InputError("n_init and steps are at least 1, tolerance, sample and refine are not negative")
        if self.descend and self.refine:
            raise InputError("refined centroids have no tree to go down: descend=False, or refine=0")

    @property
    def children(self) -> Int[Tensor, "T 2"]:
        """The two nodes that each node was split into; -1, -1 for a leaf. Node 0 is all rows."""
        self.modes  # noqa: B018 - raises where there is no fit
        return self.state["tree.children"]

    @property
    def leaves(self) -> Int[Tensor, "K"]:
        """The node of each mode."""
        return (self.children[:, 0] < 0).nonzero().flatten()

    def _fit(self, work: Work, device: torch.device) -> None:
        found, kept = moments(work.rows), Checkpoints(self, work)
        n, count = found.n, self.count(len(found.mean))
        mean = found.mean.float()
        x = torch.cat([piece - mean for _, piece in pieces(work.rows)]).to(device)  # centred: less is rounded
        spread = float(found.squares.sum())
        enough = self.tolerance * spread / n / len(mean)
        begun = kept.read()
        if begun is None:
            tree, labels = SplitTree.root(n, spread, len(mean)), torch.zeros(n, dtype=torch.long)
        else:
            tensors, _, self.history = begun
            tree, labels = SplitTree.of(tensors), tensors["labels"]
        while len(batch := tree.wanted(count, self.strategy)):
            labels = self._split(tree, batch, labels, x, enough)
            self._tell(work, tree.cut(count, self.strategy), mean, spread, count)
            last = not len(tree.wanted(count, self.strategy))
            kept.write({**tree.tensors(), "labels": labels}, {}, self.history, last)
        final = tree.cut(count, self.strategy)
        if final.leaves < count:
            raise InputError(f"{count} centroids of rows of which {final.leaves} differ: give fewer modes")
        self._keep(final, mean)
        self._refine(work, x, device)
        if not self.history or self.refine:
            self._tell(work, final, mean, spread, count, self.state["modes"])

    def _split(
        self, tree: SplitTree, batch: Int[Tensor, "S"], labels: Int[Tensor, "n"], x: Float[Tensor, "n C"], enough: float
    ) -> Int[Tensor, "n"]:
        """Split the nodes of a batch; the labels after it."""
        place = torch.full((len(tree),), -1)
        place[batch] = torch.arange(len(batch))
        chosen = place[labels]
        rows = (chosen >= 0).nonzero().flatten()
        rows = rows[chosen[rows].argsort(stable=True)]
        own, depths, means = chosen[rows], tree.depths[batch], tree.means[batch]
        halve = self._solver(x, rows, own, means, enough)
        best: Halves | None = None
        for trial in range(self.n_init):
            found = halve(self._draws(depths[own], rows, len(labels), trial))
            best = found if best is None else best.better(found, own)
        assert best is not None
        first = tree.grow(batch, best.split, best.means + means[:, None], best.sizes, best.inertia)
        moved = best.split[own]
        labels = labels.clone()
        labels[rows[moved]] = first[own[moved]] + best.side[moved].long()
        return labels

    def _solver(
        self,
        x: Float[Tensor, "n C"],
        rows: Int[Tensor, "m"],
        own: Int[Tensor, "m"],
        means: Float[Tensor, "S C"],
        enough: float,
    ) -> Callable[[Tensor], Halves]:
        """From draws to halves of the clusters: on a processor one after another, elsewhere all at once."""
        distant = self.start == "k-means++"
        if x.device.type == "cpu":
            return lambda draws: halves(
                x, rows, own, means, draws, distant=distant, enough=enough, steps=self.steps, sample=self.sample
            )
        data, there, centres = x[rows.to(x.device)], own.to(x.device), means.to(x)
        for start in range(0, len(data), READ):
            data[start : start + READ] -= centres[there[start : start + READ]]
        return lambda draws: two_means(
            data, there, draws.to(x.device), distant=distant, enough=enough, steps=self.steps, sample=self.sample
        ).cpu()

    def _draws(self, depths: Int[Tensor, "m"], rows: Int[Tensor, "m"], n: int, trial: int) -> Float[Tensor, "2 m"]:
        """Two uniform numbers a row, of its depth in the tree: nodes of one depth share no rows."""
        found = torch.empty(2, len(rows), dtype=torch.float64)
        for depth in depths.unique().tolist():
            drawn = torch.from_numpy(np.random.default_rng((self.seed, depth, trial)).random((2, n)))
            at = (depths == depth).nonzero().flatten()
            found[:, at] = drawn[:, rows[at]]
        return found

    def _keep(self, tree: SplitTree, mean: Float[Tensor, "C"]) -> None:
        means = tree.means.float() + mean
        self.state = {
            "modes": means[tree.children[:, 0] < 0],
            "tree.children": tree.children,
            "tree.means": means,
            "tree.sizes": tree.sizes,
            "tree.inertia": tree.inertia,
        }

    def _tell(
        self,
        work: Work,
        tree: SplitTree,
        mean: Float[Tensor, "C"],
        spread: float,
        count: int,
        modes: Float[Tensor, "K C"] | None = None,
    ) -> None:
        """A round is an epoch: what the clusters so far leave."""
        own = tree.children[:, 0] < 0
        number, left = len(self.history) + 1, math.ceil(math.log2(count / tree.leaves)) if modes is None else 0
        error = float(tree.inertia[own].sum()) if modes is None else self._error(work, modes)
        other = None
        if work.held_out is not None:
            self.state = {**self.state, "modes": tree.means[own].float() + mean if modes is None else modes}
            descend, self.descend = self.descend, False  # the tree grows yet
            other = score(self, work.held_out).r2
            self.descend = descend
        r2 = 1 - error / spread if spread > 0 else 0.0
        loss = error / work.rows.shape[0] / len(mean)
        self.history.append(Epoch(number, number + left, loss, r2, other, 1.0, tree.leaves, count))
        if work.progress is not None:
            work.progress(self.history[-1])

    def _error(self, work: Work, modes: Float[Tensor, "K C"]) -> float:
        found = 0.0
        for _, piece in pieces(work.rows):
            found += float((piece - modes[_nearest(piece, modes)]).double().square().sum())
        return found

    def _refine(self, work: Work, x: Float[Tensor, "n C"], device: torch.device) -> None:
        """Lloyd's steps among all centroids; one that loses its rows stays where it is."""
        for _ in range(self.refine):
            modes = self.state["modes"].to(device)
            sums, sizes = torch.zeros_like(modes, dtype=torch.float64), torch.zeros(len(modes), device=device)
            for _, piece in pieces(work.rows):
                piece = piece.to(device)
                place = _nearest(piece, modes)
                sums.index_add_(0, place, piece.double())
                sizes += place.bincount(minlength=len(modes))
            means = (sums / sizes.clamp(min=1)[:, None]).float()
            self.state["modes"] = torch.where(sizes[:, None] > 0, means, modes).cpu()

    def _encode(self, x: Float[Tensor, "n C"]) -> Float[Tensor, "n K"]:
        place = self._descended(x) if self.descend else _nearest(x, self.state["modes"])
        return torch.zeros(len(x), len(self.state["modes"]), dtype=x.dtype, device=x.device).scatter_(
            1, place[:, None], 1.0
        )

    def _descended(self, x: Float[Tensor, "n C"]) -> Int[Tensor, "n"]:
        children, means = self.state["tree.children"], self.state["tree.means"]
        modes = (children[:, 0] < 0).long().cumsum(0) - 1
        at = torch.zeros(len(x), dtype=torch.long, device=x.device)
        while (inner := children[at, 0] >= 0).any():
            both = children[at[inner]]
            far = (x[inner, None] - means[both]).square().sum(2)
            at[inner] = both.gather(1, far.argmin(1, keepdim=True))[:, 0]
        return modes[at]


def _nearest(x: Float[Tensor, "n C"], modes: Float[Tensor, "K C"]) -> Int[Tensor, "n"]:
    return ((modes**2).sum(1) - 2 * x @ modes.T).argmin(1)
