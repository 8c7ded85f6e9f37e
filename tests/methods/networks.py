"""One network, written in every way that networks are written."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Written(nn.Module):
    """conv, relu, pool, conv, relu, + residual, relu, pool, linear: with a spelling of ReLU and of +."""

    def __init__(self, relu: Callable[[Tensor], Tensor], add: Callable[[Tensor, Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.head1, self.head2 = nn.Linear(16, 6), nn.Linear(6, 3)
        if isinstance(relu, nn.Module):
            self.shared = relu
        self.relu, self.add = relu, add or torch.add

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.relu(self.conv1(x)), 2)
        x = self.relu(self.add(self.conv2(x), x))
        x = F.adaptive_max_pool2d(x, 2).flatten(1)
        return self.head2(self.relu(self.head1(x)))


class Residual(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + x


class Modules(nn.Module):
    """The same with a module of its own for every operation."""

    def __init__(self, inplace: bool = False) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1),
            nn.ReLU(inplace),
            nn.MaxPool2d(2),
            Residual(nn.Conv2d(4, 4, 3, padding=1)),
            nn.ReLU(inplace),
            nn.AdaptiveMaxPool2d(2),
            nn.Flatten(),
            nn.Linear(16, 6),
            nn.ReLU(inplace),
            nn.Linear(6, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def statement(action: Callable[[Tensor], object]) -> Callable[[Tensor], Tensor]:
    def relu(x: Tensor) -> Tensor:
        action(x)
        return x

    return relu


def iadd(a: Tensor, b: Tensor) -> Tensor:
    a += b
    return a


SPELLINGS: dict[str, Callable[[], nn.Module]] = {
    "modules": Modules,
    "modules in place": lambda: Modules(inplace=True),
    "one shared ReLU": lambda: Written(nn.ReLU()),
    "one shared ReLU in place": lambda: Written(nn.ReLU(inplace=True)),
    "F.relu": lambda: Written(F.relu),
    "F.relu in place, as a statement": lambda: Written(statement(lambda x: F.relu(x, inplace=True))),
    "x.relu()": lambda: Written(lambda x: x.relu()),
    "torch.relu_": lambda: Written(torch.relu_),
    "x.relu_(), as a statement": lambda: Written(statement(lambda x: x.relu_())),
    "clamp(min=0)": lambda: Written(lambda x: x.clamp(min=0)),
    "maximum with zeros": lambda: Written(lambda x: torch.maximum(x, torch.zeros_like(x))),
    "threshold": lambda: Written(lambda x: F.threshold(x, 0.0, 0.0)),
    "+=": lambda: Written(F.relu, iadd),
    "add_": lambda: Written(F.relu, lambda a, b: a.add_(b)),
    "operator +": lambda: Written(F.relu, lambda a, b: a + b),
}


def spelled(name: str) -> nn.Module:
    """The network in a spelling; the same weights in all, float64, evaluation mode."""
    torch.manual_seed(3)
    model = SPELLINGS[name]().double().eval()
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in model.parameters():
            scale = 0.5 if parameter.ndim > 1 else 0.2
            parameter.copy_(scale * torch.randn(parameter.shape, dtype=torch.float64, generator=generator))
    return model


def small_vgg() -> nn.Module:
    """torchvision's VGG11 with BatchNorm, and a classifier of a size to test; the large one is never filled."""
    torchvision = pytest.importorskip("torchvision")
    with torch.device("meta"):
        model = torchvision.models.vgg11_bn(weights=None, init_weights=False)
    model.avgpool = nn.AdaptiveAvgPool2d(1)
    model.classifier = nn.Sequential(nn.Linear(512, 32), nn.ReLU(True), nn.Dropout(), nn.Linear(32, 7))
    model.features.to_empty(device="cpu")
    for layer in model.features:
        if hasattr(layer, "reset_parameters"):
            layer.reset_parameters()
    return model
