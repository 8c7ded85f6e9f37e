"""Zennit's guided backpropagation on networks of ReLU modules."""

from __future__ import annotations

import importlib

import pytest
import torch
from torch import nn

from backlight.methods import method

importlib.import_module("backlight")  # lets torchvision, which Zennit loads, import beside any build of torch
composites = pytest.importorskip("zennit.composites")
attribution = pytest.importorskip("zennit.attribution")


def test_guided_gradients_agree() -> None:
    layers = [nn.Conv2d(2, 5, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(5, 4, 2), nn.ReLU(), nn.Flatten()]
    model = nn.Sequential(*layers, nn.Linear(36, 3)).double().eval()
    x = torch.randn(3, 2, 10, 10, dtype=torch.float64)
    one_hot = torch.eye(3, dtype=torch.float64)[[1, 1, 1]]
    with attribution.Gradient(model, composites.GuidedBackprop()) as attributor:
        _, expected = attributor(x.clone(), one_hot)
    found = method("GuidedBackprop")(model).attribute(x, 1)
    assert torch.allclose(found, expected, atol=1e-6)
    assert not torch.allclose(found, method("Saliency")(model).attribute(x, 1), atol=1e-3)
