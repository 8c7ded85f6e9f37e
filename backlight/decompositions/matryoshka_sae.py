"""The sparse autoencoder whose first latents must do alone: coarse concepts first, fine ones after."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, ClassVar

import torch
from torch import Tensor

from backlight.decompositions.batch_topk_sae import BatchTopKSAE
from backlight.decompositions.selection import Places, combine_groups
from backlight.errors import InputError
from backlight.shapes import Float, Int

PARETO = 0.5  # the exponent of random prefixes' lengths


@dataclass(kw_only=True)
class MatryoshkaSAE(BatchTopKSAE):
    """A `BatchTopKSAE` whose loss is the mean over prefixes of latents, each decoded alone (Bussmann et al. 2025).

    One global batch top-k chooses which latents are on; x_hat_g = b + sum of z_k D_k over the latents of groups 1..g;
    the loss is the mean of |x - x_hat_g|^2 / C over g = 1..G and, with `bare`, over b alone.

    `groups`: shares of the latents, that add up to 1. `random_prefixes`: so many prefix lengths are drawn for each
    batch instead, the last of them all latents, the others from a Pareto law of exponent 0.5 (Stevens et al. 2025,
    saev). The presets' lengths are not set: `tokens=500_000_000` is the first's, `steps=110_000` Pach's. "saev" takes
    its prefixes, rate and auxiliary loss; its L1 and TopK variants are other classes.
    """

    source: ClassVar[str] = "Bussmann et al. 2025, Learning Multi-Level Features with Matryoshka SAEs, arXiv 2503.17547"
    formula: ClassVar[str] = "as BatchTopKSAE; loss = mean over prefixes g of |x - (b + z_{<=g} D_{<=g})|^2 / C"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "bussmann": {},
        "dictionary_learning": {**BatchTopKSAE.presets["dictionary_learning"], "bare": False},
        "pach": {
            **BatchTopKSAE.presets["dictionary_learning"],
            "bare": False,
            "k": 20,
            "groups": (0.0625, 0.125, 0.25, 0.5625),
            "auxiliary": 0.03,
            "normalise": "none",
        },
        "saev_random_prefixes": {
            "random_prefixes": 10,
            "bare": False,
            "learning_rate": 4e-4,
            "beta2": 0.999,
            "dead_after": 10_000_000,
        },
    }

    groups: tuple[float, ...] = (1 / 16, 1 / 16, 1 / 8, 1 / 4, 1 / 2)
    bare: bool = True
    random_prefixes: int = 0

    def check(self, n: int, channels: int) -> None:
        super().check(n, channels)
        if not self.groups or min(self.groups) <= 0 or abs(sum(self.groups) - 1) > 1e-6 or self.random_prefixes < 0:
            raise InputError(f"groups are positive shares that add up to 1, random_prefixes at least 0; {self.groups}")
        ends = self.prefixes(self.count(channels))
        if len(set(ends)) < len(ends) or not ends[0]:
            raise InputError(f"{self.count(channels)} modes in groups of shares {self.groups} leave one empty: {ends}")

    def prefixes(self, n_modes: int | None = None) -> list[int]:
        """How many latents each prefix has, of a fitted dictionary or of so many modes."""
        n_modes = len(self.modes) if n_modes is None else n_modes
        return [round(share / sum(self.groups) * n_modes) for share in accumulate(self.groups)]

    def _ends(self, n_modes: int, draw: torch.Generator) -> Int[Tensor, "G"]:
        if not self.random_prefixes:
            return torch.tensor(self.prefixes(n_modes), device=draw.device)
        uniform = torch.rand(self.random_prefixes - 1, generator=draw, device=draw.device, dtype=torch.float64)
        lengths = (1 - uniform * (1 - n_modes**-PARETO)) ** (-1 / PARETO)  # from 1 to all latents
        return torch.cat(
            (lengths.floor().long().clamp(1, n_modes), torch.tensor([n_modes], device=draw.device))
        ).unique()

    def _told(
        self, rows: Float[Tensor, "n C"], places: Places, values: Float[Tensor, "e"], draw: torch.Generator
    ) -> tuple[Tensor, Float[Tensor, "n C"]]:
        told = combine_groups(places, values, self._modes(), self._ends(places.width, draw)).cumsum(1)
        bare = rows - self.state["offset"]
        missing = bare[:, None] - told
        squares = missing.square().sum() + (bare.square().sum() if self.bare else 0.0)
        return squares / (rows.numel() * (told.shape[1] + self.bare)), rows - missing[:, -1]
