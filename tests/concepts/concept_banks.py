"""Small networks and banks: a CNN that SRD knows, a transformer, and pictures whose pixels are the vectors."""

from __future__ import annotations

import json
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from backlight.concepts.bank import Bank, make_bank
from backlight.concepts.concepts import encode_concepts, fit_concepts
from backlight.decompositions import Decomposition
from backlight.evaluation.samples import TensorSamples

CLASSES = 3


def cnn() -> nn.Sequential:
    """Two activations; the score is read from the second by a mean and a linear head."""
    torch.manual_seed(0)
    parts = OrderedDict(
        first=nn.Conv2d(3, 4, 3, padding=1),
        act1=nn.ReLU(),
        pool=nn.MaxPool2d(2),
        second=nn.Conv2d(4, 5, 3, padding=1),
        act2=nn.ReLU(),
        mean=nn.AdaptiveAvgPool2d(1),
        flat=nn.Flatten(),
        head=nn.Linear(5, CLASSES),
    )
    return nn.Sequential(parts).eval()


def vit(registers: int = 0) -> nn.Module:
    """Patches of 4 pixels: 4 x 4 of them on pictures of 16."""
    from timm.models.vision_transformer import VisionTransformer

    torch.manual_seed(0)
    return VisionTransformer(
        img_size=16, patch_size=4, embed_dim=8, depth=2, num_heads=2, num_classes=CLASSES, reg_tokens=registers
    ).eval()


def pixels(channels: int, weights: Tensor | None = None) -> nn.Sequential:
    """Its site `features` gives the picture itself; class c scores the mean of <w_c, pixel>."""
    head = nn.Linear(channels, CLASSES, bias=False)
    if weights is not None:
        head.weight = nn.Parameter(weights)
    copy = nn.Conv2d(channels, channels, 1, bias=False)
    copy.weight = nn.Parameter(torch.eye(channels)[:, :, None, None])
    return nn.Sequential(OrderedDict(features=copy, mean=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten(), head=head)).eval()


def pictures(count: int = 9, size: int = 8, channels: int = 3) -> TensorSamples:
    inputs = torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(1))
    return TensorSamples(inputs, [number % CLASSES for number in range(count)], names=[f"p{n}" for n in range(count)])


def small(folder: Path, samples: TensorSamples | None = None, sites: Any = ("act1", "act2"), **settings: Any) -> Bank:
    chosen: dict[str, Any] = {"sampling": "relevance", "per_image": 2, "batch_size": 2, "block": 4} | settings
    return make_bank(cnn(), samples or pictures(), sites, folder, **chosen)


@dataclass(frozen=True)
class Positive:
    """A coder: the positive part of x D^T, scaled."""

    scale: float = 1.0

    def encode(self, x: Tensor, dictionary: Decomposition) -> Tensor:
        return self.scale * (x @ dictionary.modes.T).relu()


def fitted(bank: Bank, folder: Path, code: bool = True) -> None:
    """A dictionary of a bank, and codes by another coder."""
    concepts = fit_concepts(bank, "act2", "KMeans", folder, modes=3, epochs=5)
    if code:
        encode_concepts(concepts, None, Positive())


def contents(folder: Path) -> dict[str, bytes]:
    """All files but locks; of the record of a store what does not say who wrote it when."""
    found = {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix != ".lock" and not path.name.startswith(".")
    }
    for name in found:
        if name.endswith("store.json"):
            plain = json.loads(found[name])
            found[name] = json.dumps({**plain, "sessions": []}).encode()
    return found
