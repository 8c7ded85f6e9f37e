"""The CIFAR networks: named layers, weights that fit strictly, and the accuracy of those beside the repository."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import backlight
from backlight.benchmarks.cifar import Cifar, accuracy
from backlight.errors import ModelError, UnknownNameError


def test_they_are_built_with_random_weights_only_where_that_is_asked_for() -> None:
    loaded = backlight.load("cifar10_resnet20", pretrained=False)
    assert loaded.model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    assert loaded.preprocessing.size == (32, 32)
    assert [loaded.classes.name(index) for index in (0, 9)] == ["airplane", "truck"]
    assert "layer3.2.conv2" in loaded.layers
    assert "layer3.8" in backlight.load("cifar:cifar10_resnet56", pretrained=False).layers
    with pytest.raises(ModelError, match="give weights="):
        backlight.load("cifar10_resnet20")
    with pytest.raises(UnknownNameError, match="cifar10_resnet20"):
        backlight.load("cifar:cifar10_resnet21")
    assert "cifar10_resnet56" in backlight.available_models()["cifar"]


@pytest.mark.parametrize(("name", "expected"), [("cifar10_resnet20", 0.81), ("cifar10_resnet56", 0.832)])
def test_accuracy_is_that_which_was_measured(data_dir: Path, name: str, expected: float) -> None:
    loaded = backlight.load(name, weights=str(data_dir / "weights" / f"{name}.safetensors"))
    images = Cifar.load(data_dir / "images" / "cifar10.npz")
    some = Cifar(images.x[:1], images.y[:1], images.x_test[::25], images.y_test[::25])  # they are sorted by class
    assert accuracy(loaded.pixels(), some, batch=100) == pytest.approx(expected, abs=0.05)
