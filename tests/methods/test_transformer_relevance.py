"""AttnLRP and CP-LRP on transformers as they are, however they spell their attention."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from explicit_rules import drawn, relative
from torch import Tensor, nn

import backlight
from backlight.engine import Unit
from backlight.engine.targets import output_tensor
from backlight.methods import method

assert backlight  # before torchvision
timm = pytest.importorskip("timm")
torchvision = pytest.importorskip("torchvision")
transformers = pytest.importorskip("transformers")

BOTH = ["AttnLRP", "CPLRP"]
HF = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}


def of_timm(name: str, **settings: Any) -> nn.Module:
    return timm.create_model(name, pretrained=False, num_classes=5, **settings)


def small_timm(name: str, **settings: Any) -> nn.Module:
    return of_timm(name, img_size=32, patch_size=8, depth=2, **settings)


def hf_vit(attention: str) -> nn.Module:
    config = transformers.ViTConfig(**HF, intermediate_size=32, num_labels=5)
    config._attn_implementation = attention
    return transformers.ViTForImageClassification(config)


def hf_clip(attention: str = "sdpa") -> nn.Module:
    config = transformers.CLIPVisionConfig(**HF, intermediate_size=32)  # QuickGELU, written by hand
    config._attn_implementation = attention
    return transformers.CLIPVisionModel(config)


# beyond the networks of test_zoo: what else transformers do. name -> (network, side of the input)
NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "dinov2 with registers": (lambda: small_timm("vit_small_patch14_reg4_dinov2"), 32),
    "dinov2 with SwiGLU": (lambda: small_timm("vit_giant_patch14_dinov2", embed_dim=24, num_heads=2), 32),
    "query and key norms": (lambda: small_timm("vit_tiny_patch16_224", qk_norm=True), 32),
    "attention pooling": (lambda: small_timm("vit_tiny_patch16_224", global_pool="map", class_token=False), 32),
    "beit": (lambda: small_timm("beit_base_patch16_224", embed_dim=24, num_heads=2), 32),
    "eva": (lambda: small_timm("eva02_tiny_patch14_224", embed_dim=24, num_heads=2), 32),
    "cait": (lambda: small_timm("cait_xxs24_224", embed_dim=24, num_heads=2), 32),
    "xcit": (lambda: small_timm("xcit_nano_12_p8_224", embed_dim=24, num_heads=2), 32),
    "swin v2": (
        lambda: of_timm("swinv2_tiny_window8_256", img_size=64, depths=(1, 1), embed_dim=24, num_heads=(2, 2)), 64
    ),
    "maxvit": (lambda: of_timm("maxvit_rmlp_pico_rw_256", img_size=64), 64),
    "hf clip": (hf_clip, 32),
    "hf dinov2": (lambda: transformers.Dinov2ForImageClassification(transformers.Dinov2Config(**HF, num_labels=5)), 32),
    "hf swin": (
        lambda: transformers.SwinForImageClassification(transformers.SwinConfig(
            image_size=32, patch_size=4, embed_dim=12, depths=[1, 1], num_heads=[2, 2], window_size=4, num_labels=5)),
        32,
    ),
}  # fmt: skip


def pixels(side: int = 32, count: int = 1) -> Tensor:
    return torch.rand(count, 3, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) * 2 - 1


@pytest.mark.parametrize("name", NETWORKS)
def test_a_transformer_is_explained_as_it_is(name: str) -> None:
    make, side = NETWORKS[name]
    model, x = drawn(make()), pixels(side)
    with torch.no_grad():
        plain = output_tensor(model(x))
    target = (0, 3) if plain.ndim == 3 else 3
    relevance = method("AttnLRP")(model).explain(x, target)
    held = method("CPLRP")(model).explain(x, target, bias=True)
    for found in (relevance, held):
        assert found.coverage.uncovered == ()
        assert torch.isfinite(found.value).all()
        assert found.value.abs().max() > 0
    assert (held.residual.abs() / held.scores.abs().clamp(min=1)).max() < 1e-9
    assert relative(relevance.value, held.value) > 1e-3
    with torch.no_grad():
        assert torch.equal(output_tensor(model(x)), plain)


@pytest.mark.parametrize("name", ["Pullback", "CPLRP"])
def test_counting_biases_changes_no_rule(name: str) -> None:
    """CaiT mixes its attention weights by linear layers: with their biases counted, they are weights still."""
    model = drawn(NETWORKS["cait"][0]())
    plain, counted = (method(name)(model).explain(pixels(), 3, bias=bias) for bias in (False, True))
    assert relative(counted.value, plain.value) < 1e-12
    assert counted.residual.abs().max() < 1e-12


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("make", [hf_vit, hf_clip])
def test_eager_attention_is_fused_attention(make: Callable[[str], nn.Module], name: str) -> None:
    found = []
    for attention in ("sdpa", "eager"):
        explained = method(name)(drawn(make(attention))).explain(pixels(), (0, 3) if make is hf_clip else 3)
        assert bool(explained.coverage.calls("softmax")) == (attention == "eager")
        assert bool(explained.coverage.calls("attention")) == (attention == "sdpa")
        found.append(explained.value)
    assert relative(found[1], found[0]) < 1e-6  # the eager softmax works in float32


@pytest.mark.parametrize("name", BOTH)
def test_timm_s_own_attention_is_fused_attention(name: str) -> None:
    fused = drawn(small_timm("vit_tiny_patch16_224", qk_norm=True))
    by_hand = copy.deepcopy(fused)
    for block in by_hand.blocks:
        block.attn.fused_attn = False
    found = [method(name)(model).explain(pixels(), 3) for model in (fused, by_hand)]
    assert found[1].coverage.calls("softmax") == found[0].coverage.calls("attention") == 2
    assert relative(found[1].value, found[0].value) < 1e-10


@pytest.mark.parametrize("name", BOTH)
def test_an_encoder_layer_of_torch_is_spelled_out(name: str) -> None:
    layer = nn.TransformerEncoderLayer(12, 2, 24, activation="gelu", norm_first=True, batch_first=True, dropout=0.0)
    model = drawn(nn.Sequential(layer, nn.Flatten(), nn.Linear(60, 3)))
    x = torch.randn(2, 5, 12, dtype=torch.float64)
    found = method(name)(model).explain(x, 1, bias=True)
    assert found.coverage.calls("gelu", "gate") == found.coverage.calls("layer_norm", "held deviation") / 2 == 2
    assert (found.residual.abs().max() < 1e-9) == (name == "CPLRP")


@pytest.mark.parametrize("name", BOTH)
def test_hidden_units_and_sites_are_explained(name: str) -> None:
    """Relevance at a block's output for a unit of a later one; below it, nothing of what comes after plays a part."""
    model = drawn(small_timm("vit_tiny_patch16_224", embed_dim=12, num_heads=3))
    target = Unit("blocks.1", channel=5, position=(3,), channel_axis=-1)
    explained = method(name)(model).explain(pixels(), target, sites=("input", "blocks.0", "blocks.1"))
    assert explained.values["input"].shape == (1, 3, 32, 32)
    assert explained.values["blocks.0"].shape == (1, 17, 12)
    own = torch.zeros(1, 17, 12, dtype=torch.float64)
    own[0, 3, 5] = explained.scores[0]
    assert torch.allclose(explained.values["blocks.1"], own)
