"""The sparse autoencoder with ReLU and an L1 penalty: what activations are decomposed with most."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from backlight.decompositions.selection import combine, few, masked, positive, values_at, where_true
from backlight.decompositions.training import Pass
from backlight.decompositions.unit_sae import UnitSAE
from backlight.errors import InputError
from backlight.shapes import Bool, Float, Int

LOSSES = ("mean", "sum")


@dataclass(kw_only=True)
class ReLUSAE(UnitSAE):
    """z = relu(W (x - b) + c), x_hat = z D + b, modes of length 1, and a price on loadings (Bricken et al. 2023).

    The loss is the mean squared error over batch and channels, and `l1` / sqrt(C) times the mean over rows of sum |z|:
    divided so, a price says the same for any number of channels, where rows have a standard deviation of 1. Every ten
    epochs, modes that were on in no row are set to what is missing of rows drawn in proportion to their squared error,
    their encoders to 0.2 of the others' mean length.

    `loss`: "sum" is |x - x_hat|^2 + `l1` sum |z| of a row, as equations 8 and 9 of Kim et al. 2026 (arXiv 2605.00474)
    have it; the preset "ierf" is theirs where they say something, with b_d and b_h there as c + W b and b here.
    `l1_warm_up`: steps over which the price rises from 0.
    """

    source: ClassVar[str] = "Bricken et al. 2023, Towards Monosemanticity"
    formula: ClassVar[str] = "z = relu(W (x - b) + c); x_hat = z D + b, |D_k| = 1; MSE + l1 / sqrt(C) sum |z|"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "bricken": {},
        "ierf": {"loss": "sum", "n_modes": "8x", "revive_every": 0},
    }

    l1: float = 0.1
    loss: str = "mean"
    l1_warm_up: int = 0
    revive_every: int = 10

    def check(self, n: int, channels: int) -> None:
        super().check(n, channels)
        if self.l1 < 0 or self.l1_warm_up < 0:
            raise InputError(f"l1 and l1_warm_up are not negative, got {self.l1} and {self.l1_warm_up}")
        if self.loss not in LOSSES:
            raise InputError(f"loss is one of {', '.join(LOSSES)}, got {self.loss!r}")

    def _pass(self, x: Float[Tensor, "n C"], draw: torch.Generator, silent: Bool[Tensor, "K"]) -> Pass:
        normal, state = self._normal(x), self.state
        modes, tensors = state["modes"], (state["encoder"], state["bias"], state["offset"])
        with torch.no_grad():
            centred = self._centred(normal.rows)
            before = F.linear(centred, state["encoder"], state["bias"])
            on, counts = positive(before)
        if few(counts, len(x)):
            places = where_true(on)
            values = values_at(places, before, centred, *tensors)
            told, total = combine(places, values, modes), values.sum()
        else:  # the sum of codes is one more channel, that all modes tell by 1
            z = masked(before, on, centred, *tensors)
            wide = z @ torch.cat((modes, torch.ones_like(modes[:, :1])), 1)
            told, total = wide[:, :-1].to(modes.dtype), wide[:, -1].sum(dtype=modes.dtype)
        decoded = told + state["offset"]
        return Pass(self._loss(normal.rows, decoded, total), normal.restored(decoded), counts > 0, counts.sum())

    def _loss(self, rows: Float[Tensor, "n C"], decoded: Float[Tensor, "n C"], total: Tensor) -> Tensor:
        """`total`: the sum of all codes."""
        n, channels = rows.shape
        price = self.l1 * (min(self.done / self.l1_warm_up, 1.0) if self.l1_warm_up else 1.0)
        if self.loss == "sum":
            return ((decoded - rows).square().sum() + price * total) / n
        return F.mse_loss(decoded, rows) + price * channels**-0.5 * total / n

    def _on(self, before: Float[Tensor, "n K"], indices: Int[Tensor, "K"] | None = None) -> Bool[Tensor, "n K"]:
        return before > 0
