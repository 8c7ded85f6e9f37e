"""Class activation maps against their equations, written out entry by entry; and which layers they can read."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from networks import spelled
from torch import Tensor, nn
from torch.nn import functional as F

from backlight.engine import Contrast, Probability, TopK, Unit
from backlight.errors import InputError, SiteError, UnknownNameError
from backlight.methods import method

CAMS = ["GradCAM", "GradCAMPlusPlus", "XGradCAM", "LayerCAM"]


def net(activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    torch.manual_seed(5)
    return nn.Sequential(
        nn.Conv2d(3, 5, 3, 2), activation(), nn.Conv2d(5, 4, 3), activation(), nn.Flatten(), nn.Linear(4 * 3 * 4, 3)
    ).double()


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 3, 11, 13, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def maps_and_gradients(model: nn.Sequential, x: Tensor, target: int) -> tuple[Tensor, Tensor]:
    maps = model[:4](x).detach().requires_grad_()
    (g,) = torch.autograd.grad(model[4:](maps)[:, target].sum(), maps)
    return maps.detach(), g


def literal(name: str, maps: Tensor, g: Tensor) -> Tensor:
    """The map of one sample `[H, W]`, before the ReLU, from its channels `[C, H, W]`."""
    channels, height, width = maps.shape
    places = [(i, j) for i in range(height) for j in range(width)]
    result = torch.zeros(height, width, dtype=torch.float64)
    for k in range(channels):
        total = sum(float(maps[k, i, j]) for i, j in places)
        weight: dict[tuple[int, int], float] = {}
        if name == "GradCAM":
            weight = dict.fromkeys(places, sum(float(g[k, i, j]) for i, j in places) / len(places))
        elif name == "GradCAMPlusPlus":
            w = 0.0
            for i, j in places:
                d = float(g[k, i, j])
                if d != 0:
                    w += max(d, 0.0) * d**2 / (2 * d**2 + total * d**3)
            weight = dict.fromkeys(places, w)
        elif name == "XGradCAM":
            share = sum(float(g[k, i, j] * maps[k, i, j]) for i, j in places)
            weight = dict.fromkeys(places, share / total if total else 0.0)
        else:
            weight = {(i, j): max(float(g[k, i, j]), 0.0) for i, j in places}
        for i, j in places:
            result[i, j] += weight[i, j] * float(maps[k, i, j])
    return result


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("name", CAMS)
def test_the_map_is_its_equation(name: str, relu: bool, x: Tensor) -> None:
    model = net()
    maps, g = maps_and_gradients(model, x, 1)
    expected = torch.stack([literal(name, *one) for one in zip(maps, g, strict=True)])[:, None]
    found = method(name)(model, relu=relu, upsample=False).attribute(x, 1)
    assert found.shape == (2, 1, 3, 4)
    assert torch.allclose(found, expected.relu() if relu else expected, rtol=0, atol=1e-14)
    assert expected.min() < -1e-4 < 1e-4 < expected.max() or name in ("GradCAMPlusPlus", "LayerCAM")
    full = method(name)(model, relu=relu).attribute(x, 1)
    enlarged = F.interpolate(found, (11, 13), mode="bilinear", align_corners=False)
    assert torch.allclose(full, enlarged, atol=1e-14)


def test_the_last_feature_map_is_the_default_and_any_layer_can_be_named(x: Tensor) -> None:
    model = net()
    cls = method("GradCAM")
    assert torch.equal(cls(model).attribute(x, 1), cls(model, layer="3").attribute(x, 1))
    assert torch.equal(cls(model).attribute(x, 1), cls(model, layer="4:input").attribute(x, 1))
    early = cls(model, layer="1", upsample=False).explain(x, 1)
    assert early.value.shape == (2, 1, 5, 6)
    assert list(early.values) == ["1"]
    assert torch.equal(early.scores, model(x)[:, 1].detach())
    assert (early.cost.forwards, early.cost.backwards) == (2, 2)


@pytest.mark.parametrize("name", CAMS)
def test_maps_are_equivariant_to_the_scale_of_the_score(name: str, x: Tensor) -> None:
    model, scaled = net(), net()
    with torch.no_grad():
        scaled[5].weight.mul_(3)
    a, b = (method(name)(m).attribute(x, 1) for m in (model, scaled))
    if name == "GradCAMPlusPlus":  # its weights are not linear in the gradient
        assert not torch.allclose(b, 3 * a, rtol=1e-3)
    else:
        assert torch.allclose(b, 3 * a, atol=1e-12)


def test_of_a_linear_head_on_pooled_maps_the_map_is_the_first_one_of_all() -> None:
    """CAM (Zhou et al. 2016): with global average pooling and a linear head, the weights are the head's row / (H W)."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    ).double()
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    maps = model[:2](x)
    expected = torch.einsum("k,nkij->nij", model[4].weight[2], maps)[:, None] / 16
    assert torch.allclose(method("GradCAM")(model, relu=False, upsample=False).attribute(x, 2), expected, atol=1e-14)
    assert torch.allclose(method("XGradCAM")(model, relu=False, upsample=False).attribute(x, 2), expected, atol=1e-14)
    total = method("GradCAM")(model, relu=False, upsample=False).attribute(x, 2).sum((1, 2, 3))
    assert torch.allclose(total, model(x)[:, 2] - model[4].bias[2], atol=1e-12)


def test_of_guided_grad_cam_every_entry_is_a_product(x: Tensor) -> None:
    model = net()
    found = method("GuidedGradCAM")(model).explain(x, 1)
    expected = method("GradCAM")(model).attribute(x, 1) * method("GuidedBackprop")(model).attribute(x, 1)
    assert found.value.shape == x.shape
    assert torch.equal(found.value, expected)
    assert (found.cost.forwards, found.cost.backwards) == (4, 4)
    with pytest.raises(InputError, match="upsample"):
        method("GuidedGradCAM")(model, upsample=False)


TARGETS = [
    Probability(1),
    Contrast(0, 2),
    TopK(2),
    Unit("2", channel=2, position=(1, 2)),
    lambda outputs: outputs[:, 0] ** 2,
    None,
]


@pytest.mark.parametrize("target", TARGETS, ids=["p", "contrast", "top", "unit", "function", "none"])
@pytest.mark.parametrize("name", [*CAMS, "GuidedGradCAM"])
def test_any_target_can_be_explained(name: str, target: Any, x: Tensor) -> None:
    explainer = method(name)(net(), layer="0")
    whole = explainer.explain(x, target)
    assert whole.value.abs().max() > 1e-6
    for n in range(2):
        assert torch.allclose(explainer.attribute(x[n : n + 1], target), whole.value[n : n + 1], atol=1e-14)


def test_a_contrast_is_a_difference_before_the_relu(x: Tensor) -> None:
    explainer = method("GradCAM")(net(), relu=False)
    a, b, c = (explainer.attribute(x, target) for target in (0, 2, Contrast(0, 2)))
    assert torch.allclose(c, a - b, atol=1e-14)


@pytest.mark.parametrize("name", CAMS)
def test_maps_of_zeros_and_of_negative_values_give_numbers(name: str) -> None:
    class Given(nn.Module):
        def forward(self, a: Tensor) -> Tensor:
            return F.hardtanh(a, -9, 9).flatten(1).sum(1, keepdim=True)

    values = torch.stack(
        [
            torch.zeros(2, 3, 3),
            -torch.ones(2, 3, 3),
            torch.full((2, 3, 3), -2 / 9),
            torch.tensor([1.0, -1.0, 0.0]).expand(2, 3, 3),
        ]
    ).double()  # the third: 2 + sum(A) g = 0; the last: sum(A) = 0
    for relu in (True, False):
        found = method(name)(Given(), relu=relu).attribute(values, 0)
        assert torch.isfinite(found).all()
        assert found[0].abs().max() == 0
        if relu and name != "GradCAMPlusPlus":  # whose alpha is negative where sum(A) g < -2
            assert found[1].abs().max() == 0
    assert method("GradCAM")(Given(), relu=False).attribute(values, 0)[1].max() == -2


@pytest.mark.parametrize("scale", [1e-12, 1e-25])
def test_small_gradients_do_not_underflow(scale: float, x: Tensor) -> None:
    """g^2 of 1e-25 is 0 in single precision; the closed form of alpha is 1/2 there."""
    model = net().float()
    with torch.no_grad():
        model[5].weight.mul_(scale)
    maps, g = maps_and_gradients(model, x.float(), 1)
    expected = (0.5 * g.relu().sum((2, 3), keepdim=True) * maps).sum(1, keepdim=True)
    found = method("GradCAMPlusPlus")(model, upsample=False).attribute(x.float(), 1)
    assert torch.allclose(found / scale, expected / scale, rtol=1e-5)
    assert found.max() > 0


@pytest.mark.parametrize("name", [*CAMS, "GuidedGradCAM"])
def test_a_map_can_be_differentiated_in_the_input(name: str, x: Tensor) -> None:
    model = net(nn.Softplus)
    x = x[:1].clone().requires_grad_()
    direction = torch.randn(x.shape, dtype=torch.float64)

    def size(at: Tensor) -> Tensor:
        return (method(name)(model).attribute(at, 1, create_graph=True) ** 2).sum()

    (gradient,) = torch.autograd.grad(size(x), x)
    step = 1e-5
    slope = (size((x + step * direction).detach()) - size((x - step * direction).detach())) / (2 * step)
    assert float((gradient * direction).sum().detach()) == pytest.approx(float(slope.detach()), rel=1e-6)


class Tokens(nn.Module):
    """A class token, further prefix tokens, and a grid of patches; attention mixes them, the class token is read."""

    def __init__(self, prefix: int = 1, by_hand: bool = False) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.patch = nn.Conv2d(3, 8, 4, 4)
        self.prefix = nn.Parameter(torch.randn(1, prefix, 8))
        self.norm, self.attention, self.head = nn.LayerNorm(8), nn.Linear(8, 24), nn.Linear(8, 3)
        self.after, self.by_hand = nn.Identity(), by_hand
        self.bias = nn.Parameter(torch.randn(1))

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patch(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.prefix.expand(len(x), -1, -1), tokens], 1)
        q, k, v = self.attention(self.norm(tokens))[:, None].chunk(3, -1)
        if self.by_hand:
            mixed = (q @ k.transpose(-1, -2) / math.sqrt(8) + self.bias).softmax(-1) @ v
        else:
            mixed = F.scaled_dot_product_attention(q, k, v)
        return self.head(self.after(tokens + mixed[:, 0])[:, 0])


@pytest.mark.parametrize("prefix", [1, 2, 5])
@pytest.mark.parametrize(("size", "grid"), [((16, 16), (4, 4)), ((16, 24), (4, 6)), ((20, 12), (5, 3))])
def test_tokens_are_laid_out_on_their_grid(prefix: int, size: tuple[int, int], grid: tuple[int, int]) -> None:
    model = Tokens(prefix).double()
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    tokens = torch.cat([model.prefix.expand(2, -1, -1), model.patch(x).flatten(2).transpose(1, 2)], 1)
    value = model.norm(tokens).detach().requires_grad_()
    q, k, v = model.attention(value)[:, None].chunk(3, -1)
    score = model.head((tokens.detach() + F.scaled_dot_product_attention(q, k, v)[:, 0])[:, 0])[:, 1]
    (g,) = torch.autograd.grad(score.sum(), value)
    weights = g[:, prefix:].mean(1)
    expected = torch.einsum("nd,nld->nl", weights, value[:, prefix:]).reshape(2, 1, *grid).relu()
    for settings in ({}, {"grid": grid}):
        found = method("GradCAM")(model, layer="norm", upsample=False, **settings).attribute(x, 1)
        assert torch.allclose(found, expected, atol=1e-14)
    assert expected.max() > 1e-5
    assert method("GradCAM")(model, layer="norm").attribute(x, 1).shape == (2, 1, *size)


def test_tokens_without_a_grid_are_refused() -> None:
    model = Tokens(18).double()
    x = torch.randn(1, 3, 16, 16, dtype=torch.float64)
    with pytest.raises(SiteError, match=r"34 tokens .* give grid=\(h, w\)"):
        method("GradCAM")(model, layer="norm").attribute(x, 1)
    with pytest.raises(SiteError, match="34 tokens do not lie on a grid of 6x6"):
        method("GradCAM")(model, layer="norm", grid=(6, 6)).attribute(x, 1)
    assert method("GradCAM")(model, layer="norm", grid=(4, 4), upsample=False).attribute(x, 1).shape == (1, 1, 4, 4)


@pytest.mark.parametrize("by_hand", [False, True])
def test_a_network_without_feature_maps_needs_a_layer(by_hand: bool) -> None:
    """Attention logits plus a bias are `[N, heads, L, L]`, which is no feature map."""
    x = torch.randn(1, 3, 16, 16, dtype=torch.float64)
    with pytest.raises(SiteError, match="name a layer"):
        method("GradCAM")(Tokens(by_hand=by_hand).double()).attribute(x, 1)


def test_a_layer_that_speaks_through_its_class_token_only_is_refused() -> None:
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    with pytest.raises(SiteError, match="prefix tokens only"):
        method("GradCAM")(Tokens().double(), layer="after").attribute(x, 1)


class ChannelsLast(nn.Module):
    """Maps `[N, H, W, C]` inside, as in Swin."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.conv, self.mix, self.head = (
            nn.Conv2d(3, channels, 4, 4),
            nn.Linear(channels, channels),
            nn.Linear(channels, 3),
        )
        self.turned = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.gelu(self.mix(self.turned(self.conv(x).permute(0, 2, 3, 1)))).mean((1, 2)))


@pytest.mark.parametrize(("size", "channels"), [((16, 16), 7), ((16, 24), 7), ((16, 24), 4), ((24, 16), 6)])
def test_channels_may_be_last(size: tuple[int, int], channels: int) -> None:
    model = ChannelsLast(channels).double()
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    cls = method("GradCAM")
    first = cls(model, layer="conv", upsample=False).attribute(x, 1)
    assert first.shape == (2, 1, size[0] // 4, size[1] // 4)
    assert torch.allclose(cls(model, layer="turned", upsample=False).attribute(x, 1), first, atol=1e-14)
    last = cls(model, upsample=False).attribute(x, 1)  # the result of the GELU
    assert last.shape == first.shape
    assert torch.equal(last, cls(model, upsample=False, channels_last=True).attribute(x, 1))


def test_where_both_readings_fit_channels_are_first_unless_told() -> None:
    model, x = ChannelsLast(4).double(), torch.randn(1, 3, 16, 16, dtype=torch.float64)
    cls = method("GradCAM")
    first = cls(model, layer="conv", upsample=False).attribute(x, 1)
    assert torch.allclose(
        cls(model, layer="turned", upsample=False, channels_last=True).attribute(x, 1), first, atol=1e-14
    )
    assert not torch.allclose(cls(model, layer="turned", upsample=False).attribute(x, 1), first, atol=1e-3)


def test_signals_and_volumes_have_maps_too() -> None:
    signal = nn.Sequential(nn.Conv1d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3)).double()
    assert method("GradCAM")(signal, layer="1").attribute(torch.randn(2, 2, 10).double(), 1).shape == (2, 1, 10)
    volume = nn.Sequential(nn.Conv3d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(108, 3)).double()
    assert method("LayerCAM")(volume).attribute(torch.randn(2, 1, 5, 5, 5).double(), 1).shape == (2, 1, 5, 5, 5)


@pytest.mark.parametrize("size", [(7, 7), (7, 9), (2, 1)])
def test_a_map_of_one_channel_is_drawn_as_it_is(size: tuple[int, int]) -> None:
    pytest.importorskip("matplotlib")
    from backlight.viz.figures import signed_map

    values = torch.rand(1, *size)
    drawn, scale = signed_map(values, clip=1.0)
    assert torch.allclose(torch.from_numpy(drawn) * scale, values[0])


@pytest.mark.parametrize("name", [*CAMS, "GuidedGradCAM"])
def test_what_cannot_be_read_is_named(name: str, x: Tensor) -> None:
    cls = method(name)
    with pytest.raises(SiteError, match=f"{name}\\(model, layer='3'\\)"):
        cls(net()).attribute(x, 1, sites="3")
    with pytest.raises(UnknownNameError, match="layer 'conv9'"):
        cls(net(), layer="conv9").attribute(x, 1)
    with pytest.raises(SiteError, match=r"gives \[2, 3\]"):
        cls(net(), layer="5").attribute(x, 1)
    with pytest.raises(InputError, match=r"\[N, C, H, W\]"):
        cls(nn.Linear(4, 3)).attribute(torch.randn(2, 4), 1)


def test_a_reused_layer_needs_the_number_of_its_call() -> None:
    model, x = spelled("one shared ReLU"), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    with pytest.raises(SiteError, match="'shared#0'"):
        method("GradCAM")(model, layer="shared").attribute(x, 1)
    found = method("GradCAM")(model, layer="shared#1").attribute(x, 1)
    assert torch.equal(found, method("GradCAM")(model).attribute(x, 1))
