"""Attributors of latents: against a network written out by hand, linear closed forms, and SRD's operator."""

from __future__ import annotations

import math
import sys
from dataclasses import fields
from typing import Any

import pytest
import torch
from explicit_rules import drawn, relative
from routed_network import dictionary_of, drawn_dictionary
from torch import Tensor, nn
from torch.nn import functional as F

from backlight.concepts.attributors import ATTRIBUTORS, attributor, cell_numbers, in_cells
from backlight.concepts.cafe import Cafe
from backlight.engine import attribute, captured
from backlight.errors import InputError, MissingExtraError, SiteError, UnknownNameError
from backlight.methods.srd import SRD
from backlight.rules import soft_pullback

timm = pytest.importorskip("timm")


def vit() -> Any:
    made = timm.create_model(
        "vit_tiny_patch16_224", pretrained=False, img_size=24, patch_size=8, depth=2, num_classes=5, embed_dim=12,
        num_heads=3,
    )  # fmt: skip
    return drawn(made)


def images(count: int = 1) -> Tensor:
    return torch.randn(count, 3, 24, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def part_of_gradient(x: Tensor, share: float) -> Tensor:
    return x * share + (x * (1 - share)).detach()


def by_hand(model: Any, tokens: Tensor, kind: str) -> Tensor:
    """Blocks of a ViT in plain torch, in which what a method holds is detached: `[L, D]` to `[L, D]`."""

    def norm(layer: nn.LayerNorm, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        deviation = (centred.square().mean(-1, keepdim=True) + layer.eps).sqrt()
        return centred / (deviation if kind == "gradient" else deviation.detach()) * layer.weight + layer.bias

    for block in model.blocks:
        length, width = tokens.shape
        heads = block.attn.num_heads
        packed = block.attn.qkv(norm(block.norm1, tokens)).reshape(length, 3, heads, width // heads)
        q, k, v = packed.permute(1, 2, 0, 3)
        if kind == "attn_lrp":
            q, k, v = part_of_gradient(q, 1 / 4), part_of_gradient(k, 1 / 4), part_of_gradient(v, 1 / 2)
        if kind == "cp_lrp":
            q, k = q.detach(), k.detach()
        weights = (q @ k.mT / math.sqrt(width // heads)).softmax(-1)
        tokens = tokens + block.attn.proj((weights @ v).transpose(0, 1).reshape(length, width))
        z = block.mlp.fc1(norm(block.norm2, tokens))
        tokens = tokens + block.mlp.fc2(F.gelu(z) if kind == "gradient" else z * (F.gelu(z) / z).detach())
    return tokens


@pytest.mark.parametrize(
    ("name", "kind", "power"),
    [
        ("AttnLRP", "attn_lrp", 1),
        ("CPLRP", "cp_lrp", 1),
        ("GradientTimesInput", "gradient", 1),
        ("Gradient", "gradient", 0),
    ],
)
def test_equal_to_autograd_of_the_modified_network(name: str, kind: str, power: int) -> None:
    model, x = vit(), images()
    dictionary = drawn_dictionary(12, k=3)
    with torch.no_grad(), captured(model, ["norm_pre:input"]) as store:
        model(x)
    tokens = store["norm_pre:input"][0].clone().requires_grad_()
    codes = dictionary.encode(by_hand(model, tokens, kind).detach())
    token, latent = divmod(int(codes.argmax()), codes.shape[1])
    z = by_hand(model, tokens, kind)[token] @ dictionary.state["encoder"][latent]
    (gradient,) = torch.autograd.grad(z, tokens)
    product = (gradient * tokens.detach() ** power)[1:]
    how = attributor(name)
    for readout, expected in (("norm", product.norm(dim=-1)), ("signed", product.sum(-1))):
        how.readout = readout
        found = how.scores(model, "blocks.1", dictionary, x, latent, token)
        assert relative(found.flatten(), expected) < 1e-9, readout


def test_soft_pullback_and_pixels_are_value_times_cotangent() -> None:
    model, x, dictionary = vit(), images(), drawn_dictionary(12, k=3)
    found = Cafe(model, dictionary, "blocks.1", attributor=attributor("SoftPullback", level="pixels"))
    fields_ = found.explain(x, 2, tokens=4, pixels=True)
    from backlight.concepts.latent_units import LatentUnit

    whole = attribute(model, x, LatentUnit("blocks.1", dictionary, 2, 4), rules=soft_pullback(), readout="value").value
    assert relative(fields_.pixels, whole) < 1e-12
    cells = whole[0].unfold(1, 8, 8).unfold(2, 8, 8).permute(1, 2, 0, 3, 4).flatten(2)
    assert relative(fields_.map[0], cells.norm(dim=-1)) < 1e-12
    assert relative(fields_.patches.signed[0], cells.sum(-1)) < 1e-12


def test_integrated_gradients_sum_to_the_difference_from_the_blank_picture() -> None:
    model, x, dictionary = vit(), images(), drawn_dictionary(12, bias=1e3)  # always on: z has no jumps
    for level, baseline in (("tokens", None), ("tokens", "mean"), ("pixels", None), ("pixels", "blur")):
        how = attributor("IntegratedGradients", n_steps=160, baseline=baseline, level=level)
        found = Cafe(model, dictionary, "blocks.1", attributor=how).explain(x, 1)
        assert found.residual is not None
        assert abs(float(found.residual[0])) < 1e-4 * float(found.patches.signed.abs().sum()), (baseline, level)


class Linear(nn.Module):
    """Patches of 4 x 4 pixels, mixed linearly over positions: every attributor of changes has a closed form."""

    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, 5, 4, 4)
        self.mix = nn.Linear(9, 9)
        self.after = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.mix(self.patch_embed(x).flatten(2)).mT).mean(1)


@pytest.mark.parametrize("level", ["tokens", "pixels"])
@pytest.mark.parametrize("name", ["KernelSHAP", "IntegratedGradients"])
def test_exact_on_a_linear_network(name: str, level: str) -> None:
    torch.manual_seed(1)
    model, dictionary = Linear().double(), drawn_dictionary(5, bias=1e3)
    model.blocks = nn.ModuleList([nn.Identity()])
    x = torch.randn(1, 3, 12, 12, dtype=torch.float64)
    settings = {"n_samples": 200} if name == "KernelSHAP" else {"n_steps": 3}

    class Known(nn.Module):  # timm's names
        def __init__(self) -> None:
            super().__init__()
            self.patch_embed, self.blocks, self.inner = model.patch_embed, nn.ModuleList([nn.Identity()]), model

        def forward(self, x: Tensor) -> Tensor:
            tokens = self.blocks[0](self.patch_embed(x).flatten(2).mT)
            return self.inner.after(self.inner.mix(tokens.mT).mT).mean(1)

    network = Known()
    how = attributor(name, level=level, readout="signed", **settings)
    found = how.scores(network, "inner.after", dictionary, x, latent=1, token=4)
    row = dictionary.state["encoder"][1]
    content = model.patch_embed(x).detach() - (model.patch_embed.bias[:, None, None] if level == "pixels" else 0)
    expected = torch.einsum("d,dp,p->p", row, content[0].flatten(1), model.mix.weight[4]).detach()
    assert relative(found.flatten().double(), expected) < (1e-3 if name == "KernelSHAP" else 1e-9)


def test_shapley_values_of_blocks_are_shared_equally_and_checked() -> None:
    model, x, dictionary = vit(), images(), drawn_dictionary(12, bias=1e3)
    found = attributor("KernelSHAP", block=2, n_samples=40).scores(model, "blocks.0", dictionary, x, 0, 3)
    assert found[0, 0] == found[1, 1]
    assert found[0, 0] == found[0, 1]
    assert found[0, 0] != found[0, 2]
    with pytest.raises(InputError, match="10 samples do not determine 9 features"):
        attributor("KernelSHAP", n_samples=10).scores(model, "blocks.0", dictionary, x, 0, 3)


def test_without_captum_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    with pytest.raises(MissingExtraError, match=r"backlight\[baselines\]"):
        attributor("KernelSHAP", n_samples=40).scores(vit(), "blocks.0", drawn_dictionary(12), images(), 0, 3)


class Convolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 5, 3, stride=2, padding=1)
        self.relu1, self.relu2, self.fc = nn.ReLU(), nn.ReLU(), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.relu2(self.second(self.relu1(self.first(x)))).mean((2, 3)))


def network() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(4)
    return Convolutions().double().eval(), torch.randn(2, 3, 12, 12, dtype=torch.float64)


@pytest.mark.parametrize("site", ["relu1", "relu2"])
def test_srd_is_the_field_of_the_position_times_z(site: str) -> None:
    model, x = network()
    dictionary = drawn_dictionary(6 if site == "relu1" else 5, bias=1.0)
    found = Cafe(model, dictionary, site, attributor="SRD").explain(x, [3, 1], pixels=True)
    assert found.pixels is not None
    assert (found.z > 0).all()
    for image in range(2):
        operator = SRD(model).prepare(x[image : image + 1])
        field = operator.ierf(site, [int(found.tokens[image])])[0, 0]
        assert relative(found.pixels[image].sum(0), found.z[image] * field) < 1e-12
        assert float(found.patches.signed[image].sum()) == pytest.approx(float(found.z[image]), rel=1e-9)
    assert found.residual is not None
    assert found.residual.abs().max() < 1e-9


def test_srd_of_a_sum_is_the_field_of_the_encoder_row() -> None:
    """With a linear encoder, z_k(i) = <w_k, h_i>: the mean field that the sharing operator knows, times the sum."""
    model, x = network()
    rows = torch.rand(3, 5, dtype=torch.float64) + 0.1  # on wherever the layer is
    cafe = Cafe(model, dictionary_of(rows), "relu2", attributor="SRD", token="sum")
    found = cafe.explain(x[:1], [0, 1, 2], pixels=True)
    operator = SRD(model).prepare(x[:1])
    assert found.pixels is not None
    for latent in range(3):
        expected = operator.ierf("relu2", direction=rows[latent])[0, 0] * found.z[latent]
        assert relative(found.pixels[latent].sum(0), expected) < 1e-12


def test_rules_reach_the_pixels_of_convolutional_networks() -> None:
    """Without biases, the gradient of a ReLU network times its input sums to z."""
    model, x = network()
    nn.init.zeros_(model.first.bias)
    nn.init.zeros_(model.second.bias)
    dictionary = drawn_dictionary(5)
    for name in ("AttnLRP", "GradientTimesInput", "IntegratedGradients"):
        found = Cafe(model, dictionary, "relu2", attributor=name).explain(x, 0)
        assert found.map.shape == (2, 6, 6)
        assert torch.allclose(found.patches.signed.sum((1, 2)), found.z, rtol=2e-2)


def test_activations_and_random_orders_are_rankings_of_patches() -> None:
    model, x, dictionary = vit(), images(2), drawn_dictionary(12, k=2)
    found = Cafe(model, dictionary, "blocks.1", attributor="ActivationRanking").explain(x, [1, 5])
    assert torch.equal(found.map, found.activation)
    random = attributor("Random")
    first = random.scores(model, "blocks.1", dictionary, x[:1], 1, 2)
    assert torch.equal(first, random.scores(model, "blocks.1", dictionary, x[:1], 1, 2))
    for other in ((x[1:], 1, 2), (x[:1], 2, 2), (x[:1], 1, 3)):
        assert not torch.equal(first, random.scores(model, "blocks.1", dictionary, *other))
    assert not torch.equal(first, attributor("Random", seed=1).scores(model, "blocks.1", dictionary, x[:1], 1, 2))


def test_cells_part_the_input() -> None:
    numbers = cell_numbers((7, 9), (3, 4))
    assert numbers.unique().tolist() == list(range(12))
    assert numbers[0, 0] == 0
    assert numbers[-1, -1] == 11
    values = torch.randn(2, 3, 7, 9, dtype=torch.float64)
    found = in_cells(values, (3, 4))
    assert torch.allclose(found.signed.sum((1, 2)), values.sum((1, 2, 3)))
    assert torch.allclose(found.norm.square().sum((1, 2)), values.square().sum((1, 2, 3)))
    with pytest.raises(InputError, match="a grid of"):
        cell_numbers((2, 9), (3, 4))


def test_every_attributor_says_where_it_comes_from() -> None:
    for name in ATTRIBUTORS:
        made = attributor(name.lower())
        assert type(made).__name__ == name
        assert made.source
        assert made.formula
        assert {one.name for one in fields(made)} >= {"level", "readout", "internal_batch_size"}
    with pytest.raises(UnknownNameError, match="level"):
        attributor("AttnLRP", level="token")
    with pytest.raises(InputError, match="internal_batch_size"):
        attributor("AttnLRP", internal_batch_size=0)
    with pytest.raises(SiteError, match="not to tokens"):
        attributor("SRD", level="tokens").scores(*network_call())


def network_call() -> tuple[Any, ...]:
    model, x = network()
    return model, "relu2", drawn_dictionary(5), x[:1], 0, 0
