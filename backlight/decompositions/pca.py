"""Principal components, exact, from a covariance that is summed piece by piece."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from backlight.decompositions.decomposition import Decomposition, Epoch, Work
from backlight.decompositions.scaling import moments
from backlight.errors import InputError
from backlight.shapes import Float
from backlight.store.rows import pieces

LARGEST = 8192  # channels: their covariance takes 512 MiB


@dataclass(kw_only=True)
class PCA(Decomposition):
    """z = (x - mean) D^T, x_hat = z D + mean, D the covariance's eigenvectors of the largest eigenvalues.

    In float64; a mode's largest entry is positive, as in scikit-learn. The mean is that of each channel. At most as
    many modes as channels, 8192.
    """

    source: ClassVar[str] = "Pearson 1901"
    formula: ClassVar[str] = "x_hat = z D + mean, D orthonormal, of the largest variance"
    claims: ClassVar[tuple[str, ...]] = ("orthogonal modes", "unit modes")

    n_modes: int | str = "1x"

    def check(self, n: int, channels: int) -> None:
        count = self.count(channels)
        if count > channels or channels > LARGEST:
            raise InputError(f"PCA has at most as many modes as channels, {channels}, and {LARGEST}; got {count}")

    def _fit(self, work: Work, device: torch.device) -> None:
        n, channels = work.rows.shape
        count, found = self.count(channels), moments(work.rows)
        covariance = torch.zeros(channels, channels, dtype=torch.float64, device=device)
        for _, piece in pieces(work.rows):
            apart = piece.to(device).double() - found.mean.to(device)
            covariance += apart.T @ apart
        values, vectors = torch.linalg.eigh(covariance / max(n - 1, 1))
        values, modes = values.flip(0)[:count].clamp(min=0), vectors.T.flip(0)[:count]
        largest = modes.gather(1, modes.abs().argmax(1, keepdim=True))
        self.state = {
            "modes": (modes * largest.sign()).float(),
            "offset": found.mean.float().to(device),
            "variance": values.float(),
        }
        if work.progress is not None:
            total = float(found.squares.sum())
            left = max(total - float(values.sum()) * max(n - 1, 1), 0.0)
            share = 1 - left / total if total > 0 else 0.0
            work.progress(Epoch(1, 1, left / n / channels, share, None, float(count), count, count))

    def _encode(self, x: Float[Tensor, "n C"]) -> Float[Tensor, "n K"]:
        return (x - self.state["offset"]) @ self.state["modes"].T
