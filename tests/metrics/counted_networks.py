"""Small networks of the tests of metrics: linear ones, and ones that note the sizes of their batches."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Linear(nn.Module):
    """Logits `<w_k, x> + b_k`."""

    def __init__(self, weight: Tensor, bias: float | Tensor = 0.0) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), bias

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.weight.flatten(1).T + self.bias


class Counted(nn.Module):
    """Two channels, three classes; the logits are multiplied by `scale`."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.conv, self.head, self.scale = nn.Conv2d(2, 5, 3), nn.Linear(5, 3), scale
        self.batches: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.batches.append(len(x))
        return self.scale * self.head(torch.tanh(self.conv(x)).square().mean((2, 3)))


class Colours(nn.Module):
    """Three channels, four classes; the same weights every time."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.conv, self.head = nn.Conv2d(3, 6, 5, stride=2), nn.Linear(6, 4)
        self.batches: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.batches.append(len(x))
        return self.head(nn.functional.softplus(self.conv(x)).square().mean((2, 3)))


def drawn(*shape: int, seed: int = 0) -> Tensor:
    """Normal numbers in double precision."""
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
