"""pytorch-grad-cam 1.5: the same maps up to its scaling, and where it departs from the papers; its adapters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import backlight
from backlight.engine import Contrast, Probability, TopK, captured
from backlight.errors import InputError, ModelError, NonFiniteError, SiteError, UnknownNameError
from backlight.methods import method

assert backlight  # before torchvision, which pytorch-grad-cam imports
library = pytest.importorskip("pytorch_grad_cam")
from pytorch_grad_cam.utils.image import scale_cam_image  # noqa: E402
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget  # noqa: E402


class Net(nn.Module):
    """A residual CNN whose activations and BatchNorms are modules."""

    def __init__(self, downsample: bool = True, activation: type[nn.Module] = nn.ReLU) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.conv1, self.bn1, self.act1 = nn.Conv2d(3, 6, 3, 2), nn.BatchNorm2d(6), activation()
        self.conv2, self.bn2 = nn.Conv2d(6, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.act2, self.head = activation(), nn.Linear(8 * 9, 5)
        self.downsample = nn.Sequential(nn.Conv2d(6, 8, 1), nn.BatchNorm2d(8)) if downsample else None
        nn.init.normal_(self.head.weight, std=100)  # large scores: theirs adds 1e-7 to what it divides by
        for bn in (part for part in self.modules() if isinstance(part, nn.BatchNorm2d)):
            nn.init.normal_(bn.running_mean)
            nn.init.uniform_(bn.running_var, 0.5, 2)
            nn.init.normal_(bn.weight)
            nn.init.normal_(bn.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act1(self.bn1(self.conv1(x)))
        shortcut = 0 if self.downsample is None else self.downsample(x)
        x = self.act2(self.bn2(self.conv2(x)) + shortcut)
        return self.head(F.adaptive_avg_pool2d(x, 3).flatten(1))


@pytest.fixture
def net() -> Net:
    return Net().double().eval()


@pytest.fixture
def x() -> Tensor:
    return torch.randn(3, 3, 17, 21, dtype=torch.float64, generator=torch.Generator().manual_seed(8))


def theirs(name: str, model: nn.Module, layer: nn.Module, x: Tensor, target: int, **settings: Any) -> np.ndarray:
    """`[N, H, W]`, in [0, 1]."""
    with getattr(library, name)(model=model, target_layers=[layer], **settings) as cam:
        return cam(x, [ClassifierOutputTarget(target)] * len(x))


def scaled(maps: Tensor, size: tuple[int, int]) -> np.ndarray:
    """Our map at the layer's resolution, scaled and resized as theirs: min-max, OpenCV, min-max."""
    return scale_cam_image(scale_cam_image(maps[:, 0].numpy(), size[::-1]))


EXACT = ["GradCAM", "XGradCAM", "LayerCAM"]


@pytest.mark.parametrize("layer", ["act1", "conv2", "act2"])
@pytest.mark.parametrize("name", EXACT)
def test_the_maps_agree_up_to_their_scaling(name: str, layer: str, net: Net, x: Tensor) -> None:
    """1e-5: theirs is single precision once scaled."""
    expected = theirs(name, net, getattr(net, layer), x, 2)
    found = method(name)(net, layer=layer, upsample=False).attribute(x, 2)
    assert np.abs(scaled(found, (17, 21)) - expected).max() < 1e-5
    if layer == "act2":
        assert expected.max() > 0.9
        assert torch.equal(method(name)(net, upsample=False).attribute(x, 2), found)


def test_opencv_and_torch_resize_alike(net: Net, x: Tensor) -> None:
    """Half-pixel centres in both; what is left, after the second scaling, is OpenCV's rounding of weights."""
    expected = theirs("GradCAM", net, net.act2, x, 2)
    found = method("GradCAM")(net).attribute(x, 2)[:, 0]
    low, high = found.amin((1, 2), keepdim=True), found.amax((1, 2), keepdim=True)
    assert np.abs(((found - low) / (high - low)).numpy() - expected).max() < 1e-5


def test_grad_cam_plus_plus_agrees_where_gradients_are_large(net: Net, x: Tensor) -> None:
    with torch.no_grad():
        net.head.weight.mul_(100)
    expected = theirs("GradCAMPlusPlus", net, net.act2, x, 2)
    found = method("GradCAMPlusPlus")(net, upsample=False).attribute(x, 2)
    assert np.abs(scaled(found, (17, 21)) - expected).max() < 1e-5


def test_their_grad_cam_plus_plus_departs_where_gradients_are_small(net: Net, x: Tensor) -> None:
    """Equation 19 with 1e-6 added to its denominator: below |g| = 1e-3 it is g^2 / 1e-6, and not 1/2."""
    with torch.no_grad():
        net.head.weight.mul_(1e-6)
    expected = theirs("GradCAMPlusPlus", net, net.act2, x, 2)
    found = method("GradCAMPlusPlus")(net, upsample=False).attribute(x, 2)
    assert np.abs(scaled(found, (17, 21)) - expected).max() > 0.02
    with captured(net, ["act2"]) as store:
        score = net(x)[:, 2].sum()
    maps = store["act2"]
    (g,) = torch.autograd.grad(score, maps)
    alpha = g**2 / (2 * g**2 + maps.sum((2, 3), keepdim=True) * g**3 + 1e-6)
    with_epsilon = ((g.relu() * alpha).sum((2, 3), keepdim=True) * maps).sum(1, keepdim=True).relu().detach()
    assert np.abs(scaled(with_epsilon, (17, 21)) - expected).max() < 1e-5


def test_full_grad_agrees_on_a_chain(x: Tensor) -> None:
    net = Net(downsample=False).double().eval()
    expected = theirs("FullGrad", net, net.act2, x.requires_grad_(), 2)
    assert torch.equal(method("FullGrad")(net).explain(x, 2).scores, net(x)[:, 2].detach())
    found = method("FullGrad")(net).attribute(x, 2)
    assert np.abs(scale_cam_image(found[:, 0].numpy()) - expected).max() < 1e-5


class Branches(nn.Module):
    """A branch that is defined last and runs first, as in transformers' ResNets."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.main, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3, padding=1), nn.Linear(6, 5)
        self.last, self.shortcut = nn.Conv2d(5, 6, 1), nn.Conv2d(4, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv(x))
        x = self.shortcut(x) + self.last(F.relu(self.main(x)))
        return self.head(F.relu(x).mean((2, 3)))


def test_their_full_grad_pairs_biases_with_gradients_of_other_layers(x: Tensor) -> None:
    """Biases come in the order of definition, gradients in that of the calls: shapes that do not fit, with luck."""
    net = Branches().double().eval()
    with pytest.raises(ValueError, match="broadcast"):
        theirs("FullGrad", net, net.conv, x.clone().requires_grad_(), 2)
    assert method("FullGrad")(net).explain(x, 2).residual.abs().max() < 1e-12


def test_rescaled_map_by_map_a_bias_cancels_from_its_map(net: Net, x: Tensor) -> None:
    """So luck or not, theirs only depends on gradients; `rescale="layer"` keeps the biases' proportions."""
    before = {how: method("FullGrad")(net, rescale=how).attribute(x, 2) for how in ("map", "layer")}
    with torch.no_grad():
        net.conv2.bias.mul_(torch.linspace(1, 3, 8))
        net.bn2.running_mean.add_((net.conv2.bias * (1 - 1 / torch.linspace(1, 3, 8))).double())  # the same function
    after = {how: method("FullGrad")(net, rescale=how).attribute(x, 2) for how in ("map", "layer")}
    assert torch.allclose(before["map"], after["map"], atol=1e-9)
    assert (before["layer"] - after["layer"]).abs().max() > 1e-2


def test_tokens_agree_with_their_reshape_transform() -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=3, num_classes=5).double().eval()
    nn.init.normal_(model.head.weight, std=100)
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)

    def reshape_transform(values: Tensor) -> Tensor:
        return values[:, 1:].reshape(len(values), 4, 4, -1).permute(0, 3, 1, 2)

    layer = model.blocks[-1].norm1
    for name in EXACT:
        expected = theirs(name, model, layer, x, 2, reshape_transform=reshape_transform)
        found = method(name)(model, layer="blocks.2.norm1", upsample=False).attribute(x, 2)
        assert found.shape == (2, 1, 4, 4)
        tolerance = 1e-4 if name == "XGradCAM" else 1e-5  # tokens sum to little beside their 1e-7
        assert np.abs(scaled(found, (64, 64)) - expected).max() < tolerance
    with pytest.raises(SiteError, match="name a layer"):
        method("GradCAM")(model).attribute(x, 2)
    with pytest.raises(SiteError, match="prefix tokens only"):
        method("GradCAM")(model, layer="blocks.2").attribute(x, 2)
    score = method("ScoreCAM")(model, layer="blocks.2.norm1").attribute(x, 2)
    with torch.no_grad():
        expected = theirs("ScoreCAM", model, layer, x, 2, reshape_transform=reshape_transform)
    assert np.abs(score[:, 0].numpy() - expected).max() < 1e-5
    with pytest.raises(SiteError, match="name a layer"):
        method("ScoreCAM")(model).attribute(x, 2)


def test_channels_last_maps_agree_on_swin() -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    model = timm.create_model(
        "swin_tiny_patch4_window7_224", img_size=56, depths=(1, 1), num_heads=(2, 4), embed_dim=24, num_classes=5
    )
    model = model.double().eval()
    x = torch.randn(2, 3, 56, 56, dtype=torch.float64)
    layer = model.layers[1].blocks[0].norm1
    expected = theirs("GradCAM", model, layer, x, 2, reshape_transform=lambda values: values.permute(0, 3, 1, 2))
    found = method("GradCAM")(model, layer="layers.1.blocks.0.norm1", upsample=False).attribute(x, 2)
    assert found.shape == (2, 1, 7, 7)
    assert np.abs(scaled(found, (56, 56)) - expected).max() < 1e-5
    assert method("GradCAM")(model, upsample=False).attribute(x, 2).shape == (2, 1, 7, 7)


@pytest.mark.parametrize("name", ["ScoreCAM", "AblationCAM"])
def test_an_adapter_is_the_library_bit_for_bit(name: str, net: Net, x: Tensor) -> None:
    adapter = method(name)(net)
    found = adapter.explain(x, [0, 2, 4])
    with torch.no_grad():
        expected = np.concatenate([theirs(name, net, net.act2, x[n : n + 1], 2 * n) for n in range(3)])
    assert np.array_equal(found.value[:, 0].float().numpy(), expected)
    assert torch.equal(found.scores, net(x)[[0, 1, 2], [0, 2, 4]].detach())
    assert torch.equal(method(name)(net, layer="act2").attribute(x, [0, 2, 4]), found.value)
    channels, extra = 8, 3 if name == "ScoreCAM" else 4  # scores, the search for the layer, the library's own
    assert (found.cost.forwards, found.cost.backwards) == (3 * (channels + extra), 0)
    for size in (1, 3, 50):
        assert torch.allclose(adapter.attribute(x, [0, 2, 4], internal_batch_size=size), found.value, atol=1e-6)


@pytest.mark.parametrize("target", [Probability(1), Contrast(0, 2), TopK(2), None, lambda outputs: outputs[:, 0] ** 2])
@pytest.mark.parametrize("name", ["ScoreCAM", "AblationCAM"])
def test_any_target_can_be_explained(name: str, target: Any, net: Net, x: Tensor) -> None:
    with torch.no_grad():
        net.head.weight.mul_(0.01)  # probabilities that are neither 0 nor 1
    explainer = method(name)(net)
    whole = explainer.explain(x, target)
    single = [explainer.explain(x[n : n + 1], target) for n in range(3)]
    assert torch.equal(torch.cat([one.value for one in single]), whole.value)
    assert torch.allclose(torch.cat([one.scores for one in single]), whole.scores, atol=1e-12)
    if name == "ScoreCAM":  # ablation may find that every map speaks against the target
        assert whole.value.amax() == pytest.approx(1, abs=1e-2)


def test_constant_maps_give_numbers(net: Net, x: Tensor) -> None:
    """pytorch-grad-cam #214: a map that is constant has no range to be scaled by."""
    with torch.no_grad():
        net.bn2.weight[:4], net.bn2.bias[:4] = 0, -100
    for name in ("ScoreCAM", "AblationCAM"):
        assert torch.isfinite(method(name)(net).attribute(x, 1)).all()
    with torch.no_grad():
        net.bn2.bias[:] = -1000
    for name in ("ScoreCAM", "AblationCAM", "GradCAM", "GradCAMPlusPlus", "XGradCAM", "LayerCAM"):
        assert method(name)(net).attribute(x, 1).abs().max() == 0


def test_what_the_library_cannot_do_is_named(net: Net, x: Tensor) -> None:
    with pytest.raises(ModelError, match=r"-10\^7 .* ends in a ReLU"):
        method("AblationCAM")(net, layer="bn2").attribute(x, 1)
    assert method("AblationCAM")(net, layer="bn2", strict=False).attribute(x, 1).shape == (3, 1, 17, 21)
    with pytest.raises(NonFiniteError, match="the score, which is 0"):
        method("AblationCAM")(net).attribute(x, lambda outputs: outputs[:, 0] * 0)
    with pytest.raises(UnknownNameError, match="act2"):
        method("ScoreCAM")(net, layer="act3").attribute(x, 1)
    with pytest.raises(UnknownNameError, match="hooks modules"):
        method("ScoreCAM")(net, layer="act2:input").attribute(x, 1)
    with pytest.raises(SiteError, match=r"gives \[1, 5\]"):
        method("ScoreCAM")(net, layer="head").attribute(x, 1)
    with pytest.raises(InputError, match="images"):
        method("ScoreCAM")(nn.Linear(4, 3)).attribute(torch.randn(2, 4), 1)
    with pytest.raises(SiteError, match="cannot be read at 'act2'"):
        method("ScoreCAM")(net).attribute(x, 1, sites="act2")
    with pytest.raises(InputError, match="create_graph"):
        method("ScoreCAM")(net).attribute(x, 1, create_graph=True)


class Odd(nn.Module):
    """A layer that gives a tuple, one that runs twice, one whose output is written to afterwards."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.twice, self.both, self.head = nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Identity(), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        x += 1
        x, _ = self.both((self.twice(x), 0))
        return self.head(self.twice(x).mean((2, 3)))


@pytest.mark.parametrize(
    ("layer", "problem"), [("both", "gives a tuple"), ("twice", "runs 2 times"), ("conv", "written to in place")]
)
def test_layers_that_the_library_reads_wrongly_are_refused(layer: str, problem: str, x: Tensor) -> None:
    with pytest.raises(ModelError, match=problem):
        method("ScoreCAM")(Odd().double(), layer=layer).attribute(x, 1)


def test_without_a_module_for_it_there_is_no_map(x: Tensor) -> None:
    with pytest.raises(SiteError, match="no module gives a map"):
        method("ScoreCAM")(Odd().double()).attribute(x, 1)
    pooled = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.MaxPool2d(3), nn.Flatten(), nn.LazyLinear(3))
    pooled = pooled.double()
    pooled(x)
    assert torch.equal(
        method("ScoreCAM")(pooled).attribute(x, 1), method("ScoreCAM")(pooled, layer="1").attribute(x, 1)
    )


def interrupted(calls: int) -> Callable[..., None]:
    left = [calls]

    def hook(*_: Any) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt

    return hook


@pytest.mark.parametrize("calls", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("name", ["ScoreCAM", "AblationCAM"])
def test_an_interrupt_leaves_the_model_as_it_was(name: str, calls: int, net: Net, x: Tensor) -> None:
    """Also while the library has replaced the layer by its own (AblationCAM)."""
    before, expected = list(net.modules()), net(x)
    net.conv1.train()
    handle = net.head.register_forward_hook(interrupted(calls))
    with pytest.raises(KeyboardInterrupt):
        method(name)(net).attribute(x, 1)
    handle.remove()
    assert [a is b for a, b in zip(before, net.modules(), strict=True)] == [True] * len(before)
    assert [part.training for part in net.modules()] == [part is net.conv1 for part in net.modules()]
    assert all(len(part._forward_hooks) == 0 for part in net.modules())
    assert torch.equal(net(x), expected)
    assert library.score_cam.tqdm.__name__ == library.ablation_cam.tqdm.__name__ == "tqdm"
