"""Properties that hold on any network: scale, linear models, parallel steps, exact values, safe weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from probes import pulled
from torch import Tensor, nn

from backlight.engine import RuleSet, attribute
from backlight.errors import InputError
from backlight.methods import method
from backlight.rules import RULE_SETS, Relative, pullback, rule_set, soft_pullback


def net(activation: type[nn.Module] = nn.ReLU, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    layers = [nn.Conv2d(2, 4, 3), activation(), nn.MaxPool2d(2), nn.Conv2d(4, 4, 2), activation(), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(16, 3)).double().eval()


@pytest.fixture
def x() -> Tensor:
    return torch.randn(3, 2, 8, 8, dtype=torch.float64)


def relative_gap(a: Tensor, b: Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


PIECES = st.sampled_from(
    ["relu", "gelu", "silu", "elu", "pool", "avg", "norm", "group", "drop", "tanh", "conv", "residual"]
)


def random_net(pieces: list[str]) -> nn.Sequential:
    made: dict[str, Any] = {
        "relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU, "elu": nn.ELU, "tanh": nn.Tanh, "drop": nn.Dropout,
        "pool": lambda: nn.MaxPool2d(3, 1, 1), "avg": lambda: nn.AvgPool2d(3, 1, 1), "norm": lambda: nn.BatchNorm2d(4),
        "group": lambda: nn.GroupNorm(2, 4), "conv": lambda: nn.Conv2d(4, 4, 3, padding=1),
        "residual": lambda: nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU()),
    }  # fmt: skip
    body = [made[piece]() for piece in pieces]
    return nn.Sequential(nn.Conv2d(2, 4, 3), *body, nn.Flatten(), nn.LayerNorm(64), nn.Linear(64, 3)).double().eval()


@given(st.lists(PIECES, min_size=1, max_size=6), st.sampled_from([*RULE_SETS]), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_the_value_of_a_network_is_bit_exact_under_every_rule_set(pieces: list[str], name: str, seed: int) -> None:
    torch.manual_seed(seed)
    model = random_net(pieces)
    x = torch.randn(2, 2, 6, 6, dtype=torch.float64)
    value, (back,) = pulled(model, x, rules=rule_set(name))
    assert torch.equal(value, model(x))
    assert torch.isfinite(back).all()


@given(st.lists(PIECES, min_size=1, max_size=6), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_a_pullback_and_its_biases_are_the_score(pieces: list[str], seed: int) -> None:
    torch.manual_seed(seed)
    model = random_net(pieces)
    x = torch.randn(2, 2, 6, 6, dtype=torch.float64)
    found = attribute(model, x, 1, rules=pullback(), bias=True)
    total = (found.value * x).flatten(1).sum(1) + found.bias
    assert torch.allclose(total, model(x)[:, 1], atol=1e-10)
    assert found.residual.abs().max() < 1e-10


def rescaled(c: float) -> nn.Sequential:
    """The same function: the first layer times c, the next one over c."""
    model = net()
    with torch.no_grad():
        model[0].weight.mul_(c)
        model[0].bias.mul_(c)
        model[3].weight.div_(c)
    return model


@given(st.floats(0.01, 100))
@settings(max_examples=15, deadline=None)
def test_a_relative_temperature_does_not_see_how_a_function_is_scaled(c: float) -> None:
    x = torch.randn(2, 2, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    model, other = net(), rescaled(c)
    assert torch.allclose(model(x), other(x), atol=1e-9)
    for setting in ("relative", Relative(0.5), Relative(1.0, "channel")):
        a, b = (method("SoftPullback")(m, temperature=setting).attribute(x, 1) for m in (model, other))
        assert relative_gap(a, b) < 1e-9


@pytest.mark.parametrize("c", [0.1, 10.0])
def test_the_paper_s_temperature_does(c: float, x: Tensor) -> None:
    a, b = (method("SoftPullback")(m, temperature="paper").attribute(x, 1) for m in (net(), rescaled(c)))
    assert relative_gap(a, b) > 0.05


@pytest.mark.parametrize("name", ["Saliency", "Pullback"])
@pytest.mark.parametrize("c", [0.1, 10.0])
def test_hard_gates_do_not_see_how_a_function_is_scaled(name: str, c: float, x: Tensor) -> None:
    a, b = (method(name)(m).attribute(x, 1) for m in (net(), rescaled(c)))
    assert relative_gap(a, b) < 1e-12


@pytest.mark.parametrize("c", [0.1, 10.0])
def test_a_layer_and_its_temperature_scale_together(c: float, x: Tensor) -> None:
    expected = method("SoftPullback")(net(), temperature="paper").attribute(x, 1)
    warm = {"1": {"relu": 0.6 * c}, "2": {"max_pool": 0.3 * c}}
    assert relative_gap(method("SoftPullback")(rescaled(c), temperature=warm).attribute(x, 1), expected) < 1e-12


@given(st.floats(1e-6, 1e6))
@settings(max_examples=5, deadline=None)
def test_logits_times_c_is_the_explanation_times_c(c: float) -> None:
    x = torch.randn(2, 2, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    model, scaled = net(), net()
    with torch.no_grad():
        scaled[6].weight.mul_(c)
        scaled[6].bias.mul_(c)
    for name in ("Saliency", "Pullback", "SoftPullback", "GuidedBackprop", "Deconvnet"):
        a, b = (method(name)(m).attribute(x, 1) for m in (scaled, model))
        assert relative_gap(a, c * b) < 1e-12
    for name in ("PullbackAscent", "GradientAscent"):
        a, b = (method(name)(m, n_steps=2, step=0.5).attribute(x, 1) for m in (scaled, model))
        assert relative_gap(a, b) < 1e-6


def test_small_logits_lose_nothing_in_single_precision(x: Tensor) -> None:
    """The reference forms (x + g) - x, and loses all of g below 1e-6 (docs/numbers-not-matched.md)."""
    model = net().float()
    expected = method("SoftPullback")(model).attribute(x.float(), 1)
    with torch.no_grad():
        model[6].weight.mul_(2.0**-30)
        model[6].bias.mul_(2.0**-30)
    assert torch.equal(method("SoftPullback")(model).attribute(x.float(), 1), expected * 2.0**-30)


@pytest.mark.parametrize(("ascent", "single"), [("PullbackAscent", "SoftPullback"), ("GradientAscent", "Saliency")])
def test_one_step_is_parallel_to_the_explanation(ascent: str, single: str, x: Tensor) -> None:
    g = method(single)(net()).attribute(x, 1)
    one = method(ascent)(net(), n_steps=1, step=3.0).attribute(x, 1)
    assert torch.allclose(one, 3 * g / g.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1), atol=1e-12)
    raw = method(ascent)(net(), n_steps=1, step=None).attribute(x, 1)
    assert torch.allclose(raw, g, atol=1e-12)


def test_of_a_linear_model_everything_is_known() -> None:
    w = torch.randn(3, 48, dtype=torch.float64)
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 3)).double()
    model[1].weight.data = w
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    expected = w[1].reshape(1, 3, 4, 4).expand(2, 3, 4, 4)
    for name in ("Saliency", "SoftPullback", "Pullback", "SmoothGrad", "SmoothPullback", "GuidedBackprop"):
        assert torch.allclose(method(name)(model).attribute(x, 1), expected, atol=1e-6)
    for name in ("PullbackAscent", "GradientAscent"):
        found = method(name)(model).attribute(x, 1)
        assert found.flatten(1).norm(dim=1).tolist() == pytest.approx([100.0, 100.0], abs=1e-9)
        assert torch.allclose(found, 100 * expected / w[1].norm(), atol=1e-9)
    assert torch.allclose(method("IntegratedGradients")(model).attribute(x, 1), x * expected, atol=1e-12)


@pytest.mark.parametrize("fails", [True, False])
def test_weights_are_bit_identical_also_after_an_exception(fails: bool, x: Tensor) -> None:
    class Fails(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net()

        def forward(self, x: Tensor) -> Tensor:
            y = self.net(x)
            if fails:
                raise ValueError("inside the model")
            return y

    model = Fails()
    before = [p.clone() for p in model.parameters()]
    addresses = [p.data_ptr() for p in model.parameters()]
    for name in ("FusionGrad", "FusionPullback"):
        explainer = method(name)(model, n_weights=2, n_samples=2)
        if fails:
            with pytest.raises(ValueError, match="inside the model"):
                explainer.attribute(x, 1)
        else:
            explainer.attribute(x, 1)
    assert [p.data_ptr() for p in model.parameters()] == addresses
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize("name", ["Accentuation", "Counterfactual"])
def test_perturbed_images_lie_in_the_box_and_inputs_outside_are_refused(name: str) -> None:
    x = torch.rand(2, 2, 8, 8, dtype=torch.float64) * 2 - 1
    found = method(name)(net(), step=5.0).perturb(x, 1)
    assert found.image.abs().max() <= 1
    assert found.scores[-1].min() > found.scores[0].max()
    low, high = torch.tensor([[[-2.0]], [[-3.0]]]), torch.tensor([[[2.0]], [[1.0]]])
    boxed = method(name)(net(), box=(low, high), step=5.0).perturb(x, 1).image
    assert ((boxed >= low) & (boxed <= high)).all()
    with pytest.raises(InputError, match="valid range"):
        method(name)(net()).attribute(3 * x, 1)


@pytest.mark.parametrize("rules", [soft_pullback(-0.0), soft_pullback({"relu": 0.0})], ids=["all", "relu"])
def test_temperature_zero_is_the_pullback_off_the_kinks(rules: RuleSet, x: Tensor) -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(108, 2)).double()
    assert torch.equal(attribute(model, x, 1, rules=rules).value, attribute(model, x, 1, rules=pullback()).value)


@pytest.mark.parametrize("temperature", [-1.0, {"relu": -1.0}, float("nan"), Relative])
def test_temperatures_are_not_negative(temperature: Any) -> None:
    with pytest.raises(InputError, match="temperature"):
        soft_pullback(Relative(-1.0) if temperature is Relative else temperature)
