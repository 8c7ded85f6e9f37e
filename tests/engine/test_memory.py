"""Explanations let go of what they used: without the garbage collector, and on every device alike."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import Tensor, nn

from backlight.engine import attribute
from backlight.methods import method
from backlight.rules import rule_set


def net() -> nn.Module:
    layers = [nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1), nn.Conv2d(6, 6, 1)]
    return nn.Sequential(*layers, nn.GELU(), nn.Flatten(), nn.LayerNorm(150), nn.Linear(150, 4)).eval()


@pytest.mark.parametrize(
    "rules", ["gradient", "guided", "deconvnet", "pullback", "soft_pullback", "excitation_pullback"]
)
@pytest.mark.parametrize("strict", [True, False])
def test_hidden_tensors_die_with_the_explanation(rules: str, strict: bool) -> None:
    model, seen = net(), []

    def watch(module: nn.Module, args: object, output: Tensor) -> None:
        seen.append(weakref.ref(output))

    hooks = [layer.register_forward_hook(watch) for layer in model]
    gc.collect()
    gc.disable()
    try:
        attribute(model, torch.randn(2, 3, 12, 12), 1, rules=rule_set(rules), strict=strict)
        alive = [reference() for reference in seen if reference() is not None]
    finally:
        gc.enable()
        for hook in hooks:
            hook.remove()
    assert len(seen) == 9
    assert alive == []


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["Saliency", "SoftPullback", "ExcitationPullback", "SmoothGrad", "FusionGrad"])
def test_a_gpu_gives_the_numbers_of_the_cpu(name: str) -> None:
    model, x = net().double(), torch.randn(3, 3, 12, 12, dtype=torch.float64)
    here = method(name)(model).attribute(x, [0, 1, 2])
    there = method(name)(model.cuda()).attribute(x.cuda(), [0, 1, 2])
    assert torch.allclose(here, there.cpu(), rtol=1e-8, atol=1e-10)
