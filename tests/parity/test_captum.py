"""Captum's methods on networks of ReLU modules, where it is right; and where it is not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backlight.engine import Contrast
from backlight.methods import method

captum = pytest.importorskip("captum.attr")


class Net(nn.Module):
    """A CNN whose ReLUs are modules of their own, or functions."""

    def __init__(self, functional: bool = False) -> None:
        super().__init__()
        self.conv1, self.conv2, self.head = nn.Conv2d(2, 6, 3), nn.Conv2d(6, 6, 3), nn.Linear(24, 4)
        if not functional:
            self.relu1, self.relu2 = nn.ReLU(), nn.ReLU()
        self.functional = functional

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)) if self.functional else self.relu1(self.conv1(x)), 2)
        x = F.relu(self.conv2(x)) if self.functional else self.relu2(self.conv2(x))
        return self.head(F.avg_pool2d(x, 1)[:, :, :2, :2].flatten(1))


@pytest.fixture
def net() -> Net:
    return Net().double().eval()


@pytest.fixture
def x() -> Tensor:
    return torch.randn(4, 2, 10, 10, dtype=torch.float64)


TARGETS = [2, [0, 1, 2, 3], torch.tensor([3, 3, 0, 1])]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    ("ours", "theirs", "options"),
    [
        ("Saliency", "Saliency", {"abs": False}),
        ("InputXGradient", "InputXGradient", {}),
        ("GuidedBackprop", "GuidedBackprop", {}),
        ("Deconvnet", "Deconvolution", {}),
    ],
)
def test_a_single_pass_agrees(net: Net, x: Tensor, ours: str, theirs: str, options: dict, target: object) -> None:
    expected = getattr(captum, theirs)(net).attribute(x.clone().requires_grad_(), target=target, **options)
    found = method(ours)(net).attribute(x, target)
    assert torch.allclose(found, expected.detach(), atol=1e-6)
    assert found.abs().max() > 1e-3


# Captum's names of the quadrature rules that both have
LINES = {
    "gausslegendre": "gausslegendre",
    "riemann_left": "riemann_left",
    "riemann_right": "riemann_right",
    "riemann_middle": "riemann_middle",
    "trapezoid": "riemann_trapezoid",
}


@pytest.mark.parametrize("baseline", [None, 0.3, "image"])
@pytest.mark.parametrize("rule", LINES)
def test_integrated_gradients_agree(net: Net, x: Tensor, rule: str, baseline: object) -> None:
    start = torch.rand(1, 2, 10, 10, dtype=torch.float64).expand(4, -1, -1, -1) if baseline == "image" else baseline
    explainer = captum.IntegratedGradients(net)
    expected, delta = explainer.attribute(
        x, start, target=1, n_steps=12, method=LINES[rule], return_convergence_delta=True
    )
    found = method("IntegratedGradients")(net, n_steps=12, rule=rule, baseline=start).explain(x, 1)
    short = 11 / 12 if rule == "trapezoid" else 1.0  # the weights of Captum's trapezoid with n nodes sum to (n - 1) / n
    assert torch.allclose(short * found.value, expected.detach(), atol=1e-6)
    if rule != "trapezoid":
        assert torch.allclose(found.residual, -delta.double(), atol=1e-5)


def test_smooth_gradients_agree_up_to_their_noise(net: Net, x: Tensor) -> None:
    ours = method("SmoothGrad")(net, n_samples=100, stdev=0.4).attribute(x, 1)
    torch.manual_seed(0)
    tunnel = captum.NoiseTunnel(captum.Saliency(net))
    theirs = [
        tunnel.attribute(x, nt_type="smoothgrad", nt_samples=100, stdevs=0.4, target=1, abs=False) for _ in range(2)
    ]
    noise = (theirs[0] - theirs[1]).norm() / 2**0.5
    assert (ours - (theirs[0] + theirs[1]) / 2).norm() < 1.6 * noise
    gradient = method("Saliency")(net).attribute(x, 1)
    assert (gradient - theirs[0]).norm() > 2 * noise


@pytest.mark.parametrize(("ours", "theirs"), [("GuidedBackprop", "GuidedBackprop"), ("Deconvnet", "Deconvolution")])
def test_captum_does_not_see_functional_activations(x: Tensor, ours: str, theirs: str) -> None:
    modules, functions = Net().double().eval(), Net(functional=True).double().eval()
    functions.load_state_dict(modules.state_dict())
    assert torch.equal(modules(x), functions(x))
    by_them = getattr(captum, theirs)(functions).attribute(x.clone().requires_grad_(), target=1)
    gradient = method("Saliency")(functions).attribute(x, 1)
    assert torch.allclose(by_them, gradient, atol=1e-12)  # the plain gradient, without a word
    by_us = method(ours)(functions).attribute(x, 1)
    assert torch.equal(by_us, method(ours)(modules).attribute(x, 1))
    assert (by_us - gradient).norm() > 0.1 * gradient.norm()


def test_captum_s_saliency_is_the_absolute_value_of_ours(net: Net, x: Tensor) -> None:
    expected = captum.Saliency(net).attribute(x, target=1)
    assert torch.allclose(method("Saliency")(net).attribute(x, 1).abs(), expected, atol=1e-12)


def test_targets_that_captum_does_not_have_are_differences_of_its_own(net: Net, x: Tensor) -> None:
    a, b = (captum.Saliency(net).attribute(x, target=k, abs=False) for k in (0, 3))
    assert torch.allclose(method("Saliency")(net).attribute(x, Contrast(0, 3)), a - b, atol=1e-12)
