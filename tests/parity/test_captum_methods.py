"""Captum 0.9: class activation maps agree; adapters are the library's calls, and refuse what it gets wrong."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backlight.engine import Contrast, LogProbability, TopK
from backlight.errors import InputError, ModelError, SiteError, TargetError
from backlight.methods import method

captum = pytest.importorskip("captum.attr")

ADAPTERS = ["DeepLIFT", "GradientSHAP", "KernelSHAP", "LIME", "Occlusion"]
SMALL: dict[str, dict[str, Any]] = {
    "DeepLIFT": {},
    "GradientSHAP": {"n_samples": 7, "stdev": 0.2},
    "KernelSHAP": {"n_samples": 40, "patch": 4},
    "LIME": {"n_samples": 40, "patch": 4, "alpha": 1e-3},
    "Occlusion": {"window": 4, "stride": 3},
}


class Net(nn.Module):
    """A CNN whose activations and pools are modules of their own, or functions, or one that is used twice."""

    def __init__(self, spelling: str = "modules") -> None:
        super().__init__()
        torch.manual_seed(6)
        self.conv1, self.conv2, self.head = nn.Conv2d(2, 6, 3), nn.Conv2d(6, 6, 3), nn.Linear(24, 4)
        nn.init.normal_(self.head.weight)
        inplace = spelling == "in place"
        self.relu1 = nn.ReLU(inplace)
        self.relu2 = self.relu1 if spelling == "reused" else nn.ReLU(inplace)
        self.pool, self.spelling = nn.MaxPool2d(2), spelling

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.relu1(self.conv1(x)))
        x = F.relu(self.conv2(x)) if self.spelling == "functional" else self.relu2(self.conv2(x))
        return self.head(x.flatten(1))


@pytest.fixture
def net() -> Net:
    return Net().double().eval()


@pytest.fixture
def x() -> Tensor:
    return torch.randn(3, 2, 10, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("layer", ["conv1", "relu1", "pool", "relu2"])
def test_grad_cam_is_captum_s(layer: str, net: Net, x: Tensor) -> None:
    theirs = captum.LayerGradCam(net, getattr(net, layer))
    for relu in (True, False):
        expected = theirs.attribute(x, [0, 2, 3], relu_attributions=relu).detach()
        found = method("GradCAM")(net, layer=layer, relu=relu, upsample=False).attribute(x, [0, 2, 3])
        assert torch.allclose(found, expected, rtol=0, atol=1e-10)
        assert expected.abs().max() > 1e-3


@pytest.mark.parametrize("layer", ["relu1", "relu2"])
def test_guided_grad_cam_is_captum_s(layer: str, net: Net, x: Tensor) -> None:
    """With its interpolation set to ours, which is bilinear; its default is the nearest cell."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = captum.GuidedGradCam(net, getattr(net, layer)).attribute(
            x.clone().requires_grad_(), 1, interpolate_mode="bilinear"
        )
    found = method("GuidedGradCAM")(net, layer=layer).attribute(x, 1)
    assert torch.allclose(found, expected.detach(), rtol=0, atol=1e-10)
    assert expected.abs().max() > 1e-4


def mask_of(x: Tensor, side: int) -> Tensor:
    """Patches numbered by hand."""
    height, width = x.shape[2:]
    columns = -(-width // side)
    rows = [[(i // side) * columns + j // side for j in range(width)] for i in range(height)]
    return torch.tensor(rows).expand(1, 1, height, width)


def direct(name: str, net: nn.Module, x: Tensor, target: int) -> Tensor:
    """The library's own call for one sample."""
    from captum._utils.models.linear_model import SkLearnLasso

    torch.manual_seed(0)
    np.random.seed(0)
    zeros = torch.zeros_like(x)
    mask, s = mask_of(x, 4), SMALL[name]
    calls: dict[str, Callable[[], Tensor]] = {
        "DeepLIFT": lambda: captum.DeepLift(net).attribute(x.clone().requires_grad_(), zeros, target),
        "GradientSHAP": lambda: captum.GradientShap(net).attribute(x, zeros, n_samples=7, stdevs=0.2, target=target),
        "KernelSHAP": lambda: captum.KernelShap(net).attribute(
            x, zeros, target, feature_mask=mask, n_samples=s["n_samples"], perturbations_per_eval=16
        ),
        "LIME": lambda: captum.Lime(net, interpretable_model=SkLearnLasso(alpha=1e-3)).attribute(
            x, zeros, target, feature_mask=mask, n_samples=s["n_samples"], perturbations_per_eval=16
        ),
        "Occlusion": lambda: captum.Occlusion(net).attribute(
            x, (2, 4, 4), (1, 3, 3), zeros, target, perturbations_per_eval=16
        ),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return calls[name]().detach()


@pytest.mark.parametrize("name", ADAPTERS)
def test_an_adapter_is_the_library_bit_for_bit(name: str, net: Net, x: Tensor) -> None:
    found = method(name)(net, **SMALL[name]).explain(x, [0, 2, 3])
    expected = torch.cat([direct(name, net, x[n : n + 1], t) for n, t in enumerate([0, 2, 3])])
    assert found.value.shape == x.shape
    assert torch.equal(found.value, expected.double())
    assert expected.abs().max() > 1e-3
    assert torch.equal(found.scores, net(x)[[0, 1, 2], [0, 2, 3]].detach())


def test_passes_are_counted(net: Net, x: Tensor) -> None:
    cost = {name: method(name)(net, **SMALL[name]).explain(x, 1).cost for name in ADAPTERS}
    counts = {name: (one.forwards, one.backwards) for name, one in cost.items()}
    assert counts == {
        "DeepLIFT": (3 + 1 + 3 * 2 * 2, 3 * 2),  # the scores; the check; input and baseline, and the residual
        "GradientSHAP": (3 + 3 * 7, 3 * 7),
        "KernelSHAP": (3 + 3 * 40, 0),
        "LIME": (3 + 3 * 40, 0),
        "Occlusion": (3 + 3 * (1 + 9), 0),  # the unoccluded input; 3 x 3 windows
    }
    in_pieces = method("GradientSHAP")(net, n_samples=7).explain(x, 1, internal_batch_size=2).cost
    assert (in_pieces.forwards, in_pieces.backwards) == (3 + 3 * 14, 3 * 7)  # pieces are computed again


TARGETS = [LogProbability(1), Contrast(0, 2), TopK(2), None, lambda outputs: outputs[:, 0] ** 2]


@pytest.mark.parametrize("target", TARGETS, ids=["log p", "contrast", "top", "none", "function"])
@pytest.mark.parametrize("name", ADAPTERS)
def test_any_target_can_be_explained(name: str, target: Any, net: Net, x: Tensor) -> None:
    explainer = method(name)(net, strict=False, **SMALL[name])
    whole = explainer.explain(x, target)
    single = [explainer.explain(x[n : n + 1], target) for n in range(3)]
    assert torch.allclose(torch.cat([one.value for one in single]), whole.value, rtol=0, atol=1e-7)
    assert torch.allclose(torch.cat([one.scores for one in single]), whole.scores, atol=1e-12)
    assert whole.value.abs().max() > 1e-3


@pytest.mark.parametrize("name", ["DeepLIFT", "GradientSHAP", "Occlusion"])
def test_a_contrast_is_a_difference(name: str, net: Net, x: Tensor) -> None:
    explainer = method(name)(net, **SMALL[name])
    a, b, c = (explainer.attribute(x, target) for target in (0, 2, Contrast(0, 2)))
    assert torch.allclose(c, a - b, atol=1e-7)


@pytest.mark.parametrize("name", ADAPTERS)
def test_further_arguments_follow_their_samples(name: str, net: Net, x: Tensor) -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor, scale: Tensor, offset: float) -> Tensor:
            return self.net(x) * scale[:, None] + offset

    scale = torch.tensor([1.0, 2.0, -3.0], dtype=torch.float64)
    found = method(name)(Scaled(), strict=False, **SMALL[name]).attribute(x, 1, additional_forward_args=(scale, 5.0))
    if name == "LIME":  # a Lasso is not linear in the score
        return
    expected = method(name)(net, **SMALL[name]).attribute(x, 1) * scale[:, None, None, None]
    assert torch.allclose(found, expected, atol=1e-5)


def test_deep_lift_sums_to_the_difference_of_scores(net: Net, x: Tensor) -> None:
    baseline = torch.rand(3, 2, 10, 10, dtype=torch.float64)
    for start, at in ((None, torch.zeros_like(x)), (0.3, torch.full_like(x, 0.3)), (baseline, baseline)):
        found = method("DeepLIFT")(net, baseline=start).explain(x, 1)
        gap = (net(x) - net(at))[:, 1].detach() - found.value.flatten(1).sum(1)
        assert torch.allclose(found.residual, gap, rtol=0, atol=1e-12)
        if start is baseline:  # Captum's max-pooling rule is not complete there
            assert gap.abs().max() > 1e-2
            net.pool = nn.AvgPool2d(2)
            found = method("DeepLIFT")(net, baseline=start).explain(x, 1)
        assert found.residual.abs().max() < 1e-12


def test_captum_s_max_pooling_rule_mixes_the_samples_of_a_batch() -> None:
    """Where input and baseline agree at a pool, it takes the first sample's gradient: so samples go one by one."""
    net = nn.Sequential(nn.Conv2d(2, 1, 1, bias=False), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4, 3)).double()
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([1.0, -1.0]).reshape(1, 2, 1, 1))
    x = torch.randn(2, 2, 4, 4, dtype=torch.float64)
    x[1, 1] = x[1, 0]  # the convolution gives 0, as it does of the baseline
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        batch = captum.DeepLift(net).attribute(x.clone().requires_grad_(), target=1)
        single = captum.DeepLift(net).attribute(x[1:].clone().requires_grad_(), target=1)
    assert (batch[1:] - single).abs().max() > 1e-3
    assert torch.equal(method("DeepLIFT")(net).attribute(x, 1)[1:], single.detach())


def test_deep_lift_refuses_what_captum_does_not_see(x: Tensor) -> None:
    for spelling, problem in (("functional", "'relu' in layer '\\(root\\)'"), ("reused", "'relu1' ran 2 times")):
        net = Net(spelling).double().eval()
        with pytest.raises(ModelError, match=problem):
            method("DeepLIFT")(net).attribute(x, 1)
        assert all(not part._forward_hooks and not part._backward_hooks for part in net.modules())
    gelu = nn.Sequential(nn.Conv2d(2, 3, 3), nn.GELU(), nn.Flatten(), nn.Linear(192, 3)).double()
    with pytest.raises(ModelError, match="'gelu' in layer '1'"):
        method("DeepLIFT")(gelu).attribute(x, 1)
    with pytest.raises(ModelError, match="'log_softmax' in layer"):
        method("DeepLIFT")(Net().double().eval()).attribute(x, LogProbability(1))
    with pytest.raises(ModelError, match="Captum's DeepLIFT cannot explain"):
        method("DeepLIFT")(Net("reused").double(), strict=False).attribute(x, 1)


def test_captum_lets_the_gradient_through_functions_without_a_word(x: Tensor) -> None:
    functional, modules = Net("functional").double().eval(), Net().double().eval()
    wrong = method("DeepLIFT")(functional, strict=False).attribute(x, 1)
    right = method("DeepLIFT")(modules).attribute(x, 1)
    assert (wrong - right).abs().max() > 1e-3
    sums = wrong.flatten(1).sum(1) - (functional(x) - functional(0 * x))[:, 1].detach()
    assert sums.abs().max() > 1e-3


def test_deep_lift_works_in_place(net: Net, x: Tensor) -> None:
    in_place = Net("in place").double().eval()
    assert torch.equal(method("DeepLIFT")(in_place).attribute(x, 1), method("DeepLIFT")(net).attribute(x, 1))


def test_feature_masks(net: Net, x: Tensor) -> None:
    for name in ("KernelSHAP", "LIME"):
        settings = {**SMALL[name]}
        expected = method(name)(net, **settings).attribute(x, 1)
        settings.pop("patch")
        for mask in (mask_of(x, 4), mask_of(x, 4)[0, 0], mask_of(x, 4).expand(3, 1, 10, 10) + 5):
            assert torch.equal(method(name)(net, feature_mask=mask, **settings).attribute(x, 1), expected)
        assert len(expected[0].unique()) <= 9
        with pytest.raises(InputError, match="integers"):
            method(name)(net, feature_mask=torch.rand(10, 10)).attribute(x, 1)
        with pytest.raises(InputError, match="broadcast"):
            method(name)(net, feature_mask=mask_of(x, 4)[..., :7]).attribute(x, 1)
        with pytest.raises(InputError, match="single feature"):
            method(name)(net, patch=10).attribute(x, 1)


def test_of_an_additive_score_the_shapley_values_are_known(x: Tensor) -> None:
    class Additive(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x**2).flatten(1).sum(1, keepdim=True)

    found = method("KernelSHAP")(Additive(), n_samples=60, patch=5).attribute(x, 0)
    for n in range(3):
        for i in (0, 5):
            for j in (0, 5):
                value = (x[n, :, i : i + 5, j : j + 5] ** 2).sum()
                assert torch.allclose(found[n, :, i : i + 5, j : j + 5], value, atol=1e-3)


@pytest.mark.parametrize("name", ADAPTERS)
def test_random_states_are_the_user_s(name: str, net: Net, x: Tensor) -> None:
    torch.manual_seed(11)
    np.random.seed(11)
    first = method(name)(net, **SMALL[name]).attribute(x, 1)
    after = torch.rand(1).item(), np.random.rand()
    torch.manual_seed(11)
    np.random.seed(11)
    assert after == (torch.rand(1).item(), np.random.rand())
    assert torch.equal(method(name)(net, **SMALL[name]).attribute(x, 1), first)
    if "seed" in method(name).settings():
        assert not torch.equal(method(name)(net, seed=1, **SMALL[name]).attribute(x, 1), first)


def interrupted(calls: int) -> Callable[..., None]:
    left = [calls]

    def hook(*_: Any) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt

    return hook


@pytest.mark.parametrize("calls", [1, 2, 3, 4])
@pytest.mark.parametrize("name", ADAPTERS)
def test_an_interrupt_leaves_nothing_on_the_model(name: str, calls: int, net: Net, x: Tensor) -> None:
    before = [sorted(vars(part)) for part in net.modules()]
    state = torch.get_rng_state()
    handle = net.relu2.register_forward_hook(interrupted(calls))
    with pytest.raises(KeyboardInterrupt):
        method(name)(net, **SMALL[name]).attribute(x, 1, internal_batch_size=2)
    handle.remove()
    assert [sorted(vars(part)) for part in net.modules()] == before
    tables = [table for part in net.modules() for key, table in vars(part).items() if "hooks" in key]
    assert len(tables) > 20
    assert not any(tables)
    assert torch.equal(torch.get_rng_state(), state)


def test_what_does_not_fit_is_named(net: Net, x: Tensor) -> None:
    with pytest.raises(InputError, match="at least 10, better"):
        method("KernelSHAP")(net, n_samples=5, patch=4).attribute(x, 1)
    for settings in ({"window": 11}, {"window": 2, "stride": 3}, {"window": (4, 4)}, {"window": 0}):
        with pytest.raises(InputError, match="window"):
            method("Occlusion")(net, **settings).attribute(x, 1)
    with pytest.raises(InputError, match="n_samples"):
        method("GradientSHAP")(net, n_samples=0).attribute(x, 1)
    with pytest.raises(InputError, match="one input"):
        method("LIME")(net).attribute((x, x), 1)
    with pytest.raises(SiteError, match="cannot be read at 'conv1'"):
        method("LIME")(net).attribute(x, 1, sites="conv1")
    with pytest.raises(TargetError, match="out of range"):
        method("LIME")(net).attribute(x, 9)
    with pytest.raises(InputError, match="internal_batch_size"):
        method("LIME")(net).attribute(x, 1, internal_batch_size=0)
