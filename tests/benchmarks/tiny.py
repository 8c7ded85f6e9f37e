"""A small network and a few small pictures, so that a benchmark takes seconds."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from backlight.benchmarks.subjects import Subject

SIZE = 32


class Tiny(nn.Module):
    """Maps of 16, 8, 4 and 2 pixels across; ReLU, max-pooling, BatchNorm; logits of 6 classes."""

    def __init__(self, activation: type[nn.Module] = nn.ReLU) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), activation(), nn.MaxPool2d(2))
        self.middle = nn.Sequential(nn.Conv2d(8, 12, 3, 2, 1), activation())
        self.last = nn.Sequential(nn.Conv2d(12, 16, 3, 2, 1), nn.BatchNorm2d(16), activation())
        self.head = nn.Linear(16, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.last(self.middle(self.stem(x))).mean((2, 3)))


def subject(seed: int = 0) -> Subject:
    torch.manual_seed(seed)
    return Subject(f"tiny{seed}", Tiny().eval(), size=SIZE)


def photographs(folder: Path, count: int = 4) -> Path:
    """Coloured noise with labels 0 to 5."""
    folder.mkdir(parents=True)
    draws = np.random.default_rng(0)
    with (folder / "labels.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "class_index"])
        for number in range(count):
            coarse = draws.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(coarse).resize((SIZE, SIZE)).save(folder / f"{number}.png")
            writer.writerow([f"{number}.png", number % 6])
    return folder
