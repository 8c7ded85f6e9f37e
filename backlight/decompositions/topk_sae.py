"""The sparse autoencoder that keeps the k largest: sparsity is set, not priced."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from backlight.decompositions.relu_sae import UnitSAE
from backlight.decompositions.training import Pass
from backlight.errors import InputError
from backlight.shapes import Bool, Float, Int


@dataclass(kw_only=True)
class TopKSAE(UnitSAE):
    """z = the `k` largest of relu(W (x - b) + c), x_hat = z D + b, modes of length 1 (Gao et al. 2024).

    The loss is the mean squared error, and `auxiliary` times that of telling what is missing by the `spare` largest of
    the modes that were on in no row for an epoch, so that they come back; None is half of the channels.
    """

    source: ClassVar[str] = "Gao et al. 2024, Scaling and evaluating sparse autoencoders, arXiv 2406.04093"
    formula: ClassVar[str] = "z = top_k(relu(W (x - b) + c)); x_hat = z D + b, |D_k| = 1; MSE + auxiliary MSE_dead"

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
        before = self._before(x)
        z = _largest(before.relu(), self.k)
        decoded = z @ self.state["modes"] + self.state["offset"]
        loss = F.mse_loss(decoded.float(), x)
        if self.auxiliary and silent.any():
            spare = min(self.spare or max(x.shape[1] // 2, 1), int(silent.sum()))
            told = _largest(before.masked_fill(~silent, float("-inf")).relu(), spare) @ self.state["modes"]
            missing = (x - decoded).detach()
            loss = loss + self.auxiliary * F.mse_loss(told.float(), missing.float())
        return Pass(loss, decoded, z)

    def _encode(self, x: Float[Tensor, "n C"]) -> Float[Tensor, "n K"]:
        return _largest(self._before(x).relu(), self.k)

    def _latents(self, x: Float[Tensor, "n C"], indices: Int[Tensor, "m"] | None) -> Float[Tensor, "n m"]:
        on = self._encode(x.detach()) > 0  # of all latents: those that are not asked for take places
        return self._chosen_before(x, indices) * (on if indices is None else on[:, indices])


def _largest(values: Float[Tensor, "n K"], k: int) -> Float[Tensor, "n K"]:
    """All but the k largest of each row set to 0."""
    top = values.topk(k, dim=1)
    return torch.zeros_like(values).scatter(1, top.indices, top.values)
