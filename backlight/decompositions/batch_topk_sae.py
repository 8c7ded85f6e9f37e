"""The sparse autoencoder that keeps k latents a row on average: some rows need more than others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from backlight.decompositions.decomposition import Work
from backlight.decompositions.selection import Places, largest_of_all
from backlight.decompositions.topk_sae import TopKSAE
from backlight.errors import InputError
from backlight.shapes import Bool, Float, Int

SHORT = 20  # a threshold's running mean is over the last 1 / SHORT of a training, where its rate would make it longer


@dataclass(kw_only=True)
class BatchTopKSAE(TopKSAE):
    """z = the `k` n largest of all relu(W (x - b) + c) of a batch of n rows, x_hat = z D + b (Bussmann et al. 2024).

    That is training. A code that is asked for depends on no other row: there a latent is on above one threshold, the
    running mean of the smallest value that batches kept. It begins at the first one after `threshold_start` updates, or
    after half of a training that is too short for them, and moves by `threshold_rate` of the difference; by 20 / steps
    in trainings so short that this is more. `anneal`: updates over which k comes down to its value, in a straight line
    from half of all latents.
    """

    source: ClassVar[str] = "Bussmann et al. 2024, BatchTopK Sparse Autoencoders, arXiv 2412.06410"
    formula: ClassVar[str] = "z = relu(W (x - b) + c) where > theta (training: k n largest of n rows); x_hat = z D + b"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "bussmann": {},
        "dictionary_learning": {
            "learning_rate": 2e-4,
            "rate_by_width": True,
            "warm_up": 1000,
            "beta2": 0.999,
            "clip": 1.0,
            "threshold_rate": 0.001,
            "threshold_start": 1000,
            "spare": None,
            "dead_after": 10_000_000,
            "centre": "median",
            "normalise": "global",
        },
    }
    alone: ClassVar[bool] = True

    n_modes: int | str = "16x"
    k: int = 32
    epochs: int = 10
    pass_steps: int = 2000
    learning_rate: float = 3e-4
    rate_by_width: bool = False
    beta2: float = 0.99
    batch_size: int = 4096
    centre: str = "zero"
    spare: int | None = 512
    dead_after: int | None = 20 * 4096
    threshold_rate: float = 0.01
    threshold_start: int = 0
    anneal: int = 0

    def check(self, n: int, channels: int) -> None:
        super().check(n, channels)
        if not 0 < self.threshold_rate <= 1 or self.threshold_start < 0 or self.anneal < 0:
            raise InputError("threshold_rate lies in (0, 1], threshold_start and anneal are not negative")

    def _initial(self, work: Work, n_modes: int, draw: torch.Generator) -> dict[str, Tensor]:
        return {**super()._initial(work, n_modes, draw), "_threshold": torch.tensor(-1.0)}

    def _rate(self, n_modes: int) -> float:
        return self.learning_rate / (n_modes / 2**14) ** 0.5 if self.rate_by_width else self.learning_rate

    def _places(self, before: Float[Tensor, "n K"]) -> Places:
        n, width = before.shape
        k = float(self.k)
        if self.done < self.anneal:
            k += (max(width / 2, k) - k) * (1 - self.done / self.anneal)
        threshold = self.state["_threshold"]
        found = largest_of_all(before, round(k * n), max(float(threshold), 0.0))
        start = min(self.threshold_start, self.length // 2) if self.length else self.threshold_start
        if self.done >= start and len(found.rows):
            least = before[found.rows, found.columns].min().to(threshold)
            rate = max(self.threshold_rate, min(SHORT / self.length, 1.0)) if self.length else self.threshold_rate
            threshold.copy_(torch.where(threshold < 0, least, threshold + rate * (least - threshold)))
        return found

    def _on(self, before: Float[Tensor, "n K"], indices: Int[Tensor, "K"] | None = None) -> Bool[Tensor, "n K"]:
        return before > self.state["_threshold"].clamp(min=0)
