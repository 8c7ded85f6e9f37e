"""The sites looked at by default: the paper's by name, and those of many networks, reached once, with a layout."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import backlight  # noqa: F401  torchvision imports after it, whatever torch's build
from backlight.contributions import default_sites, layout_of
from backlight.engine.sites import captured
from backlight.errors import SiteError, UnknownNameError


def built(library: str, name: str) -> nn.Module:
    """A network without memory for its weights."""
    source = pytest.importorskip("torchvision.models" if library == "torchvision" else "timm")
    with warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("ignore")
        make = source.get_model if library == "torchvision" else source.create_model
        return make(name, **({"weights": None} if library == "torchvision" else {})).eval()


RESNET_50 = [f"layer{stage}.{block}" for stage, count in enumerate((3, 4, 6, 3), 1) for block in range(count)]
MOBILENET_V3 = "0.0 1.0 1.1 2.0 2.1 2.2 3.0 3.1 4.0 4.1 4.2".split()
VGG = [f"features.{i}" for i in (2, 6, 10, 13, 17, 20, 24, 27)] + ["classifier.1", "classifier.4"]
TIMM_BLOCKS = "0.0 1.0 1.1 2.0 2.1 3.0 3.1 3.2 4.0 4.1 4.2 5.0 5.1 5.2 5.3 6.0".split()
SWIN = [f"features.{stage}.{block}" for stage, count in ((1, 2), (3, 2), (5, 6), (7, 2)) for block in range(count)]
INCEPTION = [f"inception{name}" for name in "3a 3b 4a 4b 4c 4d 4e 5a 5b".split()]

BLOCKS: dict[tuple[str, str], list[str]] = {
    ("torchvision", "resnet50"): RESNET_50,
    ("timm", "resnet50"): RESNET_50,
    ("torchvision", "mobilenet_v2"): [f"features.{i}" for i in range(1, 18)],
    ("torchvision", "mobilenet_v3_small"): [f"features.{i}" for i in range(1, 12)],
    ("torchvision", "efficientnet_b0"): [f"features.{int(n[0]) + 1}.{n[2]}" for n in TIMM_BLOCKS],
    ("timm", "efficientnet_lite0"): [f"blocks.{name}" for name in TIMM_BLOCKS],
    ("timm", "mobilenetv3_small_050"): [
        f"blocks.{name}" for name in "0.0 1.0 1.1 2.0 2.1 2.2 3.0 3.1 4.0 4.1 4.2".split()
    ],
    ("timm", "convnext_atto"): [f"stages.{s}.blocks.{b}" for s, count in enumerate((2, 2, 6, 2)) for b in range(count)],
    ("torchvision", "densenet121"): [f"features.denseblock{i}" for i in range(1, 5)],
    ("torchvision", "vgg11_bn"): VGG,
    ("torchvision", "squeezenet1_1"): [f"features.{i}" for i in (3, 4, 6, 7, 9, 10, 11, 12)],
    ("torchvision", "googlenet"): INCEPTION,
    ("torchvision", "inception_v3"): [f"Mixed_{n}" for n in "5b 5c 5d 6a 6b 6c 6d 6e 7a 7b 7c".split()],
    ("torchvision", "swin_t"): SWIN,
    ("torchvision", "vit_b_32"): [f"encoder.layers.encoder_layer_{i}" for i in range(12)],
    ("timm", "vit_tiny_patch16_224"): [f"blocks.{i}" for i in range(12)],
    ("timm", "regnety_002"): ["s1.b1", "s2.b1", *(f"s3.b{i}" for i in range(1, 5)), *(f"s4.b{i}" for i in range(1, 8))],
    ("timm", "xception41"): [f"blocks.{i}" for i in range(13)],
}
LAYOUTS = {"swin_t": {"channels-last"}, "vit_b_32": {"tokens+1"}, "vit_tiny_patch16_224": {"tokens+1"}}
SIDES = {"inception_v3": 96, "vit_b_32": 224, "vit_tiny_patch16_224": 224}


@pytest.mark.parametrize(("library", "name"), BLOCKS)
def test_blocks_are_found_reached_once_and_have_a_layout(library: str, name: str) -> None:
    model = built(library, name)
    sites, side = default_sites(model), SIDES.get(name, 64)
    assert list(sites) == BLOCKS[library, name]
    with torch.no_grad(), captured(model, sites) as values:
        model(torch.zeros(2, 3, side, side, device="meta"))
    layouts = {str(layout_of(values[site], model, site, size=(side, side))) for site in sites}
    assert layouts - {"vectors"} == LAYOUTS.get(name, {"maps"})
    assert all(len(value) == 2 for value in values.values())


VIT = "vit_tiny_patch16_224"
KINDS = {
    ("timm", VIT, "tokens"): "blocks.{}",
    ("timm", VIT, "mlp"): "blocks.{}.mlp.fc2:input",
    ("timm", VIT, "attention"): "blocks.{}.attn.proj:input",
    ("torchvision", "vit_b_32", "mlp"): "encoder.layers.encoder_layer_{}.mlp.3:input",
}


@pytest.mark.parametrize(("library", "name", "kind"), KINDS)
def test_the_three_kinds_of_a_vision_transformer(library: str, name: str, kind: str) -> None:
    model = built(library, name)
    sites = default_sites(model, kind)
    assert list(sites) == [KINDS[library, name, kind].format(i) for i in range(12)]
    with torch.no_grad(), captured(model, sites) as values:
        model(torch.zeros(1, 3, 224, 224, device="meta"))
    blocks = 768 if library == "torchvision" else 192
    for site in sites:
        assert values[site].shape[2] == (4 * blocks if kind == "mlp" else blocks)
        assert str(layout_of(values[site], model, site, size=(224, 224))) == "tokens+1"


def test_the_mlp_over_channels_is_the_last_of_a_block() -> None:
    sites = default_sites(built("timm", "mixer_s32_224"), "mlp")  # its first one is over tokens
    assert list(sites) == [f"blocks.{i}.mlp_channels.fc2:input" for i in range(8)]


def test_what_is_read_at_the_mlp_is_after_its_nonlinearity() -> None:
    timm = pytest.importorskip("timm")
    model = timm.create_model(VIT, img_size=32, depth=1, num_classes=5).eval()
    block, (site,) = model.blocks[0], default_sites(model, "mlp")
    with torch.no_grad(), captured(model, (site, "blocks.0.mlp.fc1")) as values:
        model(torch.randn(1, 3, 32, 32))
    torch.testing.assert_close(values[site], block.mlp.act(values["blocks.0.mlp.fc1"]))


def test_heads_are_side_by_side_at_the_attention() -> None:
    timm = pytest.importorskip("timm")
    model = timm.create_model(VIT, img_size=32, depth=1, num_classes=5).eval()
    (site,), attention = default_sites(model, "attention"), model.blocks[0].attn
    with torch.no_grad(), captured(model, (site, "blocks.0.attn.qkv")) as values:
        model(torch.randn(1, 3, 32, 32))
    q, k, v = values["blocks.0.attn.qkv"].reshape(1, 5, 3, 3, 64).permute(2, 0, 3, 1, 4)
    heads = F.scaled_dot_product_attention(q, k, v, scale=attention.scale)
    torch.testing.assert_close(values[site], heads.transpose(1, 2).reshape(1, 5, 192))


VIT_SETTINGS = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 8}
FAMILIES: dict[str, tuple[dict[str, Any], list[str], str]] = {
    "ViT": ({**VIT_SETTINGS, "intermediate_size": 48, "image_size": 32}, ["0", "1"], "tokens+1"),
    "Swin": (
        {"embed_dim": 8, "depths": [1, 2], "num_heads": [2, 2], "window_size": 4, "image_size": 32},
        ["0.0", "1.0", "1.1"],
        "tokens",
    ),
    "ResNet": (
        {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 2], "layer_type": "basic"},
        ["0.0", "1.0", "1.1"],
        "maps",
    ),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_hugging_face(family: str) -> None:
    transformers = pytest.importorskip("transformers")
    given, numbers, layout = FAMILIES[family]
    config = getattr(transformers, f"{family}Config")(**given, num_labels=5)
    model = getattr(transformers, f"{family}ForImageClassification")(config).eval()
    sites = default_sites(model)
    assert [".".join(part for part in site.split(".") if part.isdigit()) for site in sites] == numbers
    with torch.no_grad(), captured(model, sites) as values:
        model(torch.randn(1, 3, 32, 32))
    assert {str(layout_of(values[site], model, site, size=(32, 32))) for site in sites} == {layout}


BLOCK = "model.layers.{}"
LANGUAGE: dict[str, tuple[str, str, str]] = {  # block, attention's projection, second linear layer
    "gpt2": ("transformer.h.{}", "attn.c_proj", "mlp.c_proj"),
    "bert": ("bert.encoder.layer.{}", "attention.output.dense", "output.dense"),
    **dict.fromkeys(
        ("llama", "gemma", "gemma2", "gemma3_text", "qwen2", "qwen3", "mistral"),
        (BLOCK, "self_attn.o_proj", "mlp.down_proj"),
    ),
}


@pytest.mark.parametrize("family", LANGUAGE)
def test_language_models(family: str) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": 11, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "pad_token_id": 0}
    sizes |= {} if family == "gpt2" else {"intermediate_size": 24}
    sizes |= {} if family in ("gpt2", "bert") else {"head_dim": 8, "num_key_value_heads": 2}  # wider than the stream
    config = transformers.AutoConfig.for_model(family, **sizes)
    kind = transformers.AutoModelForMaskedLM if family == "bert" else transformers.AutoModelForCausalLM
    model = kind.from_config(config).eval()
    block, attention, mlp = LANGUAGE[family]
    wanted = {"blocks": block, "attention": f"{block}.{attention}:input", "mlp": f"{block}.{mlp}:input"}
    sites = {name: default_sites(model, name) for name in wanted}
    assert sites == {name: tuple(address.format(i) for i in range(2)) for name, address in wanted.items()}
    every = [site for several in sites.values() for site in several]
    with torch.no_grad(), captured(model, every) as values:
        model(torch.tensor([[1, 5, 3]]))
    assert {str(layout_of(values[site], model, site)) for site in every} == {"tokens"}
    widths = {name: values[several[0]].shape[2] for name, several in sites.items()}
    heads = 16 if family in ("gpt2", "bert") else 32
    assert widths == {"blocks": 16, "attention": heads, "mlp": 64 if family == "gpt2" else 24}


class Basic(nn.Module):
    """A block of a CIFAR ResNet, with a shortcut of slices and zeros."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(before, after, 3, after // before, 1), nn.BatchNorm2d(after)
        self.conv2, self.bn2 = nn.Conv2d(after, after, 3, 1, 1), nn.BatchNorm2d(after)
        self.pad = after - before

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(out + (x if not self.pad else F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 0, self.pad))))


def test_networks_of_ones_own() -> None:
    cifar = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(Basic(4, 4), Basic(4, 4)), nn.Sequential(Basic(4, 8)))
    assert default_sites(cifar) == ("1.0", "1.1", "2.0")
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 8, 3), nn.GELU(), nn.Flatten(), nn.Linear(8, 2))
    assert default_sites(plain) == ("1", "3")
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16), 3, enable_nested_tensor=False)
    assert default_sites(nn.Sequential(nn.Linear(3, 8), encoder)) == tuple(f"1.layers.{i}" for i in range(3))


REFUSED: dict[str, tuple[Callable[[], Any], str, str]] = {
    "nothing to find": (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten()), "blocks", "name the sites"),
    "no attention": (lambda: built("torchvision", "resnet50"), "tokens", "no sites of kind 'tokens'"),
    "nn.MultiheadAttention": (lambda: built("torchvision", "vit_b_32"), "attention", "MultiheadAttention"),
    "windows": (lambda: built("timm", "swin_tiny_patch4_window7_224"), "attention", "along the samples"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_sites_that_cannot_be_read_are_refused(case: str) -> None:
    make, kind, message = REFUSED[case]
    with pytest.raises(SiteError, match=message):
        default_sites(make(), kind)


def test_kinds_are_named() -> None:
    with pytest.raises(UnknownNameError, match="attention"):
        default_sites(nn.Sequential(nn.ReLU()), "atention")
