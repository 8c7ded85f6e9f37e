"""The derivative of an attack's loss, for every method of the registry: against finite differences, in float64."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from small_networks import Soft, convolutional, images
from torch import Tensor, nn

from backlight.errors import DifferentiabilityError
from backlight.methods import METHODS, Method, method
from backlight.robustness import PAPER, Smoothed, manipulate

SMALL = {"n_steps": 3, "n_samples": 2, "n_weights": 2, "step": 0.5, "temperature": 0.8, "crops": False}
# engine's methods whose maps do not depend on the input where they are defined, and why
CONSTANT = {"Deconvnet": "it passes positive cotangents whatever the input is"}
ADAPTERS = [name for name in METHODS if not method(name).engine]
DIFFERENTIABLE = [name for name in METHODS if name not in CONSTANT and name not in ADAPTERS]


def made(name: str, model: nn.Module, **settings: Any) -> Method:
    """A method with few samples and steps."""
    cls = method(name)
    own = {key: value for key, value in SMALL.items() if key in cls.settings()}
    if "box" in cls.settings():
        own["box"] = (0.0, 1.0)
    return cls(model, **{**own, **settings})


def difference_quotient(explainer: Method, x: Tensor, h: float = 1e-5) -> tuple[float, float]:
    """(derivative of the loss along a direction by autograd, its central difference)."""
    aim = PAPER.reduced(replace(explainer, model=convolutional(Soft, 5)).explain(images(1, 9)).value)
    direction = torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(3))

    target = explainer.model(x).argmax(1)  # of other classes, some maps are zero everywhere

    def loss(x: Tensor, graph: bool = False) -> Tensor:
        value = explainer.explain(x, target, create_graph=graph).value
        return PAPER.distance(PAPER.reduced(value), aim).sum()

    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(leaf, True), leaf)
    quotient = (loss(x + h * direction) - loss(x - h * direction)) / (2 * h)
    return float((gradient * direction).sum()), float(quotient)


@pytest.mark.parametrize("smoothed", [False, True])
@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_the_derivative_of_the_loss_is_its_difference_quotient(name: str, smoothed: bool) -> None:
    model = Smoothed(convolutional(nn.ReLU), 8.0) if smoothed else convolutional(Soft)
    got, expected = difference_quotient(made(name, model), images(1))
    assert got == pytest.approx(expected, rel=2e-4, abs=1e-12)
    assert abs(expected) > 1e-9


@pytest.mark.parametrize("name", ["Saliency", "GuidedBackprop", "Pullback", "SoftPullback", "AttnLRP"])
@pytest.mark.parametrize("activation", [nn.ReLU6, nn.LeakyReLU, nn.PReLU])
def test_kinks_other_than_relus_are_differentiated(name: str, activation: type[nn.Module]) -> None:
    got, expected = difference_quotient(made(name, Smoothed(convolutional(activation), 8.0)), images(1))
    assert got == pytest.approx(expected, rel=2e-4, abs=1e-12)
    assert abs(expected) > 1e-9


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_a_map_that_can_be_differentiated_is_the_map(name: str) -> None:
    explainer, x = made(name, convolutional(Soft)), images(2)
    plain = explainer.explain(x).value
    kept = explainer.explain(x.clone().requires_grad_(), create_graph=True).value
    assert plain.abs().max() > 0
    assert (kept - plain).abs().max() <= 1e-12 * plain.abs().max()


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_attacked_or_says_why_not(name: str) -> None:
    explainer = made(name, convolutional(nn.ReLU))
    x, other = images(1, 1), images(1, 2)
    settings: dict[str, Any] = {"box": (0, 1), "scale": 1, "n_steps": 12}
    if name in DIFFERENTIABLE:
        found = manipulate(explainer, x, other, beta=20.0, **settings)
        assert float(found.explanation_loss[-1]) < float(found.explanation_loss[0])
        return
    reason = "another library" if name in ADAPTERS else "do not look at the input"
    for target in (1, None):
        with pytest.raises(DifferentiabilityError, match=reason):
            manipulate(explainer, x, other, target=target, **settings)


@pytest.mark.parametrize("name", ["Saliency", "Pullback", "GuidedBackprop", "SmoothGrad"])
def test_a_piecewise_constant_map_is_an_error(name: str) -> None:
    explainer = made(name, convolutional(nn.ReLU))
    with pytest.raises(DifferentiabilityError, match=r"piecewise constant: pass beta"):
        manipulate(explainer, images(1, 1), images(1, 2), box=(0, 1), scale=1, n_steps=2, beta=None)


def test_a_map_that_is_aimed_at_itself_is_an_error() -> None:
    with pytest.raises(DifferentiabilityError, match=r"is the one aimed at \(images \[1\]\)"):
        manipulate(
            made("Saliency", convolutional(Soft)), images(2), torch.cat([images(1, 2), images(2)[1:]]), box=(0, 1),
            scale=1, n_steps=2,
        )  # fmt: skip


def test_a_map_of_zeros_is_an_error() -> None:
    class Dead(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 0 * x.flatten(1)[:, :2] ** 2

    with pytest.raises(DifferentiabilityError, match=r"is zero \(images \[0\]\)"):
        manipulate(
            made("Saliency", Dead()), images(1), target_map=torch.rand(1, 16, 16), clamp=False, bound=None, n_steps=2
        )
