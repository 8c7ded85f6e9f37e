"""Explanations let go of what they used, without the garbage collector; a GPU gives the numbers of the CPU."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn

from backlight.engine import attribute, checkpointed, running
from backlight.methods import method
from backlight.rules import RULE_SETS, rule_set


@contextmanager
def uncollected() -> Iterator[None]:
    """What goes here goes by itself."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


class Gated(nn.Module):
    """A SiLU of its own times another branch, and that divided by its own length, as language models have them."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        z = self.gate(x)
        mixed = self.down(z * torch.sigmoid(z) * self.up(x))
        return x + mixed * torch.rsqrt(mixed.pow(2).mean(-1, keepdim=True) + 1e-6)


def gated() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.GELU(), Gated(), Gated(), nn.Linear(4, 4)).eval()


def net() -> nn.Module:
    layers = [nn.Conv2d(3, 6, 3), nn.MaxPool2d(3, 2, 1), nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.Conv2d(6, 6, 1)]
    return nn.Sequential(*layers, nn.GELU(), nn.Flatten(), nn.LayerNorm(150), nn.Linear(150, 4)).eval()


@pytest.mark.parametrize("backward", [True, False])
@pytest.mark.parametrize("rules", RULE_SETS)
def test_hidden_tensors_die_with_the_explanation(rules: str, backward: bool) -> None:
    model, seen, x = net(), [], torch.randn(2, 3, 12, 12)

    def watch(module: nn.Module, args: object, output: Tensor) -> None:
        seen.append(weakref.ref(output))

    def explain() -> None:
        if backward:
            attribute(model, x, 1, rules=rule_set(rules))
            return
        with running(model, rule_set(rules)):
            model(x.clone().requires_grad_())

    hooks = [layer.register_forward_hook(watch) for layer in model]
    with uncollected():
        explain()
        alive = [reference() for reference in seen if reference() is not None]
    for hook in hooks:
        hook.remove()
    assert len(seen) == 9
    assert alive == []


@pytest.mark.parametrize("blocks", [(), ("2", "3")], ids=["plain", "checkpointed"])
@pytest.mark.parametrize("rules", [name for name in RULE_SETS if name != "srd"])
def test_what_gates_and_products_hold_dies_too(rules: str, blocks: tuple[str, ...]) -> None:
    model, seen = gated(), []

    def watch(module: nn.Module, args: object, output: Tensor) -> None:
        seen.append(weakref.ref(output))

    for layer in model.modules():
        layer.register_forward_hook(watch)
    with uncollected():
        with checkpointed(model, blocks):
            attribute(model, torch.randn(2, 5, 3), lambda outputs: outputs[:, 2, 1], rules=rule_set(rules))
        alive = [reference() for reference in seen if reference() is not None]
    assert len(seen) >= 10
    assert alive == []


def living() -> int:
    return sum(isinstance(one, Tensor) and not isinstance(one, nn.Parameter) for one in gc.get_objects())


@pytest.mark.parametrize(
    "name", ["IntegratedGradients", "SoftPullback", "PullbackAscent", "GradCAM", "FullGrad", "LRP"]
)
def test_no_tensor_outlives_a_method(name: str) -> None:
    model, x = net(), torch.randn(2, 3, 12, 12)
    method(name)(model).attribute(x, 1)  # what is made once stays
    with uncollected():
        before = living()
        method(name)(model).attribute(x, torch.tensor([1, 2]))
        assert living() == before


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["Saliency", "SoftPullback", "ExcitationPullback", "SmoothGrad", "FusionGrad"])
def test_a_gpu_gives_the_numbers_of_the_cpu(name: str) -> None:
    model, x = net().double(), torch.randn(3, 3, 12, 12, dtype=torch.float64)
    here = method(name)(model).attribute(x, [0, 1, 2])
    there = method(name)(model.cuda()).attribute(x.cuda(), [0, 1, 2])
    assert torch.allclose(here, there.cpu(), rtol=1e-8, atol=1e-10)
