"""Smoothed networks: softplus where ReLUs were, in every spelling, and nothing else."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from small_networks import Soft, convolutional, images, state_of
from torch import Tensor, nn
from torch.nn import functional as F

import backlight
from backlight.errors import InputError, ModelError
from backlight.robustness import Smoothed
from backlight.robustness.smoothing import is_kinked, schedule
from backlight.rules import rule_set

BETA = 3.0


class Applied(nn.Module):
    """A function between two linear layers."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.a, self.b, self.function = nn.Linear(4, 6).double(), nn.Linear(6, 3).double(), function

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.function(self.a(x)))


def written(action: Callable[[Tensor], object]) -> Callable[[Tensor], Tensor]:
    """A statement that changes its argument, as a function."""

    def function(z: Tensor) -> Tensor:
        action(z)
        return z

    return function


def soft(z: Tensor) -> Tensor:
    return F.softplus(z, BETA)


SLOPES = nn.PReLU(6).double()
RELUS: dict[str, Callable[[Tensor], Tensor]] = {
    "module": nn.ReLU(),
    "module in place": nn.ReLU(inplace=True),
    "function": F.relu,
    "function, keyword": lambda z: F.relu(input=z),
    "torch": torch.relu,
    "method": lambda z: z.relu(),
    "in place, a statement": written(lambda z: F.relu(z, inplace=True)),
    "torch in place": torch.relu_,
    "method in place, a statement": written(lambda z: z.relu_()),
    "clamp": lambda z: z.clamp(min=0),
    "clamp in place, a statement": written(lambda z: z.clamp_(min=0)),
    "clamp_min": lambda z: torch.clamp_min(z, 0),
    "maximum": lambda z: torch.maximum(z, torch.zeros_like(z)),
    "maximum, turned": lambda z: torch.maximum(torch.zeros_like(z), z),
    "threshold": lambda z: F.threshold(z, 0.0, 0.0),
}
OTHERS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "relu6": (F.relu6, lambda z: soft(z) - soft(z - 6)),
    "ReLU6 in place": (nn.ReLU6(inplace=True), lambda z: soft(z) - soft(z - 6)),
    "hardtanh": (F.hardtanh, lambda z: -1 + soft(z + 1) - soft(z - 1)),
    "clamp(0, 0.5)": (lambda z: z.clamp(0, 0.5), lambda z: soft(z) - soft(z - 0.5)),
    "leaky_relu": (nn.LeakyReLU(0.2), lambda z: 0.2 * z + 0.8 * soft(z)),
    "leaky_relu in place": (nn.LeakyReLU(0.2, inplace=True), lambda z: 0.2 * z + 0.8 * soft(z)),
    "rrelu": (lambda z: F.rrelu(z, 0.1, 0.3), lambda z: 0.2 * z + 0.8 * soft(z)),
    "prelu": (SLOPES, lambda z: 0.25 * z + 0.75 * soft(z)),
    # left as they are
    "a guard": (lambda z: z / z.clamp(min=0.5), lambda z: z / z.clamp(min=0.5)),
    "maximum of two signals": (lambda z: torch.maximum(z, 2 * z), lambda z: torch.maximum(z, 2 * z)),
    "the largest": (lambda z: z - z.max(), lambda z: z - z.max()),
    "gelu": (F.gelu, F.gelu),
}  # fmt: skip
ALL = {**{name: (function, soft) for name, function in RELUS.items()}, **OTHERS}


@pytest.mark.parametrize("name", ALL)
def test_a_smoothed_activation_is_its_formula_whoever_calls(name: str) -> None:
    function, formula = ALL[name]
    model, expected = Applied(function), Applied(formula)
    x = torch.randn(3, 4, dtype=torch.float64)
    smooth = Smoothed(model, BETA)
    assert torch.allclose(smooth(x.clone()), expected(x), atol=1e-14)
    with torch.no_grad():
        assert torch.allclose(smooth(x.clone()), expected(x), atol=1e-14)
    for method in ("Saliency", "InputXGradient", "SmoothGrad"):
        found = getattr(backlight, method)(smooth).attribute(x, 1)
        assert torch.allclose(found, getattr(backlight, method)(expected).attribute(x, 1), atol=1e-13), method
    assert torch.equal(model(x.clone()), Applied(function)(x))  # the model itself is as it was


def test_rules_see_the_activation_they_know() -> None:
    x = torch.randn(2, 4, dtype=torch.float64)
    hard, smooth = Applied(F.relu), Smoothed(Applied(F.relu), BETA)
    z = hard.a(x)
    back = hard.b.weight[1].expand_as(z)
    slope = torch.sigmoid(BETA * z)
    literal = {
        "guided": back.clamp(min=0) * slope,
        "deconvnet": back.clamp(min=0),
        "pullback": back * slope,  # the gate of ReLU is its derivative: that of softplus
        "soft_pullback": back * torch.special.ndtr(z / 0.6),  # a function of z, which softplus does not change
    }
    for name, cotangent in literal.items():
        rules = rule_set(name, **({"temperature": "paper"} if name == "soft_pullback" else {}))
        found = backlight.attribute(smooth, x, 1, rules=rules)
        assert torch.allclose(found.value, cotangent @ hard.a.weight, atol=1e-13), name
        plain = backlight.attribute(hard, x, 1, rules=rules).coverage
        assert [(r.operation, r.rule, r.calls, r.layers) for r in found.coverage] == [
            (r.operation, r.rule, r.calls, r.layers) for r in plain
        ], name


@pytest.mark.parametrize(
    ("function", "gate"),
    [
        (F.relu, lambda z, step: step),
        (F.relu6, lambda z, step: step * (6 / z.clamp(min=6))),
        (nn.ReLU6(inplace=True), lambda z, step: step * (6 / z.clamp(min=6))),
        (nn.LeakyReLU(0.2), lambda z, step: 0.2 + 0.8 * step),
        (nn.PReLU(6).double(), lambda z, step: 0.25 + 0.75 * step),
    ],
)
def test_a_hard_gate_is_smoothed_with_its_activation(
    function: Callable[[Tensor], Tensor], gate: Callable[[Tensor, Tensor], Tensor]
) -> None:
    x, model = 8 * torch.randn(5, 4, dtype=torch.float64), Applied(function)
    z = model.a(x)
    assert (z > 6).any()
    for smooth, step in ((Smoothed(model, BETA), torch.sigmoid(BETA * z)), (model, (z > 0).double())):
        found = backlight.Pullback(smooth).attribute(x, 1)
        assert torch.allclose(found, (model.b.weight[1] * gate(z, step)) @ model.a.weight, atol=1e-13)


def test_what_rules_compute_is_not_smoothed() -> None:
    """LayerCAM takes positive parts of gradients and maps: of the softplus network, but hard ones."""
    x = images(2)
    found = backlight.LayerCAM(Smoothed(convolutional(nn.ReLU), 10.0), layer="0").attribute(x, 0)
    expected = backlight.LayerCAM(convolutional(Soft), layer="0").attribute(x, 0)
    assert torch.allclose(found, expected, atol=1e-13)
    assert (found == 0).any()


def test_large_beta_is_the_network_itself() -> None:
    model, x = convolutional(nn.ReLU), images(2)
    differences = [float((Smoothed(model, beta)(x) - model(x)).detach().abs().max()) for beta in (10, 100, 1000, 1e6)]
    assert differences == sorted(differences, reverse=True)
    assert differences[-1] < 1e-5 < 1e-3 < differences[0]


@pytest.mark.parametrize("fails", [False, True])
def test_smoothing_leaves_nothing_behind(fails: bool) -> None:
    model, x = convolutional(nn.ReLU), images(1)

    def interrupt(module: nn.Module, args: object) -> None:
        raise KeyboardInterrupt

    model[4].train()
    hook = model[5].register_forward_pre_hook(interrupt) if fails else None
    before, value = state_of(model), None if fails else model(x)
    smooth = Smoothed(model, 5.0)
    assert smooth.training == model.training
    assert [name for name, _ in smooth.named_modules()] == [name for name, _ in model.named_modules()]
    if hook is not None:
        with pytest.raises(KeyboardInterrupt):
            backlight.Saliency(smooth).attribute(x)
        assert state_of(model) == before
        hook.remove()
    else:
        backlight.Saliency(smooth).attribute(x)
        smooth(x)
        assert state_of(model) == before
        assert torch.equal(model(x), value)


def test_kinks_are_read_from_the_coverage_table() -> None:
    hard, x = convolutional(nn.ReLU), images(1)
    kinked = {name: is_kinked(getattr(backlight, name)(hard).explain(x, 1).coverage) for name in (
        "Saliency", "Pullback", "GuidedBackprop", "FullGrad", "SoftPullback", "ExcitationPullback")}  # fmt: skip
    assert kinked == {"Saliency": True, "Pullback": True, "GuidedBackprop": True, "FullGrad": True,
                      "SoftPullback": False, "ExcitationPullback": False}  # fmt: skip
    assert not is_kinked(backlight.Saliency(convolutional(nn.SiLU)).explain(x, 1).coverage)


def test_beta_grows_geometrically() -> None:
    grown = [schedule((10.0, 100.0), step, 5) for step in range(5)]
    assert grown == pytest.approx([10, 10**1.25, 10**1.5, 10**1.75, 100])
    assert schedule(7.0, 3, 5) == pytest.approx(7)
    assert schedule((10.0, 100.0), 0, 1) == pytest.approx(100)
    assert schedule(None, 0, 1) is None


def test_what_cannot_be_smoothed_is_an_error() -> None:
    with pytest.raises(InputError, match="positive"):
        Smoothed(convolutional(nn.ReLU), 0.0)
    with pytest.raises(ModelError, match="scripted"):
        Smoothed(torch.jit.trace(convolutional(nn.ReLU), images(1)), 1.0)
