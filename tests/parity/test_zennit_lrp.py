"""Zennit's composites and Captum's LRP: equal where they are right, and where they are not."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from backlight.methods import method

importlib.import_module("backlight")  # lets torchvision, which Zennit loads, import beside any build of torch
composites = pytest.importorskip("zennit.composites")
attribution = pytest.importorskip("zennit.attribution")

TINY = 1e-13  # Zennit's stabiliser, which Backlight has in epsilon alone


def vgg(norm: bool) -> nn.Sequential:
    """VGG in small, with biases."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for inputs, outputs in ((3, 6), (6, 8)):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), *([nn.BatchNorm2d(outputs)] if norm else []), nn.ReLU()]
        layers += [nn.Conv2d(outputs, outputs, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    layers += [nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 10), nn.ReLU(), nn.Dropout(), nn.Linear(10, 4)]
    for layer in layers:
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.weight)
            nn.init.normal_(layer.bias, std=0.3)
            layer.running_mean.normal_(std=0.3)  # type: ignore[union-attr]
            layer.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
    model = nn.Sequential(*layers).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)
    return model


def fused(model: nn.Sequential) -> nn.Sequential:
    """The same function with its norms folded for good. Zennit's own canoniser leaves a factor sqrt(1 + eps) behind."""
    found: list[nn.Module] = []
    for module in model:
        if isinstance(module, nn.BatchNorm2d):
            found[-1] = fuse_conv_bn_eval(found[-1], module)
        else:
            found.append(module)
    return nn.Sequential(*found)


def images() -> Tensor:
    x = torch.rand(2, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 2 - 1
    x[0, :, 3:5, 3:5] = 0
    return x


def of_zennit(model: nn.Module, x: Tensor, composite: Any) -> Tensor:
    """Zennit's relevance of class 1, which it starts from the logit."""

    def start(output: Tensor) -> Tensor:
        return output * F.one_hot(torch.ones(len(output), dtype=torch.int64), output.shape[1])

    with attribution.Gradient(model, composite, attr_output=start) as attributor:
        return attributor(x.clone())[1]


LOW, HIGH = -1.5, 1.25
PAIRS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "epsilon_plus": ("EpsilonPlus", {}, {}),
    "epsilon_plus_flat": ("EpsilonPlusFlat", {}, {}),
    "epsilon_alpha2_beta1": ("EpsilonAlpha2Beta1", {}, {}),
    "epsilon_alpha2_beta1_flat": ("EpsilonAlpha2Beta1Flat", {}, {}),
    "epsilon_gamma_box": (
        "EpsilonGammaBox",
        {"low": LOW, "high": HIGH},
        {
            "low": torch.full((1, 3, 16, 16), LOW, dtype=torch.float64),
            "high": torch.full((1, 3, 16, 16), HIGH, dtype=torch.float64),
        },
    ),
}


@pytest.mark.parametrize("epsilon", [1e-6, 0.1])
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("name", PAIRS)
def test_composites_agree_on_a_vgg(name: str, norm: bool, epsilon: float) -> None:
    """To 1e-9 of the map's norm. BatchNorm: folded beforehand for Zennit, on the fly here."""
    model, x = vgg(norm), images()
    theirs, settings, their_settings = PAIRS[name]
    composite = getattr(composites, theirs)(epsilon=epsilon, stabilizer=TINY, **their_settings)
    expected = of_zennit(fused(model), x, composite)
    found = method("LRP")(model, composite=name, epsilon=epsilon, **settings).attribute(x, 1)
    assert ((found - expected).norm() / expected.norm()).item() < 1e-9
    assert expected.norm() > 1e-3


def test_without_folding_zennit_passes_a_norm_by() -> None:
    """Its rule for a BatchNorm that nothing folded is the identity: scales and shifts play no part."""
    model, x = vgg(norm=True), images()
    expected = of_zennit(model, x, composites.EpsilonPlus(stabilizer=TINY))
    found = method("LRP")(model).attribute(x, 1)
    assert ((found - expected).norm() / expected.norm()).item() > 0.1


class Residual(nn.Module):
    """x + f(x), written as such."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + x


def test_a_plain_sum_doubles_relevance_in_zennit_and_not_here() -> None:
    """Its hooks see no operator: both summands of a + b get all of R (chr5tphr/zennit issue 236)."""
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, bias=False), nn.ReLU(), Residual(nn.Sequential(nn.Conv2d(4, 4, 1, bias=False), nn.ReLU())),
        nn.Flatten(), nn.Linear(64, 2, bias=False),
    ).double()  # fmt: skip
    model[2].inner[0].weight.data.abs_()  # so that nothing is lost for another reason
    x = torch.rand(3, 3, 6, 6, dtype=torch.float64)
    score = model(x)[:, 1].detach()
    theirs = of_zennit(model, x, composites.EpsilonPlus(epsilon=TINY, stabilizer=TINY)).flatten(1).sum(1)
    ours = method("LRP")(model, epsilon=0.0).attribute(x, 1).flatten(1).sum(1)
    assert torch.allclose(ours, score, rtol=1e-10)
    assert torch.allclose(theirs, 2 * score, rtol=1e-6)


def test_captum_agrees_where_its_rules_reach() -> None:
    """Linear layers and ReLU, without sums: to 1e-6 of the map's norm (its stabiliser is 1e-9)."""
    captum = pytest.importorskip("captum.attr")
    rules = pytest.importorskip("captum.attr._utils.lrp_rules")
    makes: dict[str, tuple[Callable[[], Any], str]] = {
        "epsilon": (lambda: rules.EpsilonRule(), "epsilon"),
        "gamma": (lambda: rules.GammaRule(gamma=0.25), "gamma"),
    }
    for make, composite in makes.values():
        torch.manual_seed(3)
        model = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 7), nn.ReLU(), nn.Linear(7, 3)).double().eval()
        for layer in model:
            if isinstance(layer, nn.Linear):
                nn.init.zeros_(layer.bias)
                layer.rule = make()
        x = torch.rand(4, 6, dtype=torch.float64)
        expected = captum.LRP(model).attribute(x.clone(), 1).detach()
        found = method("LRP")(model, composite=composite, epsilon=1e-9).attribute(x, 1)
        rows = model(x)[:, 1] > 0 if composite == "gamma" else torch.ones(4, dtype=torch.bool)  # its gamma: y > 0 only
        assert rows.any()
        gap = (found - expected)[rows].norm() / expected[rows].norm()
        assert gap.item() < 1e-6
