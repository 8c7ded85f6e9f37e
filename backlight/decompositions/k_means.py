"""k-means: each row is its nearest centre."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from backlight.decompositions.checkpoints import Checkpoints
from backlight.decompositions.decomposition import Decomposition, Epoch, Work
from backlight.decompositions.scaling import moments
from backlight.decompositions.scores import score
from backlight.errors import InputError, MissingExtraError
from backlight.shapes import Float, Int
from backlight.store.rows import Chosen, pieces

SEEDING = 16384  # rows among which the first centres are chosen


@dataclass(kw_only=True)
class KMeans(Decomposition):
    """z is 1 at the nearest centre and 0 elsewhere, x_hat is that centre.

    Lloyd's algorithm, exact: a pass over the rows is an iteration, in bounded memory. It begins at k-means++ centres
    of 16384 rows, and ends after `epochs`, or when no row changes its centre, or when the centres move by less than
    `tolerance` times the mean variance of the channels, as scikit-learn's. A centre that loses all its rows takes the
    row that is farthest from its own.
    """

    source: ClassVar[str] = "Lloyd 1982; Arthur and Vassilvitskii 2007"
    formula: ClassVar[str] = "z = onehot(argmin_k |x - D_k|); x_hat = z D"
    claims: ClassVar[tuple[str, ...]] = ("nonnegative loadings", "one mode")

    n_modes: int | str = "1x"
    epochs: int = 300
    tolerance: float = 1e-4

    def check(self, n: int, channels: int) -> None:
        count = self.count(channels)
        if count > n:
            raise InputError(f"{count} centres of {n} rows: give fewer modes")
        if self.epochs < 1 or self.tolerance < 0:
            raise InputError("epochs are at least 1, tolerance is not negative")

    def _fit(self, work: Work, device: torch.device) -> None:
        n, channels = work.rows.shape
        count, found, kept = self.count(channels), moments(work.rows), Checkpoints(self, work)
        spread = float(found.squares.sum())
        enough = self.tolerance * spread / n / channels
        begun = kept.read()
        if begun is None:
            self.state, nearest, done = {"modes": self._first(work, count).to(device)}, torch.full((n,), -1), False
        else:
            tensors, about, self.history = begun
            self.state, nearest, done = {"modes": tensors["modes"].to(device)}, tensors["nearest"], about["done"]
        while not done and len(self.history) < self.epochs:
            before, old = nearest, self.state["modes"]
            nearest, distance = self._assigned(work)
            self.state["modes"], sizes = self._centres(work, nearest, distance)
            moved = float((self.state["modes"] - old).double().square().sum())
            error, number = float(distance.sum()), len(self.history) + 1
            done = bool((nearest == before).all()) or moved <= enough
            r2 = 1 - error / spread if spread > 0 else 0.0
            other = None if work.held_out is None else score(self, work.held_out).r2
            alive = int((sizes > 0).sum())
            self.history.append(Epoch(number, self.epochs, error / n / channels, r2, other, 1.0, alive, count))
            if work.progress is not None:
                work.progress(self.history[-1])
            tensors = {"modes": self.state["modes"], "nearest": nearest}
            kept.write(tensors, {"done": done}, self.history, done or number == self.epochs)

    def _first(self, work: Work, count: int) -> Float[Tensor, "K C"]:
        try:
            from sklearn.cluster import kmeans_plusplus
        except ModuleNotFoundError:
            raise MissingExtraError("scikit-learn", "contributions") from None
        n, most = work.rows.shape[0], max(SEEDING, 2 * count)
        rows = work.rows
        if n > most:
            chosen = np.random.default_rng((self.seed, 0)).choice(n, most, replace=False)
            rows = Chosen(rows, np.sort(chosen))
        sample = torch.cat([piece for _, piece in pieces(rows)]).numpy()
        return torch.from_numpy(kmeans_plusplus(sample, count, random_state=self.seed)[0]).float()

    def _assigned(self, work: Work) -> tuple[Int[Tensor, "n"], Float[Tensor, "n"]]:
        """The nearest centre of each row, and its squared distance."""
        modes = self.state["modes"]
        places, distances = [], []
        for _, piece in pieces(work.rows):
            x = piece.to(modes)
            place = self._nearest(x)
            places.append(place.cpu())
            distances.append((x - modes[place]).double().square().sum(1).cpu())
        return torch.cat(places), torch.cat(distances)

    def _centres(
        self, work: Work, nearest: Int[Tensor, "n"], distance: Float[Tensor, "n"]
    ) -> tuple[Float[Tensor, "K C"], Int[Tensor, "K"]]:
        """The means of the rows of each centre, and how many they are."""
        modes = self.state["modes"]
        sums = torch.zeros(modes.shape, dtype=torch.float64, device=modes.device)
        for start, piece in pieces(work.rows):
            sums.index_add_(0, nearest[start : start + len(piece)].to(modes.device), piece.to(modes.device).double())
        sizes = nearest.bincount(minlength=len(modes)).to(modes.device)
        for empty in (sizes == 0).nonzero().flatten().tolist():
            far = int(distance.argmax())
            row, owner = work.rows.read(far, far + 1)[0].to(sums), int(nearest[far])
            sums[owner] -= row
            sums[empty] = row
            sizes[owner] -= 1
            sizes[empty] = 1
            distance[far] = 0.0
        return (sums / sizes.clamp(min=1)[:, None]).float(), sizes

    def _nearest(self, x: Float[Tensor, "n C"]) -> Int[Tensor, "n"]:
        modes = self.state["modes"]
        return ((modes**2).sum(1) - 2 * x @ modes.T).argmin(1)

    def _encode(self, x: Float[Tensor, "n C"]) -> Float[Tensor, "n K"]:
        return F.one_hot(self._nearest(x), len(self.state["modes"])).to(x.dtype)
