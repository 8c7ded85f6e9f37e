"""Residual networks for pictures of 32 pixels (He et al. 2016, section 4.2), for weights that the user has."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backlight.data.classes import ClassNames
from backlight.data.images import Preprocessing
from backlight.errors import ModelError, UnknownNameError
from backlight.models.checkpoints import load_strictly, read_state_dict
from backlight.models.layers import layer_names
from backlight.models.loaded import LoadedModel, Request
from backlight.shapes import Float

DEPTHS = (20, 32, 44, 56, 110)
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "ReLU": F.relu,
    "ELU": F.elu,
    "LeakyReLU": F.leaky_relu,
    "Swish": F.silu,
    "GELU": F.gelu,
    "Tanh": torch.tanh,
}


class Block(nn.Module):
    """Two convolutions and a shortcut without weights: every second pixel, new channels zero (option A)."""

    def __init__(self, width_in: int, width: int, stride: int, activation: Callable[[Tensor], Tensor] = F.relu) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.stride, self.grown, self.activation = stride, width - width_in, activation

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.activation(self.bn1(self.conv1(x)))))
        side = x[:, :, :: self.stride, :: self.stride] if self.stride > 1 else x
        side = F.pad(side, (0, 0, 0, 0, self.grown // 2, self.grown // 2)) if self.grown else side
        return self.activation(y + side)


class CifarResNet(nn.Module):
    """Three stages of `width`, twice and four times as many channels; (depth - 2) / 6 blocks each."""

    def __init__(self, depth: int, activation: str = "ReLU", width: int = 16, classes: int = 10) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        self.conv1, self.bn1 = nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        before, stages = width, []
        for number, out in enumerate((width, 2 * width, 4 * width)):
            blocks = []
            for place in range((depth - 2) // 6):
                blocks.append(Block(before, out, 2 if number and not place else 1, self.activation))
                before = out
            stages.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3 = stages
        self.linear = nn.Linear(4 * width, classes)

    def forward(self, x: Float[Tensor, "N 3 H W"]) -> Float[Tensor, "N K"]:
        x = self.layer3(self.layer2(self.layer1(self.activation(self.bn1(self.conv1(x))))))
        return self.linear(x.mean((2, 3)))


def names() -> list[str]:
    """All of them."""
    return [f"cifar10_resnet{depth}" for depth in DEPTHS]


def knows(name: str) -> bool:
    """Whether it is one of them."""
    return name in names()


def build(name: str, request: Request) -> LoadedModel:
    """A network with the user's weights, or random ones: there are none to fetch.

    Raises:
        UnknownNameError: no such network; ModelError: no weights, or weights that do not fit.
    """
    if not knows(name):
        raise UnknownNameError("CIFAR network", name, names())
    if request.fetch:
        raise ModelError(f"{name!r} has no weights of its own: give weights= (--weights PATH), or do without")
    classes = request.classes or ClassNames(CLASSES)
    model = CifarResNet(DEPTHS[names().index(name)], classes=len(classes))
    if request.weights is not None:
        counters = {name: value for name, value in model.state_dict().items() if name.endswith("num_batches_tracked")}
        state = {**counters, **read_state_dict(request.weights)}  # old checkpoints lack them; only training needs them
        load_strictly(model, state, request.source(""))
    return LoadedModel(
        name=name,
        model=model.eval(),
        preprocessing=request.preprocessing or Preprocessing((32, 32), (32, 32)),
        classes=classes,
        layers=layer_names(model),
        source=request.source(""),
    )
