"""Effective fields of tokens, against the explicit rules; where they are read in each family; what they refuse."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from explicit_rules import drawn, relative, through_block
from torch import Tensor, nn

import backlight
from backlight.data import sample_image
from backlight.engine import RuleSet, attribute, captured
from backlight.errors import BacklightError, InputError, SiteError, TargetError, UnknownNameError
from backlight.methods.token_fields import TokenFields, TokenUnit
from backlight.methods.token_layout import TokenLayout
from backlight.models import LoadedModel
from backlight.rules import attn_lrp, cp_lrp

assert backlight  # before torchvision
timm = pytest.importorskip("timm")
torchvision = pytest.importorskip("torchvision")
transformers = pytest.importorskip("transformers")

NAMES = {"qkv": "attn.qkv", "proj": "attn.proj", "fc1": "mlp.fc1", "fc2": "mlp.fc2"}
HF = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}


def of_timm(name: str, **settings: Any) -> Any:
    return timm.create_model(name, pretrained=False, img_size=32, patch_size=8, depth=2, num_classes=5, **settings)


def vit(**settings: Any) -> Any:
    return drawn(of_timm("vit_tiny_patch16_224", embed_dim=12, num_heads=3, **settings))


def images(count: int = 1, height: int = 32, width: int = 32) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(count, 3, height, width, dtype=torch.float64, generator=generator)


class OpenCLIPLike(nn.Module):
    """The order of operations of CLIP's own vision tower: a normalisation between the embedding and the blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 8, 8, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(8))
        self.positional_embedding = nn.Parameter(torch.randn(17, 8))
        self.ln_pre, self.ln_post, self.fc = nn.LayerNorm(8), nn.LayerNorm(8), nn.Linear(8, 8)
        self.transformer = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x).flatten(2).transpose(1, 2)
        first = self.class_embedding.expand(len(x), 1, -1)
        x = self.ln_pre(torch.cat((first, x), 1) + self.positional_embedding)
        x = x + self.transformer(x, x, x, need_weights=False)[0]
        return self.ln_post(self.fc(x))[:, 0]


# name -> (network, a site with tokens, number of prefix tokens)
FAMILIES: dict[str, tuple[Callable[[], nn.Module], str, int]] = {
    "vit (timm)": (lambda: of_timm("vit_tiny_patch16_224"), "blocks.1", 1),
    "distilled deit (timm)": (lambda: of_timm("deit_tiny_distilled_patch16_224"), "blocks.0", 2),
    "dinov2 with registers (timm)": (lambda: of_timm("vit_small_patch14_reg4_dinov2"), "blocks.1", 5),
    "no class token (timm)": (
        lambda: of_timm("vit_tiny_patch16_224", class_token=False, global_pool="avg"), "blocks.1", 0
    ),
    "dynamic size (timm)": (lambda: of_timm("vit_tiny_patch16_224", dynamic_img_size=True), "blocks.1", 1),
    "clip (timm)": (lambda: of_timm("vit_base_patch16_clip_224", embed_dim=24, num_heads=2), "blocks.1", 1),
    "beit (timm)": (lambda: of_timm("beit_base_patch16_224", embed_dim=24, num_heads=2), "blocks.1", 1),
    "vit (torchvision)": (
        lambda: torchvision.models.VisionTransformer(32, 8, 2, 2, 24, 48, num_classes=5),
        "encoder.layers.encoder_layer_1", 1,
    ),
    "vit (hf)": (
        lambda: transformers.ViTForImageClassification(transformers.ViTConfig(**HF, intermediate_size=32)),
        "vit.layers.1", 1,
    ),
    "clip (hf)": (
        lambda: transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**HF, intermediate_size=32)),
        "encoder.layers.1", 1,
    ),
    "dinov2 with registers (hf)": (
        lambda: transformers.Dinov2WithRegistersModel(transformers.Dinov2WithRegistersConfig(**HF)),
        "encoder.layer.1", 5,
    ),
    "openclip": (OpenCLIPLike, "fc", 1),
}  # fmt: skip


@pytest.mark.parametrize("name", FAMILIES)
def test_the_sites_of_a_family_are_found(name: str) -> None:
    make, site, prefix = FAMILIES[name]
    model, x = drawn(make()), images()
    explainer = TokenFields(model, rules=cp_lrp())
    assert explainer.layout(x) == TokenLayout(4, 4, prefix)
    found = explainer.of(x, site, [prefix, -1], pixels=True)
    assert found.coverage.uncovered == ()
    assert found.patches.norm.shape == found.position.signed.shape == found.shares.shape == (2, 4, 4)
    assert found.prefix.norm.shape == (2, prefix)
    assert found.pixels is not None
    assert found.pixels.shape == (2, 3, 32, 32)
    assert torch.allclose(found.shares.sum((1, 2)), torch.ones(2, dtype=torch.float64))
    assert torch.allclose(torch.stack(list(found.absorbed.values())).sum(0), torch.ones(2, dtype=torch.float64))
    with torch.no_grad(), captured(model, [site]) as store:
        model(x)
    assert torch.allclose(found.scores, store[site][0, [prefix, -1]].norm(dim=-1))


def test_a_token_s_field_is_that_of_the_explicit_rules() -> None:
    """Two blocks, down to content, position embedding and class token: channel 7 of token 5 after block 1."""
    model, x = vit(), images()
    with torch.no_grad():
        content = model.patch_embed(x)[0]
        tokens = torch.cat((model.cls_token[0], content))
        states = [tokens + model.pos_embed[0]]
        for block in model.blocks:
            states.append(block(states[-1][None])[0])
        relevance = torch.zeros_like(states[2])
        relevance[5, 7] = states[2][5, 7]
        for block, state in ((model.blocks[1], states[1]), (model.blocks[0], states[0])):
            relevance = through_block(block, state, relevance, NAMES)
    found = TokenFields(model).of(x, "blocks.1", 5, channel=7)
    part = relevance * tokens / states[0]
    assert found.scores.item() == pytest.approx(states[2][5, 7].item())
    assert relative(found.patches.norm.flatten(), part[1:].norm(dim=1)) < 1e-9
    assert relative(found.patches.signed.flatten(), part[1:].sum(1)) < 1e-9
    assert relative(found.position.norm.flatten(), (relevance - part)[1:].norm(dim=1)) < 1e-9
    assert relative(found.position.signed.flatten(), (relevance - part)[1:].sum(1)) < 1e-9
    assert relative(found.sequence.norm.flatten(), relevance[1:].norm(dim=1)) < 1e-9
    assert relative(found.prefix.norm[0], relevance[0].norm()) < 1e-9
    assert relative(found.prefix.signed[0], relevance[0].sum()) < 1e-9


def test_a_token_s_own_direction_is_held() -> None:
    model, x = vit(), images()
    with torch.no_grad(), captured(model, ["blocks.1"]) as store:
        model(x)
    own = store["blocks.1"][0, 4]
    explainer = TokenFields(model)
    norm = explainer.of(x, "blocks.1", 4)
    along = explainer.of(x, "blocks.1", 4, direction=own / own.norm())
    assert relative(norm.patches.signed, along.patches.signed) < 1e-12
    assert norm.scores.item() == pytest.approx(own.norm().item())
    twice = explainer.of(x, "blocks.1", 4, direction=2 * own / own.norm())
    assert relative(twice.patches.norm, 2 * along.patches.norm) < 1e-12
    assert relative(twice.shares, along.shares) < 1e-12


def test_channels_are_directions() -> None:
    model, x = vit(), images()
    explainer = TokenFields(model)
    by_channel = explainer.of(x, "blocks.0", [2, 2, 9], channel=[1, 3, 3])
    by_direction = explainer.of(x, "blocks.0", [2, 2, 9], direction=torch.eye(12, dtype=torch.float64)[[1, 3, 3]])
    assert relative(by_channel.patches.norm, by_direction.patches.norm) < 1e-12
    assert torch.allclose(by_channel.scores, by_direction.scores)
    assert not torch.allclose(by_channel.shares[0], by_channel.shares[1], atol=1e-3)


def test_without_biases_and_with_held_weights_everything_sums_to_the_score() -> None:
    model = vit()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
    found = TokenFields(model, rules=cp_lrp()).of(images(), "blocks.1", [0, 1, 16], pixels=True)
    content, position = found.patches.signed.sum((1, 2)), found.position.signed.sum((1, 2))
    assert torch.allclose(content + position + found.prefix.signed.sum(1), found.scores, rtol=1e-12)
    assert torch.allclose(found.sequence.signed, found.patches.signed + found.position.signed)
    assert found.pixels is not None
    assert torch.allclose(found.pixels.sum((1, 2, 3)), content, rtol=1e-12)  # a patch embedding without bias
    plain = TokenFields(model).of(images(), "blocks.1", [0, 1, 16])
    whole = plain.sequence.signed.sum((1, 2)) + plain.prefix.signed.sum(1)
    assert ((whole - plain.scores).abs() > 0.02 * plain.scores).any()  # AttnLRP's do not
    norms = plain.sequence.norm.sum((1, 2)) + plain.prefix.norm.sum(1)
    assert ((norms - plain.scores).abs() > 0.02 * plain.scores).all()  # and norms sum to nothing


def test_tokens_that_do_not_mix_are_their_own_field() -> None:
    model = vit()
    with torch.no_grad():
        for block in model.blocks:
            block.attn.proj.weight.zero_()
    layout = TokenFields(model).layout(images())
    patches = [(0, 0), (1, 3), (3, 2)]
    found = TokenFields(model).of(images(), "blocks.1", [layout.token(*patch) for patch in patches])
    for share, patch in zip(found.shares, patches, strict=True):
        assert share[patch] == 1
    assert not found.prefix.norm.any()
    of_class = TokenFields(model).of(images(), "blocks.1", 0)
    assert of_class.absorbed["class"].item() == 1
    assert not of_class.shares.any()  # no NaN where patches have no part


def test_a_batch_of_tokens_is_each_of_them() -> None:
    model, x = vit(), images(3)
    explainer = TokenFields(model)
    tokens = [1, 7, 7]
    of_three = explainer.of(x, "blocks.1", tokens, pixels=True)
    for size in (1, 2):
        parts = explainer.of(x, "blocks.1", tokens, pixels=True, internal_batch_size=size)
        assert torch.allclose(parts.shares, of_three.shares, atol=1e-12)
        assert torch.allclose(parts.pixels, of_three.pixels, atol=1e-12)
        assert parts.cost.backwards == parts.cost.forwards == 3
        assert parts.coverage.calls("attention") == 2 * -(-3 // size)
    for n, token in enumerate(tokens):
        alone = explainer.of(x[n : n + 1], "blocks.1", token)
        assert torch.allclose(alone.patches.norm[0], of_three.patches.norm[n], atol=1e-12)
    of_one = explainer.of(x[:1], "blocks.1", tokens)
    assert torch.allclose(of_one.patches.norm[0], of_three.patches.norm[0], atol=1e-12)
    assert torch.allclose(of_one.patches.norm[1], of_one.patches.norm[2], atol=1e-12)
    assert not torch.allclose(of_one.shares[2], of_three.shares[2], atol=1e-3)


def test_any_target_has_a_field() -> None:
    """A class; and a sparse code's latent, whose gate is the step at its threshold."""
    model, x = vit(), images(2)
    found = TokenFields(model).explain(x, [1, 3], pixels=True)
    expected = attribute(model, x, [1, 3], rules=attn_lrp(), sites=("input", "patch_embed"), readout="value")
    assert found.pixels is not None
    assert relative(found.pixels, expected.values["input"]) < 1e-12
    assert relative(found.patches.norm.flatten(1), expected.values["patch_embed"].norm(dim=2)) < 1e-12
    assert torch.allclose(found.scores, expected.scores)

    class Latent(TokenUnit):
        def score(self, outputs: Any, hidden: Any) -> Tensor:
            return (super().score(outputs, hidden) - 0.1).relu()

    encoder = torch.randn(1, 12, dtype=torch.float64)
    latent = TokenFields(model).explain(x, Latent("blocks.0", torch.tensor([3, 4]), None, encoder))
    linear = TokenFields(model).of(x, "blocks.0", [3, 4], direction=encoder[0])
    active = (linear.scores > 0.1)[:, None, None]
    assert torch.allclose(latent.patches.norm, linear.patches.norm * active, atol=1e-12)


def test_tokens_are_scored_by_their_norm_and_their_sum() -> None:
    model, x = vit(), images()
    value = attribute(model, x, 1, rules=attn_lrp(), sites="blocks.1", readout="value").value
    for readout, expected in (("token_norm", value.square().sum(-1).sqrt()), ("token_sum", value.sum(-1))):
        found = attribute(model, x, 1, rules=attn_lrp(), sites="blocks.1", readout=readout).value
        assert found.shape == (1, 17)
        assert torch.allclose(found, expected, atol=1e-14)
    with pytest.raises(SiteError, match=r"\[1, 3, 32, 32\] does not hold tokens"):
        attribute(model, x, 1, readout="token_norm")


def test_a_grid_that_is_no_square() -> None:
    model = drawn(of_timm("vit_tiny_patch16_224", embed_dim=12, num_heads=3, dynamic_img_size=True))
    found = TokenFields(model).of(images(1, 16, 48), "blocks.0", [1])
    assert found.layout == TokenLayout(2, 6, 1)
    assert found.layout.token(1, 2) == 9
    with pytest.raises(InputError, match=r"patch \(2, 0\) is outside the grid of 2 x 6"):
        found.layout.token(2, 0)


class Flat(nn.Module):
    """Tokens of bands, which are no squares."""

    def __init__(self, scaled: float = 1.0) -> None:
        super().__init__()
        self.embed, self.block, self.scaled = nn.Linear(3 * 32 * 2, 6), nn.Linear(6, 6), scaled

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.embed(x.reshape(len(x), 16, -1))
        return self.block(tokens * self.scaled).sum(1)


def test_a_model_of_no_family_says_where_its_tokens_are() -> None:
    model, x = Flat().double(), images()
    with pytest.raises(SiteError, match="Flat is of no family"):
        TokenFields(model).of(x, "block", 0)
    assert TokenFields(model, patches="embed", sequence=None).layout(x) == TokenLayout(4, 4, 0)  # squares, by count
    banded = TokenFields(model, patches="embed", sequence="block:input", grid=(16, 1))
    found = banded.of(x, "block", 3, channel=2)
    assert found.layout == TokenLayout(16, 1, 0)
    assert found.shares[0, 3, 0] == 1
    assert not found.position.norm.any()
    with pytest.raises(InputError, match="a grid of 5 x 3 for 16 patch tokens"):
        TokenFields(model, patches="embed", sequence=None, grid=(5, 3)).of(x, "block", 0)
    with pytest.raises(InputError, match=r"no grid of squares on an input of \[4, 256\]: pass grid=\(h, w\)"):
        TokenFields(model, patches="embed", sequence=None).of(images(1, 4, 256), "block", 0)
    with pytest.raises(UnknownNameError, match="embed"):
        TokenFields(model, patches="embd").of(x, "block", 0)
    with pytest.raises(SiteError, match="more than a sum with a constant"):
        TokenFields(Flat(2.0).double(), patches="embed", sequence="block:input").of(x, "block", 3)


def test_what_does_not_fit_is_named() -> None:
    explainer, x = TokenFields(vit()), images()
    with pytest.raises(TargetError, match=r"token .*17.* is out of range: site 'blocks.1' has 17 tokens"):
        explainer.of(x, "blocks.1", [3, 17])
    with pytest.raises(TargetError, match="out of range"):
        explainer.of(x, "blocks.1", -18)
    with pytest.raises(TargetError, match="out of range"):
        explainer.of(x, "blocks.1", 0, channel=12)
    with pytest.raises(TargetError, match=r"directions \[1, 5\] for tokens of width 12"):
        explainer.of(x, "blocks.1", 0, direction=torch.ones(5))
    with pytest.raises(InputError, match="2 directions for 3 tokens"):
        explainer.of(x, "blocks.1", [0, 1, 2], direction=torch.ones(2, 12))
    with pytest.raises(InputError, match="a channel or a direction"):
        explainer.of(x, "blocks.1", 0, channel=1, direction=torch.ones(12))
    with pytest.raises(InputError, match="2 inputs for 3 targets"):
        explainer.of(images(2), "blocks.1", [0, 1, 2])
    with pytest.raises(InputError, match="internal_batch_size"):
        explainer.of(x, "blocks.1", 0, internal_batch_size=0)
    with pytest.raises(SiteError, match=r"site 'head' has shape \[1, 5\], not tokens"):
        explainer.of(x, "head", 0)
    with pytest.raises(UnknownNameError, match=r"blocks\.1"):
        explainer.of(x, "block.1", 0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_other_precisions_point_the_same_way(dtype: torch.dtype) -> None:
    double = TokenFields(vit()).of(images(), "blocks.1", [0, 5])
    other = TokenFields(vit().to(dtype)).of(images().to(dtype), "blocks.1", [0, 5])
    least = 0.98 if dtype == torch.bfloat16 else 1 - 1e-9
    assert torch.cosine_similarity(other.shares.double().flatten(), double.shares.flatten(), dim=0) > least


def real(name: str, data_dir: Path) -> LoadedModel:
    """A network with its weights, or a skip."""
    try:
        if name == "dinov2_small":
            return backlight.load(name)
        return backlight.load(name, weights=data_dir / "weights" / f"{name}.safetensors")
    except BacklightError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("rules", [attn_lrp(), cp_lrp()], ids=lambda rules: rules.name)
@pytest.mark.parametrize("name", ["dinov2_small", "deit_tiny_patch16_224"])
def test_in_real_networks_a_patch_token_is_mostly_its_own_patch(name: str, rules: RuleSet, data_dir: Path) -> None:
    pytest.importorskip("skimage")
    loaded = real(name, data_dir)
    x = loaded.preprocessing.tensor(sample_image("chelsea"))[None]
    explainer = TokenFields(loaded.model, rules=rules)
    layout = explainer.layout(x)
    patches = [(3, 3), (6, 9), (10, 10)]
    found = explainer.of(x, "blocks.3", [layout.token(*patch) for patch in patches])
    assert found.coverage.uncovered == ()
    for share, patch in zip(found.shares, patches, strict=True):
        assert share[patch] == share.max()
        assert share[patch] > 0.1


def test_held_weights_make_late_tokens_alike_and_shared_ones_do_not(data_dir: Path) -> None:
    """With CP-LRP, the fields of all tokens of DINOv2's last block are nearly one; AttnLRP tells them apart."""
    pytest.importorskip("skimage")
    loaded = real("dinov2_small", data_dir)
    x = loaded.preprocessing.tensor(sample_image("chelsea"))[None]
    alike = {}
    for rules in (attn_lrp(), cp_lrp()):
        shares = TokenFields(loaded.model, rules=rules).of(x, "blocks.11", [52, 200]).shares.flatten(1)
        alike[rules.name] = float(torch.cosine_similarity(shares[0], shares[1], dim=0))
    assert alike["cp_lrp"] > 0.8 > 0.6 > alike["attn_lrp"]
