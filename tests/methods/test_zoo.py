"""Families of real networks, with random weights and small inputs: explained as they are, without a change to them."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from networks import small_vgg
from torch import Tensor, nn

import backlight
from backlight.engine.targets import output_tensor
from backlight.methods import method

assert backlight  # before torchvision: it may not fit the build of torch
torchvision = pytest.importorskip("torchvision")
timm = pytest.importorskip("timm")
transformers = pytest.importorskip("transformers")

METHODS = ["Saliency", "Pullback", "SoftPullback", "GuidedBackprop", "AttnLRP"]


def of_torchvision(name: str, **settings: Any) -> Callable[[], nn.Module]:
    return lambda: torchvision.models.get_model(name, weights=None, num_classes=7, **settings)


def of_timm(name: str, **settings: Any) -> Callable[[], nn.Module]:
    return lambda: timm.create_model(name, pretrained=False, num_classes=7, **settings)


def convnext() -> nn.Module:
    block = torchvision.models.convnext.CNBlockConfig
    return torchvision.models.ConvNeXt([block(12, 24, 1), block(24, None, 1)], num_classes=7)


def hf_vit() -> nn.Module:
    config = transformers.ViTConfig(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=32, patch_size=8,
        num_labels=7,
    )  # fmt: skip
    return transformers.ViTForImageClassification(config)


def hf_resnet() -> nn.Module:
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=7
    )
    return transformers.ResNetForImageClassification(config)


def hf_gpt2_like_activation() -> nn.Module:
    config = transformers.ViTConfig(
        hidden_size=24, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=32, patch_size=8,
        num_labels=7, hidden_act="gelu_new",
    )  # fmt: skip
    return transformers.ViTForImageClassification(config)


# name -> (network, side of the input)
ZOO: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "resnet18": (of_torchvision("resnet18"), 64),
    "vgg11_bn": (small_vgg, 32),
    "densenet121": (of_torchvision("densenet121"), 32),
    "googlenet": (of_torchvision("googlenet", aux_logits=False, init_weights=False), 64),
    "inception_v3": (of_torchvision("inception_v3", aux_logits=False, init_weights=False), 80),
    "mobilenet_v2": (of_torchvision("mobilenet_v2"), 32),
    "mobilenet_v3": (of_torchvision("mobilenet_v3_small"), 32),
    "efficientnet_b0": (of_torchvision("efficientnet_b0"), 32),
    "regnet_y": (of_torchvision("regnet_y_400mf"), 32),
    "convnext (torchvision)": (convnext, 32),
    "vit (torchvision)": (
        lambda: torchvision.models.VisionTransformer(32, 8, 2, 2, 24, 48, num_classes=7), 32
    ),
    "swin (torchvision)": (
        lambda: torchvision.models.SwinTransformer([4, 4], 12, [2, 2], [2, 2], [4, 4], num_classes=7), 32
    ),
    "convnext (timm)": (of_timm("convnext_atto"), 32),
    "vit (timm)": (of_timm("vit_tiny_patch16_224", img_size=32, depth=2), 32),
    "deit": (of_timm("deit_tiny_distilled_patch16_224", img_size=32, depth=2), 32),
    "swin (timm)": (of_timm("swin_tiny_patch4_window7_224", img_size=56, depths=(1, 1, 2, 1), embed_dim=24), 56),
    "pvt": (of_timm("pvt_v2_b0"), 64),
    "levit": (of_timm("levit_128s"), 224),
    "efficientnet_lite0": (of_timm("tf_efficientnet_lite0"), 32),
    "poolformer": (of_timm("poolformer_s12"), 32),
    "mlp mixer": (of_timm("mixer_s16_224", img_size=32), 32),
    "hf vit": (hf_vit, 32),
    "hf resnet": (hf_resnet, 32),
    "hf gelu_new": (hf_gpt2_like_activation, 32),
}  # fmt: skip


@cache
def network(name: str) -> nn.Module:
    """The network with weights that let a signal through: no zero-initialised heads, scales or statistics."""
    torch.manual_seed(0)
    model = ZOO[name][0]().double().eval()
    for key, parameter in model.named_parameters():
        if parameter.ndim > 1:
            nn.init.kaiming_normal_(parameter.flatten(1) if parameter.ndim > 2 else parameter, nonlinearity="relu")
        elif key.endswith(("weight", "gamma", "scale", "layer_scale")):
            nn.init.uniform_(parameter, 0.5, 1.0)
        else:
            nn.init.normal_(parameter, std=0.1)
    return model


def pixels(name: str) -> Tensor:
    side = ZOO[name][1]
    return torch.rand(1, 3, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) * 2 - 1


@pytest.mark.parametrize("name", ZOO)
def test_a_real_network_is_explained_as_it_is(name: str) -> None:
    model, x = network(name), pixels(name)
    with torch.no_grad():
        plain = output_tensor(model(x))
    found = {which: method(which)(model).explain(x, 3) for which in METHODS}
    for result in found.values():
        assert torch.allclose(result.scores, plain[:, 3], rtol=1e-9, atol=1e-9)
        assert torch.isfinite(result.value).all()
        assert result.value.abs().max() > 0
        assert result.coverage.uncovered == ()
    saliency, soft = found["Saliency"].value, found["SoftPullback"].value
    assert torch.cosine_similarity(saliency.flatten(), soft.flatten(), dim=0) < 0.9999
    with torch.no_grad():
        assert torch.equal(output_tensor(model(x)), plain)


@pytest.mark.parametrize("which", ["Pullback", "CPLRP"])
@pytest.mark.parametrize("name", ZOO)
def test_the_pullback_of_a_real_network_and_its_biases_are_the_score(name: str, which: str) -> None:
    found = method(which)(network(name)).explain(pixels(name), 3, bias=True)
    assert (found.residual.abs() / found.scores.abs().clamp(min=1)).max() < 1e-9


def softened(name: str) -> dict[str, int]:
    table = method("SoftPullback")(network(name)).explain(pixels(name), 3).coverage
    counts: dict[str, int] = {}
    for row in table:
        if row.rule in ("soft gate", "soft routing", "held statistics", "held weights", "weights", "spelled out"):
            counts[row.rule] = counts.get(row.rule, 0) + row.calls
    return counts


@pytest.mark.parametrize(
    ("name", "label", "count"),
    [
        ("resnet18", "soft gate", 17),
        ("resnet18", "soft routing", 1),
        ("densenet121", "soft gate", 121),  # the last one is functional
        ("googlenet", "soft gate", 57),  # all functional
        ("googlenet", "soft routing", 13),
        ("inception_v3", "soft gate", 94),
        ("mobilenet_v2", "soft gate", 35),  # ReLU6
        ("vit (torchvision)", "spelled out", 2),
        ("vit (timm)", "held weights", 2),
        ("swin (torchvision)", "weights", 4),
        ("hf gelu_new", "soft gate", 1),
        ("hf vit", "soft gate", 2),
    ],
)
def test_nothing_is_missed(name: str, label: str, count: int) -> None:
    assert softened(name).get(label, 0) == count
