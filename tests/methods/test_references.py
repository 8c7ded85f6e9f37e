"""Every method against a slow literal reference: matrices, loops, copied models."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from backlight.engine import Line
from backlight.engine.attribution import attribute
from backlight.methods import Method, method
from backlight.rules import soft_pullback

TAU, POOL = 0.6, 0.3


def made(name: str, model: nn.Module, **settings: Any) -> Method:
    """A method with the paper's temperatures."""
    if "temperature" in method(name).settings() and name != "ExcitationPullback":
        settings["temperature"] = "paper"
    return method(name)(model, **settings)


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 6), nn.ReLU(), nn.Linear(6, 3)).double()


def phi(u: Tensor) -> Tensor:
    return (1 + torch.erf(u / math.sqrt(2))) / 2


def step(u: Tensor) -> Tensor:
    return (u > 0).double()


def by_matrices(model: nn.Sequential, x: Tensor, k: int, gate: Callable[[Tensor], Tensor]) -> Tensor:
    """W3 G2 W2 G1 W1, for each sample."""
    (w1, b1, w2, b2, w3, _) = (p.detach() for p in model.parameters())
    rows = []
    for sample in x:
        z1 = w1 @ sample + b1
        z2 = w2 @ z1.relu() + b2
        rows.append((w3 @ torch.diag(gate(z2)) @ w2 @ torch.diag(gate(z1)) @ w1)[k])
    return torch.stack(rows)


GATES: dict[str, Callable[[Tensor], Tensor]] = {
    "Pullback": step,
    "Saliency": step,
    "SoftPullback": lambda z: phi(z / TAU),
    "ExcitationPullback": lambda z: torch.sigmoid(z / 0.3),
}


@pytest.fixture
def x() -> Tensor:
    return torch.randn(4, 5, dtype=torch.float64)


@pytest.mark.parametrize("name", GATES)
def test_an_mlp_by_matrices(name: str, x: Tensor) -> None:
    model = mlp()
    expected = by_matrices(model, x, 2, GATES[name])
    assert torch.allclose(made(name, model).attribute(x, 2), expected, atol=1e-12)


def matrix_of(function: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> Tensor:
    """The matrix of a linear function, column by column."""
    size = math.prod(shape)
    basis = torch.eye(size, dtype=torch.float64)
    return torch.stack([function(e.reshape(1, *shape)).flatten() for e in basis], 1)


@pytest.mark.parametrize("soft", [True, False])
def test_a_cnn_by_matrices(soft: bool) -> None:
    conv, norm, head = nn.Conv2d(2, 3, 3, 2, 1), nn.BatchNorm2d(3), nn.Linear(12, 4)
    model = nn.Sequential(conv, norm, nn.ReLU(), nn.MaxPool2d(2, 1, 0), nn.GELU(), nn.Flatten(), head).double().eval()
    for buffer in (norm.running_mean, norm.running_var):
        nn.init.uniform_(buffer, 0.5, 1.5)
    x = torch.randn(1, 2, 6, 6, dtype=torch.float64)
    z = norm(conv(x)).detach()
    a = z.relu()
    p = nn.functional.max_pool2d(a, 2, 1)
    gate1 = phi(z / TAU) if soft else step(z)
    gate2 = phi(p)
    route = torch.zeros(12, 27, dtype=torch.float64)
    for c in range(3):
        for i in range(2):
            for j in range(2):
                window = a[0, c, i : i + 2, j : j + 2].flatten()
                weights = (window / POOL).softmax(0) if soft else nn.functional.one_hot(window.argmax(), 4).double()
                for n, weight in enumerate(weights):
                    route[c * 4 + i * 2 + j, c * 9 + (i + n // 2) * 3 + j + n % 2] += weight
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    first = matrix_of(lambda e: nn.functional.conv2d(e, conv.weight, None, 2, 1) * scale[:, None, None], (2, 6, 6))
    whole = head.weight @ torch.diag(gate2.flatten()) @ route @ torch.diag(gate1.flatten()) @ first
    found = made("SoftPullback" if soft else "Pullback", model).attribute(x, 1)
    assert torch.allclose(found.flatten(), whole[1].detach(), atol=1e-12)


def test_input_times_gradient(x: Tensor) -> None:
    model = mlp()
    assert torch.equal(made("InputXGradient", model).attribute(x, 1), x * made("Saliency", model).attribute(x, 1))


@pytest.mark.parametrize("name", ["IntegratedGradients", "IntegratedPullback"])
def test_integrated_by_a_loop(name: str, x: Tensor) -> None:
    model = mlp()
    gate = step if name == "IntegratedGradients" else GATES["SoftPullback"]
    baseline = torch.randn(1, 5, dtype=torch.float64)
    total = torch.zeros_like(x)
    for k in range(6):
        t = (k + 0.5) / 6
        total += by_matrices(model, baseline + t * (x - baseline), 1, gate) / 6
    found = made(name, model, n_steps=6, rule="riemann_middle", baseline=baseline).attribute(x, 1)
    assert torch.allclose(found, (x - baseline) * total, atol=1e-12)


def drawn(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randn(*shape, generator=generator).double()


@pytest.mark.parametrize("name", ["SmoothGrad", "SmoothPullback"])
def test_smoothed_by_a_loop_over_the_same_noise(name: str, x: Tensor) -> None:
    model = mlp()
    gate = step if name == "SmoothGrad" else GATES["SoftPullback"]
    generator = torch.Generator().manual_seed(11)
    total = sum(by_matrices(model, x + 0.2 * drawn((1, 5), generator), 1, gate) for _ in range(7))
    found = made(name, model, n_samples=7, stdev=0.2, seed=11).attribute(x, 1)
    assert torch.allclose(found, total / 7, atol=1e-12)


@pytest.mark.parametrize("name", ["FusionGrad", "FusionPullback"])
def test_fused_by_copies_with_noisy_weights(name: str, x: Tensor) -> None:
    model = mlp()
    gate = step if name == "FusionGrad" else GATES["SoftPullback"]
    generator = torch.Generator().manual_seed(5)
    total = torch.zeros_like(x)
    for _ in range(3):
        noisy = copy.deepcopy(model)
        for parameter in noisy.parameters():
            parameter.data *= 1 + 0.1 * drawn((1, *parameter.shape), generator)[0]
        for _ in range(2):
            total += by_matrices(noisy, x + 0.3 * drawn((1, 5), generator), 1, gate) / 6
    found = made(name, model, n_weights=3, n_samples=2, weight_stdev=0.1, stdev=0.3, seed=5).attribute(x, 1)
    assert torch.allclose(found, total, atol=1e-12)


@pytest.mark.parametrize("name", ["GradientAscent", "PullbackAscent"])
def test_an_ascent_by_a_loop(name: str, x: Tensor) -> None:
    model = mlp()
    gate = step if name == "GradientAscent" else GATES["SoftPullback"]
    at = x
    for _ in range(5):
        g = by_matrices(model, at, 1, gate)
        at = at + 20 * g / g.norm(dim=1, keepdim=True).clamp(min=1e-20)
    assert torch.allclose(made(name, model).attribute(x, 1), at - x, atol=1e-9)


def clipped(name: str, y: Tensor, z: Tensor) -> Tensor:
    return y.clamp(min=0) * (step(z) if name == "GuidedBackprop" else 1.0)


@pytest.mark.parametrize("name", ["GuidedBackprop", "Deconvnet"])
def test_clipped_backprop_by_matrices(name: str, x: Tensor) -> None:
    model = mlp()
    (w1, b1, w2, b2, w3, _) = (p.detach() for p in model.parameters())
    rows = []
    for sample in x:
        z1 = w1 @ sample + b1
        z2 = w2 @ z1.relu() + b2
        rows.append(w1.T @ clipped(name, w2.T @ clipped(name, w3[1], z2), z1))
    assert torch.allclose(made(name, model).attribute(x, 1), torch.stack(rows), atol=1e-12)


def test_an_accentuation_is_the_clipped_end_of_the_ascent() -> None:
    model, x = mlp(), torch.rand(4, 5, dtype=torch.float64) * 2 - 1
    setting = {"n_steps": 3, "step": 0.4}
    for along, ascent in (("pullback", "PullbackAscent"), ("gradient", "GradientAscent")):
        free = made(ascent, model, **setting).attribute(x, 1)
        found = made("Accentuation", model, along=along, **setting).attribute(x, 1)
        assert torch.allclose(found, (x + free).clamp(-1, 1) - x, atol=1e-12)


@pytest.mark.parametrize("along", ["pullback", "gradient"])
def test_a_counterfactual_is_clipped_after_every_step(along: str) -> None:
    model, x = mlp(), torch.rand(4, 5, dtype=torch.float64) * 2 - 1
    gate = step if along == "gradient" else GATES["SoftPullback"]
    at = x
    for _ in range(4):
        g = by_matrices(model, at, 1, gate)
        at = at + 0.5 * g / g.norm(dim=1, keepdim=True).clamp(min=1e-20)
        away = at - x
        at = (x + away * (1.2 / away.norm(dim=1, keepdim=True)).clamp(max=1)).clamp(-1, 1)
    explainer = made("Counterfactual", model, n_steps=4, step=0.5, radius=1.2, along=along)
    assert torch.allclose(explainer.attribute(x, 1), at - x, atol=1e-12)
    found = explainer.perturb(x, 1)
    assert torch.allclose(found.image, at, atol=1e-12)
    assert found.image.abs().max() <= 1
    assert torch.allclose(found.difference, at - x, atol=1e-12)
    assert found.scores.shape == found.probabilities.shape == found.predictions.shape == (5, 4)
    assert torch.allclose(found.scores[0], model(x)[:, 1])
    assert torch.allclose(found.probabilities[-1], model(at).softmax(1)[:, 1])
    assert torch.equal(found.predictions[-1], model(at).argmax(1))


def test_the_defaults_are_the_paper_s() -> None:
    settings = {
        name: method(name).settings() for name in ("PullbackAscent", "SmoothGrad", "FusionGrad", "Counterfactual")
    }
    assert (settings["PullbackAscent"]["n_steps"], settings["PullbackAscent"]["step"]) == (5, 20.0)
    assert (settings["SmoothGrad"]["n_samples"], settings["SmoothGrad"]["stdev"]) == (50, 0.15)
    assert [settings["FusionGrad"][key] for key in ("n_weights", "n_samples", "weight_stdev", "stdev")] == [
        10,
        10,
        0.1,
        0.15,
    ]
    assert [settings["Counterfactual"][key] for key in ("n_steps", "radius", "project")] == [10, 100.0, "every"]


def test_any_rules_go_with_any_path_and_readout(x: Tensor) -> None:
    """A combination that no method has: the soft pullback on a line, as value times cotangent."""
    model = mlp()
    found = attribute(
        model, x, 1, rules=soft_pullback("paper"), path=Line(3, "riemann_right"), readout="positive"
    ).value
    total = torch.zeros_like(x)
    for k in (1, 2, 3):
        at = x * k / 3
        total += (at * by_matrices(model, at, 1, GATES["SoftPullback"])).clamp(min=0) / 3
    assert torch.allclose(found, total, atol=1e-12)
