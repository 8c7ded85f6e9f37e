"""A small network with names that are no HTML, and pictures for it."""

from __future__ import annotations

import torch
from PIL import Image
from torch import nn

from backlight.data.classes import ClassNames
from backlight.data.images import Preprocessing
from backlight.decompositions import KMeans
from backlight.engine import captured
from backlight.graph import ConceptGraph, build_graph
from backlight.models import LoadedModel

HOSTILE = '<img src=x onerror="alert(1)"> & </script>'
NAMES = (HOSTILE, "dog", "cup", "rocket", "moon", "tree")


def small_network() -> LoadedModel:
    torch.manual_seed(3)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(4, 8, 3, stride=2, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, len(NAMES)),
    ).eval()  # fmt: skip
    with torch.no_grad():
        model[-1].weight *= 20
    layers = tuple(name for name, _ in model.named_modules() if name)
    size = Preprocessing((32, 32), (32, 32))
    return LoadedModel("small", model, size, ClassNames(NAMES), layers, "drawn <at> random")


def small_layers(loaded: LoadedModel) -> dict[str, KMeans]:
    """Concepts of its last feature map, fitted to a picture."""
    x = loaded.preprocessing.tensor(small_picture())[None]
    with torch.no_grad(), captured(loaded.model, ["3"]) as held:
        loaded.model(x)
    return {"3": KMeans(n_modes=3).fit(held["3"].flatten(2).transpose(1, 2).flatten(0, 1))}


def small_graph(loaded: LoadedModel, name: str = "one") -> ConceptGraph:
    """Of the picture."""
    x = loaded.preprocessing.tensor(small_picture())[None]
    return build_graph(loaded, x, small_layers(loaded), classes=[0, 1], top=2, name=name)


def small_picture(seed: int = 0) -> Image.Image:
    values = torch.rand(8, 8, 3, generator=torch.Generator().manual_seed(seed))
    return Image.fromarray((values * 255).byte().numpy()).resize((40, 40))
