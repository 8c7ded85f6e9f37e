"""The sparse autoencoder that keeps the k largest: sparsity is set, not priced."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from backlight.decompositions.selection import Places, combine, largest, largest_of_rows, values_at
from backlight.decompositions.training import Pass
from backlight.decompositions.unit_sae import UnitSAE
from backlight.errors import InputError
from backlight.shapes import Bool, Float, Int


@dataclass(kw_only=True)
class TopKSAE(UnitSAE):
    """z = the `k` largest of relu(W (x - b) + c), x_hat = z D + b, modes of length 1 (Gao et al. 2024).

    The loss is the mean squared error, and `auxiliary` times that of telling what is missing by the `spare` largest of
    the modes that are dead (see `dead_after`), so that they come back; None is half of the channels.
    """

    source: ClassVar[str] = "Gao et al. 2024, Scaling and evaluating sparse autoencoders, arXiv 2406.04093"
    formula: ClassVar[str] = "z = top_k(relu(W (x - b) + c)); x_hat = z D + b, |D_k| = 1; MSE + auxiliary MSE_dead"
    alone: ClassVar[bool] = False

    k: int = 16
    auxiliary: float = 1 / 32
    spare: int | None = None
    revive_every: int = 0

    def check(self, n: int, channels: int) -> None:
        super().check(n, channels)
        n_modes = self.count(channels)
        if not 1 <= self.k <= n_modes or self.auxiliary < 0 or (self.spare is not None and self.spare < 1):
            raise InputError(f"k is from 1 to the number of modes, {n_modes}, auxiliary not negative, spare at least 1")

    def _pass(self, x: Float[Tensor, "n C"], draw: torch.Generator, silent: Bool[Tensor, "K"]) -> Pass:
        normal, state = self._normal(x), self.state
        with torch.no_grad():
            centred = self._centred(normal.rows)
            before = F.linear(centred, state["encoder"], state["bias"])
            places = self._places(before)
        values = values_at(places, before, centred, state["encoder"], state["bias"], state.get("offset")).relu()
        loss, decoded = self._told(normal.rows, places, values, draw)
        if self.auxiliary and silent.any():
            loss = loss + self.auxiliary * self._spare_loss(normal.rows, normal.rows - decoded.detach(), silent)
        on = torch.zeros_like(silent)
        on[places.columns[values > 0]] = True
        return Pass(loss, normal.restored(decoded), on, (values > 0).sum())

    def _places(self, before: Float[Tensor, "n K"]) -> Places:
        """Which latents of a batch may be on."""
        return largest_of_rows(before, self.k)

    def _told(
        self, rows: Float[Tensor, "n C"], places: Places, values: Float[Tensor, "e"], draw: torch.Generator
    ) -> tuple[Tensor, Float[Tensor, "n C"]]:
        """The loss of codes, and what they are decoded to."""
        told = combine(places, values, self._modes())
        decoded = told + self.state["offset"] if "offset" in self.state else told
        return F.mse_loss(decoded, rows), decoded

    def _spare_loss(
        self, rows: Float[Tensor, "n C"], missing: Float[Tensor, "n C"], silent: Bool[Tensor, "K"]
    ) -> Tensor:
        """How badly the largest of the dead modes tell what is missing."""
        dead = silent.nonzero().flatten()
        before = self._before(rows, dead).relu()
        on = largest(before, min(self.spare or max(rows.shape[1] // 2, 1), len(dead)))
        told = torch.where(on, before, 0.0) @ self._modes()[dead]
        return F.mse_loss(told.to(missing.dtype), missing)

    def _on(self, before: Float[Tensor, "n K"], indices: Int[Tensor, "K"] | None = None) -> Bool[Tensor, "n K"]:
        return largest(before, self.k) & (before > 0)
