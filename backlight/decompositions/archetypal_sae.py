"""The sparse autoencoder whose modes are mixtures of rows: a dictionary that another seed finds again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from backlight.decompositions.decomposition import Work
from backlight.decompositions.k_means import KMeans
from backlight.decompositions.normalisation import root_mean_square
from backlight.decompositions.scaling import moments
from backlight.decompositions.topk_sae import TopKSAE
from backlight.errors import InputError
from backlight.shapes import Float, Int
from backlight.store.rows import Chosen, Rows

PER_POINT = 32  # rows a point, that k-means is given


@dataclass(kw_only=True)
class ArchetypalSAE(TopKSAE):
    """z = top_k(relu(W x + c)), x_hat = z D, D = A P + R: convex mixtures of points, and little more (Fel et al. 2025).

    P: `points` k-means centres of the rows, held fixed; rows of A are not negative and add up to 1; rows of R are at
    most `relaxation` times the root mean square length of rows (0: the strict archetypal dictionary, which lies within
    the convex hull of the rows). After each step A is clamped at 0 and divided by its sums, R is shortened. Modes are
    points among the rows, not directions from their mean, and not of length 1; there is no offset.
    """

    source: ClassVar[str] = "Fel et al. 2025, Archetypal SAE, arXiv 2502.12892"
    formula: ClassVar[str] = "z = top_k(relu(W x + c)); x_hat = z D, D = A P + R, A >= 0, A 1 = 1, |R_k| <= delta; MSE"
    claims: ClassVar[tuple[str, ...]] = ("nonnegative loadings",)
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "relaxed": {},
        "strict": {"relaxation": 0.0},
        "fel": {"points": 32_000},
    }
    per_mode: ClassVar[tuple[str, ...]] = ("encoder", "bias", "mixture", "relaxed")

    n_modes: int | str = "16x"
    k: int = 32
    points: int = 1024
    relaxation: float = 0.1
    learning_rate: float = 5e-4
    batch_size: int = 1024
    epochs: int = 20

    def check(self, n: int, channels: int) -> None:
        super().check(n, channels)
        if self.points < 1 or self.relaxation < 0:
            raise InputError(f"points are at least 1, relaxation at least 0; got {self.points} and {self.relaxation}")
        if self.normalise != "none" or self.revive_every:
            raise InputError("modes are mixtures of the rows as they are: normalise is 'none', revive_every 0")

    def _initial(self, work: Work, n_modes: int, draw: torch.Generator) -> dict[str, Tensor]:
        points = self._points(work.rows)
        mixture = torch.zeros(n_modes, len(points))
        first, second = _dealt(n_modes, len(points), draw), _dealt(n_modes, len(points), draw)
        part = 0.5 * torch.rand(n_modes, generator=draw)  # two points a mode: no two modes begin alike
        every = torch.arange(n_modes)
        mixture.index_put_((every, first), 1 - part, accumulate=True)
        mixture.index_put_((every, second), part, accumulate=True)
        modes = mixture @ points
        return {
            "encoder": modes / modes.square().sum(1, keepdim=True).clamp(min=1e-12),
            "bias": torch.zeros(n_modes),
            "mixture": mixture,
            "relaxed": torch.zeros_like(modes),
            "_points": points,
            "_bound": torch.tensor(self.relaxation * root_mean_square(moments(work.rows))),
        }

    def _points(self, rows: Rows) -> Float[Tensor, "P C"]:
        most = PER_POINT * self.points
        if rows.shape[0] > most:
            chosen = np.random.default_rng((self.seed, 1)).choice(rows.shape[0], most, replace=False)
            rows = Chosen(rows, np.sort(chosen))
        return KMeans(n_modes=min(self.points, rows.shape[0]), seed=self.seed, epochs=30).fit(rows).modes

    def _modes(self) -> Float[Tensor, "K C"]:
        return self.state["mixture"] @ self.state["_points"] + self.state["_bound"] * self.state["relaxed"]

    def _before_step(self) -> None:
        """Modes are not of length 1: gradients stay."""

    def _after_step(self) -> None:
        mixture, relaxed = self.state["mixture"], self.state["relaxed"]
        best = mixture.argmax(1, keepdim=True)
        mixture.clamp_(min=0)
        total = mixture.sum(1, keepdim=True)
        mixture.scatter_add_(1, best, (total == 0).to(mixture))  # a row without a positive entry: its largest
        mixture /= mixture.sum(1, keepdim=True)
        relaxed /= relaxed.norm(dim=1, keepdim=True).clamp(min=1)


def _dealt(count: int, values: int, draw: torch.Generator) -> Int[Tensor, "n"]:
    """Numbers below `values`, each as often as any other, in random order."""
    rounds = -(-count // values)
    return torch.cat([torch.randperm(values, generator=draw) for _ in range(rounds)])[:count]
