"""Planted parts: rows that are sparse non-negative sums of known modes."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def planted(rows: int = 600, modes: int = 10, channels: int = 24, active: float = 0.15) -> tuple[Tensor, Tensor]:
    """Rows `[n, C]` of standard deviation 1, and the modes `[K, C]` that they are made of, of length 1."""
    draw = torch.Generator().manual_seed(3)
    parts = torch.rand(modes, channels, generator=draw) * (torch.rand(modes, channels, generator=draw) < 0.25)
    parts[:, 0] += 0.1  # none is empty
    loadings = (0.5 + torch.rand(rows, modes, generator=draw)) * (torch.rand(rows, modes, generator=draw) < active)
    x = loadings @ parts
    return x / x.std(unbiased=False), F.normalize(parts)


def matched(found: Tensor, parts: Tensor) -> float:
    """The mean over true modes of the largest cosine with a mode that was found."""
    return float((F.normalize(found) @ parts.T).max(0).values.mean())
