"""Sharing Ratio Decomposition: which networks and settings are refused, and how."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from sharing_kinds import KINDS
from sharing_networks import Drawn, pictures, relative
from torch import Tensor, nn
from torch.nn import functional as F

from backlight import SRD
from backlight.errors import InputError, ModelError, SiteError, UncoveredOperationError, UnknownNameError


class Reads(nn.Module):
    """Two layers, and a function of them as the network."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.head, self.function = nn.Linear(4, 5), function
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def pooled(x: Tensor) -> Tensor:
    return x.flatten(2).mean(2)


def two_stages(m: Any, x: Tensor) -> Tensor:
    a = m.first(x).relu()
    return m.head(pooled(a)) + m.head(pooled(m.second(a).relu()))


def product_of_maps(m: Any, x: Tensor) -> Tensor:
    a = m.first(x).relu()
    return m.head(pooled(a * m.second(a).relu()))


def gate_of_another_map(m: Any, x: Tensor) -> Tensor:
    a = m.first(x).relu()
    b = m.second(a).relu()
    return m.head(pooled(b * torch.sigmoid(pooled(a))[:, :, None, None]))


def input_beside_the_map(m: Any, x: Tensor) -> Tensor:
    return m.head(pooled(m.second(m.first(x).relu()).relu())) + x.mean((1, 2, 3))[:, None]


def side_branch(m: Any, x: Tensor) -> Tensor:
    a = m.first(x).relu()
    m.second(a).relu()
    return m.head(pooled(a))


@pytest.mark.parametrize(
    "function", [two_stages, product_of_maps, gate_of_another_map, input_beside_the_map, side_branch]
)
def test_a_score_that_reads_other_maps_than_the_last_is_an_error(function: Any) -> None:
    model, x = Reads(function), torch.randn(1, 3, 5, 5, dtype=torch.float64)
    for attempt in (lambda: SRD(model).attribute(x, 1), lambda: SRD(model).prepare(x)):
        with pytest.raises(ModelError, match="start from one feature map, the last"):
            attempt()


def test_writes_to_views_are_followed() -> None:
    """As in GhostNet: a part of a concatenation is written to."""

    def forward(m: Any, x: Tensor, in_place: bool) -> Tensor:
        a = m.first(x).relu()
        part = torch.cat([a, m.second(a)], 1)[:, 2:6]
        if in_place:
            part += a
            part.relu_()
        else:
            part = (part + a).relu()
        return m.head(pooled(m.second(part).relu()))

    x = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    model = Reads(lambda m, x: forward(m, x, False))
    written = Reads(lambda m, x: forward(m, x, True))
    written.load_state_dict(model.state_dict())
    expected = SRD(model).attribute(x, 1)
    assert expected.abs().max() > 1e-4
    assert relative(SRD(written).attribute(x, 1), expected) < 1e-12
    operator = SRD(written).prepare(x)
    assert relative(operator.relevance(operator.seed(1))[:, None], expected) < 1e-10


def between(function: Any) -> Any:
    return lambda m, x: m.head(pooled(m.second(function(m, m.first(x).relu())).relu()))


@pytest.mark.parametrize(
    ("named", "function"),
    [
        ("'mul'", lambda m, a: a * a.tanh()),
        ("'transpose'", lambda m, a: a.transpose(2, 3)),
        ("'permute'", lambda m, a: a.permute(0, 1, 3, 2)),
        ("'linear'", lambda m, a: F.linear(a, torch.randn(5, 5, dtype=torch.float64))),
        ("'flatten'", lambda m, a: a.flatten(2).relu().view_as(a)),
        ("'cumsum'", lambda m, a: a.cumsum(2)),
        ("'mean'", lambda m, a: a.mean(3, keepdim=True).relu()),
        ("'conv_transpose'", lambda m, a: F.conv_transpose2d(a, torch.randn(4, 4, 2, 2, dtype=torch.float64))),
        ("'softmax'", lambda m, a: a.softmax(1)),
        ("'local_response_norm'", lambda m, a: F.local_response_norm(a, 3)),
        ("'add'", lambda m, a: a + a.mean((2, 3), keepdim=True)),
    ],
)
def test_an_operation_that_leaves_the_theory_is_named(named: str, function: Any) -> None:
    model, x = Reads(between(function)), torch.randn(1, 3, 5, 5, dtype=torch.float64)
    for attempt in (lambda: SRD(model).attribute(x, 1), lambda: SRD(model).prepare(x)):
        with pytest.raises(UncoveredOperationError, match=f"{named} in layer '\\(root\\)'.*AttnLRP"):
            attempt()


def test_transformers_are_named_and_attn_lrp_is_recommended() -> None:
    timm = pytest.importorskip("timm")
    vit = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1, num_classes=4).eval()
    with pytest.raises(UncoveredOperationError, match=r"in layer 'blocks\.0.*AttnLRP|in layer 'patch_embed.*AttnLRP"):
        SRD(vit).attribute(torch.randn(1, 3, 32, 32), 1)
    convnext = timm.create_model("convnext_atto", depths=(1, 1, 1, 1), num_classes=4).eval()
    with pytest.raises(UncoveredOperationError, match=r"in layer 'stem\.1'.*AttnLRP"):
        SRD(convnext).attribute(torch.randn(1, 3, 64, 64), 1)


def test_settings_sites_and_inputs_that_do_not_fit_are_errors() -> None:
    network = KINDS["vgg_bn"]("relu", 0)
    model, x = Drawn(network), pictures(network)
    with pytest.raises(UnknownNameError, match="unknown head 'clamp'; close matches: clamped"):
        SRD(model, head="clamp")
    with pytest.raises(UnknownNameError, match="unknown sharing of biases 'norms'; close matches: norm"):
        SRD(model, bias="norms")
    with pytest.raises(UnknownNameError, match=r"unknown layer 'steps\.99'; close matches: steps\."):
        SRD(model, resolution="steps.99").attribute(x, 1)
    with pytest.raises(SiteError, match=r"'steps\.0' gives no feature map with a relevance of its own"):
        SRD(model).explain(x, 1, sites="steps.0")  # a convolution
    with pytest.raises(InputError, match="one input"):
        SRD(model).attribute((x, x), 1)
    with pytest.raises(InputError, match="not kept apart"):
        SRD(model).explain(x, 1, bias=True)
    mlp = nn.Sequential(nn.Flatten(), nn.Linear(108, 4), nn.ReLU(), nn.Linear(4, 5)).double()
    for attempt in (lambda: SRD(mlp).attribute(x, 1), lambda: SRD(mlp).prepare(x)):
        with pytest.raises(SiteError, match="no feature map"):
            attempt()


def test_batch_norm_in_training_mode_is_an_error() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model.train()
    for attempt in (lambda: SRD(model).attribute(torch.randn(2, 3, 6, 6), 1),
                    lambda: SRD(model).prepare(torch.randn(2, 3, 6, 6))):  # fmt: skip
        with pytest.raises(ModelError, match=r"statistics of the batch.*model\.eval\(\)"):
            attempt()
