"""Sharing Ratio Decomposition of real networks: both forms agree, heads, resolutions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from sharing_kinds import KINDS
from sharing_networks import Drawn, pictures, relative
from torch import Tensor, nn
from torch.nn import functional as F

from backlight import SRD, GradCAM
from backlight.engine.targets import Contrast
from backlight.errors import SiteError

# real networks


def drawn(model: nn.Module, seed: int = 0) -> nn.Module:
    """The network in float64, with weights, biases and statistics that let a signal through."""
    generator = torch.Generator().manual_seed(seed)
    model = model.double().eval()
    with torch.no_grad():
        for name, value in (*model.named_parameters(), *model.named_buffers()):
            noise = torch.randn(value.shape, dtype=torch.float64, generator=generator)
            if name.endswith("running_var"):
                value.copy_(0.5 + 0.5 * noise.abs())
            elif name.endswith("running_mean"):
                value.copy_(0.3 * noise)
            elif value.ndim > 1:
                value.copy_(noise * (2 / value[0].numel()) ** 0.5)
            elif value.is_floating_point():
                value.copy_(1 + 0.2 * noise if name.endswith("weight") else 0.2 * noise)
    return model


def of_torchvision(name: str, **settings: Any) -> nn.Module:
    models = pytest.importorskip("torchvision").models
    return drawn(models.get_model(name, weights=None, num_classes=7, **settings))


def of_timm(name: str, **settings: Any) -> nn.Module:
    return drawn(pytest.importorskip("timm").create_model(name, pretrained=False, num_classes=7, **settings))


def photo(side: int, count: int = 1) -> Tensor:
    return torch.randn(count, 3, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


REAL: dict[str, Any] = {
    "resnet18": of_torchvision,
    "resnet50": of_torchvision,
    "densenet121": of_torchvision,
    "mobilenet_v2": of_torchvision,
    "mobilenet_v3_small": of_torchvision,
    "efficientnet_b0": of_torchvision,
    "squeezenet1_1": of_torchvision,
    "googlenet": lambda name: of_torchvision(name, aux_logits=False, init_weights=False),
    "shufflenet_v2_x0_5": of_torchvision,
    "regnet_y_400mf": of_torchvision,
    "tf_efficientnet_lite0": of_timm,
    "resnetv2_50": of_timm,
    "ghostnet_100": of_timm,
}


@pytest.mark.parametrize("name", REAL)
def test_real_networks_agree_and_conserve(name: str) -> None:
    model, x = REAL[name](name), photo(64)
    for bias in ("norm", "drop"):
        explainer = SRD(model, head="raw", bias=bias)
        found = explainer.explain(x, 3)
        operator = explainer.prepare(x)
        seed = operator.seed(3)
        assert seed.abs().max() > 1e-3
        assert relative(operator.relevance(seed)[:, None], found.value) < 1e-10
        if bias == "norm":
            assert found.residual.abs().max() < 1e-10 * seed.abs().sum()
            assert (found.value.flatten(1).sum(1) - seed.flatten(1).sum(1)).abs().max() < 1e-10 * seed.abs().sum()
        else:
            assert found.residual.abs().max() > 1e-3 * seed.abs().max()
        fields = operator.ierf("@features", [0, 1])
        assert torch.isfinite(fields).all()
    assert found.coverage.uncovered == ()


def test_vgg_agrees_and_conserves() -> None:
    vgg = pytest.importorskip("torchvision").models.vgg
    head = [nn.Linear(512 * 4, 32), nn.ReLU(True), nn.Dropout(), nn.Linear(32, 7)]
    model = drawn(nn.Sequential(vgg.make_layers(vgg.cfgs["A"], batch_norm=True), nn.Flatten(), *head))
    x = photo(64)
    explainer = SRD(model)
    found, operator = explainer.explain(x, 3), explainer.prepare(x)
    assert operator.size("@features") == (4, 4)  # before the last pool, which belongs to the head
    assert relative(operator.relevance(operator.seed(3))[:, None], found.value) < 1e-10
    assert found.residual.abs().max() < 1e-10 * operator.seed(3).sum()


# heads


def gap_network() -> tuple[Drawn, Tensor]:
    network = KINDS["resnet_basic"]("elu", 8)
    return Drawn(network), pictures(network, 3)


def test_the_heads_are_grad_cam_written_out() -> None:
    """Global average pooling and a linear layer: R_i = (w_c - mean w) . A_i / HW, and its positive part (eq. 5, 6)."""
    model, x = gap_network()
    target = [4, 0, 2]
    maps = model.features(x).detach()
    weight = model.head.weight.detach()
    size = maps[0, 0].numel()
    raw = torch.einsum("nc,nchw->nhw", weight[target], maps) / size
    mean = torch.einsum("nc,nchw->nhw", weight[target] - weight.mean(0), maps) / size
    for head, expected in (("raw", raw), ("mean", mean), ("clamped", mean.clamp(min=0))):
        found = SRD(model, head=head).explain(x, target, sites="low").value
        assert relative(found[:, 0], expected) < 1e-12, head
        assert relative(SRD(model, head=head).prepare(x).seed(target), expected) < 1e-12, head
    classes = torch.stack([SRD(model, head="raw").prepare(x).seed(c) for c in range(5)])
    assert relative(classes[4, 0] - classes[:, 0].mean(0), mean[0]) < 1e-12  # one pass in place of K


def test_low_is_grad_cam_of_the_centred_logit() -> None:
    model, x = gap_network()

    def centred(outputs: Tensor) -> Tensor:
        return outputs[:, 1] - outputs.mean(1)

    for head, relu in (("mean", False), ("clamped", True)):
        found = SRD(model, head=head).explain(x, 1, sites="low").value
        assert relative(found, GradCAM(model, relu=relu, upsample=False).attribute(x, centred)) < 1e-12
        resized = SRD(model, head=head, resolution="low").attribute(x, 1)
        assert relative(resized, GradCAM(model, relu=relu).attribute(x, centred)) < 1e-12
    raw = SRD(model, head="raw").explain(x, 1, sites="low").value
    assert relative(raw, GradCAM(model, relu=False, upsample=False).attribute(x, 1)) < 1e-12


class Headed(nn.Module):
    """Two layers, and a head that is not linear: the gate and the statistics of its own map are part of it."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.GELU(), nn.Conv2d(6, 6, 3), nn.GELU())
        self.gate, self.norm = nn.Linear(6, 6), nn.GroupNorm(2, 6)
        self.conv, self.linear = nn.Conv2d(6, 4, 3), nn.Linear(6 if kind != "convolution" else 4, 5)
        self.kind = kind
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        if self.kind == "gate":
            x = x * torch.sigmoid(self.gate(x.mean((2, 3))))[:, :, None, None]
        elif self.kind == "group norm":
            x = self.norm(x)
        elif self.kind == "softmax":
            x = x * x.flatten(2).softmax(2).view_as(x)
        elif self.kind == "convolution":
            x = self.conv(x)
        elif self.kind == "max":
            return self.linear(F.adaptive_max_pool2d(x, 1).flatten(1))
        elif self.kind == "attention":
            tokens = x.flatten(2).transpose(1, 2)
            x = F.scaled_dot_product_attention(tokens, tokens, tokens).transpose(1, 2)
        return self.linear(x.flatten(2).mean(2))


@pytest.mark.parametrize("kind", ["gate", "group norm", "softmax", "convolution", "max", "attention"])
def test_a_head_is_differentiated_as_it_is(kind: str) -> None:
    model, x = Headed(kind), torch.randn(2, 3, 6, 6, dtype=torch.float64)
    maps = model.body(x).detach().requires_grad_()
    body, model.body = model.body, nn.Identity()
    (gradient,) = torch.autograd.grad(model(maps)[:, 1].sum(), maps)
    model.body = body
    expected = (gradient.mean((2, 3), keepdim=True) * maps).sum(1, keepdim=True).detach()
    explainer = SRD(model, head="raw")
    assert relative(explainer.explain(x, 1, sites="low").value, expected) < 1e-12
    operator = explainer.prepare(x)
    assert relative(operator.seed(1)[:, None], expected) < 1e-12
    assert relative(operator.relevance(operator.seed(1))[:, None], explainer.attribute(x, 1)) < 1e-10


def test_other_targets_are_taken_as_they_are() -> None:
    model, x = gap_network()
    weight = model.head.weight.detach()
    found = SRD(model, head="mean").explain(x, Contrast(1, 3), sites="low").value
    expected = torch.einsum("c,nchw->nhw", weight[1] - weight[3], model.features(x).detach()) / found[0].numel()
    assert relative(found[:, 0], expected) < 1e-12


# resolutions


def test_the_resolutions_of_a_resnet() -> None:
    models = pytest.importorskip("torchvision").models
    model = drawn(models.resnet.ResNet(models.resnet.Bottleneck, [1, 2, 2, 1], num_classes=7, width_per_group=32))
    x = photo(96)
    sites = SRD(model, head="mean").explain(x, 2, sites=("low", "high", "layer2", "input")).values
    assert {name: tuple(value.shape) for name, value in sites.items()} == {
        "low": (1, 1, 3, 3), "high": (1, 1, 12, 12), "layer2": (1, 1, 12, 12), "input": (1, 1, 96, 96)
    }  # fmt: skip
    assert torch.equal(sites["high"], sites["layer2"])  # the output of the stage with an eighth of the input's size
    totals = {name: value.sum().item() for name, value in sites.items()}
    assert max(abs(total - totals["low"]) for total in totals.values()) < 1e-10 * sites["low"].abs().sum()
    for resolution in ("low", "high", "input"):
        found = SRD(model, head="mean", resolution=resolution).attribute(x, 2)
        assert found.shape == (1, 1, 96, 96)
        plain = F.interpolate(sites[resolution], (96, 96), mode="bilinear", align_corners=False)
        assert relative(found, plain) < 1e-12
    named = SRD(model, head="mean", resolution="layer2").attribute(x, 2)
    assert relative(named, SRD(model, head="mean", resolution="high").attribute(x, 2)) < 1e-12


@pytest.mark.parametrize(
    ("name", "layer", "size"),
    [("densenet121", "features.transition2.relu", 8), ("mobilenet_v2", "features.6", 8), ("googlenet", None, 8)],
)
def test_high_is_a_cut_that_all_relevance_passes(name: str, layer: str | None, size: int) -> None:
    model, x = REAL[name](name), photo(64)
    explainer = SRD(model, head="mean")
    operator = explainer.prepare(x)
    high = explainer.explain(x, 2, sites=("high", "low")).values
    assert high["high"].shape[2:] == (size, size) == operator.size("high")
    seed = operator.seed(2)
    assert (high["high"].sum() - seed.sum()).abs() < 1e-10 * seed.abs().sum()
    assert relative(operator.relevance(seed, to="high")[:, None], high["high"]) < 1e-10
    again = operator.relevance(operator.relevance(seed, to="high"), at="high")
    assert relative(again, operator.relevance(seed)) < 1e-10  # nothing bypasses it
    if layer is not None:
        assert operator.node(layer) <= operator.node("high")


def test_a_network_without_such_a_stage_says_so() -> None:
    network = KINDS["vgg_bn"]("relu", 0)
    model, x = Drawn(network), pictures(network)
    for attempt in (lambda: SRD(model, resolution="high").attribute(x, 1), lambda: SRD(model).prepare(x).node("high")):
        with pytest.raises(SiteError, match="6x6, 3x3"):
            attempt()
