"""Sharing Ratio Decomposition: backward rules = stencils = explicit matrices, and what the method claims."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sharing_kinds import KINDS, program
from sharing_networks import ACTIVATIONS, Drawn, Network, pictures, relative
from sharing_reference import Reference
from torch import Tensor, nn

from backlight import SRD, InputXGradient

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")

STYLES = ("modules", "functional", "in place")
BIASES = ("norm", "uniform", "drop")


def last_node(reference: Reference) -> int:
    """The number of the last value that is an activation, a sum or a concatenation."""
    found = [n for n, (kind, *_) in enumerate(reference.network.steps, 1) if kind in ("act", "add", "cat")]
    node = reference.at[found[-1]]
    assert node is not None
    return node


def compare(network: Network, bias: str, style: str) -> None:
    """Values, relevance of the input in both forms, and all receptive fields of the last feature map."""
    model, x = Drawn(network, style), pictures(network)
    references = [Reference(network, picture, bias) for picture in x]
    explainer = SRD(model, head="raw", bias=bias)
    found = explainer.explain(x, [1, 2])
    operator = explainer.prepare(x)
    seed = operator.seed([1, 2])
    ends = [last_node(reference) for reference in references]
    values = torch.from_numpy(np.stack([r.values[-1].array for r in references]))
    assert relative(model.features(x).flatten(2).detach(), values) < 1e-10
    expected = torch.from_numpy(
        np.stack([r.relevance(s.numpy(), end) for r, s, end in zip(references, seed, ends, strict=True)])
    )
    assert relative(found.value.flatten(1), expected) < 1e-10
    assert relative(operator.relevance(seed).flatten(1), expected) < 1e-10
    fields = torch.from_numpy(np.stack([r.fields(end) for r, end in zip(references, ends, strict=True)]))
    assert relative(operator.ierf("@features").flatten(2), fields) < 1e-10
    lost = seed.flatten(1).sum(1) - expected.sum(1)
    assert (found.residual - lost).abs().max() < 1e-10 * max(1.0, seed.abs().max().item())


# parity: backward rules = stencils = matrices


@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize("name", KINDS)
def test_each_kind_of_network_agrees_with_its_matrices(name: str, bias: str) -> None:
    number = list(KINDS).index(name) * 3 + BIASES.index(bias)
    act = list(ACTIVATIONS)[number % len(ACTIVATIONS)]
    compare(KINDS[name](act, number), bias, STYLES[number % 3])


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    name=st.sampled_from(list(KINDS)), act=st.sampled_from(list(ACTIVATIONS)), seed=st.integers(0, 10**6),
    bias=st.sampled_from(BIASES), style=st.sampled_from(STYLES),
)  # fmt: skip
def test_any_weights_and_activations_agree_with_their_matrices(
    name: str, act: str, seed: int, bias: str, style: str
) -> None:
    compare(KINDS[name](act, seed), bias, style)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10**6), act=st.sampled_from(list(ACTIVATIONS)), bias=st.sampled_from(BIASES),
    style=st.sampled_from(STYLES),
)  # fmt: skip
def test_any_sequence_of_layers_agrees_with_its_matrices(seed: int, act: str, bias: str, style: str) -> None:
    compare(program(seed, act), bias, style)


@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize("name", ["resnet_basic", "densenet", "mobilenet", "vgg", "residual_of_one_layer"])
def test_every_hidden_node_has_the_relevance_of_the_matrices(name: str, bias: str) -> None:
    network = KINDS[name]("silu", 5)
    x = pictures(network, 1)
    model, reference = Drawn(network), Reference(network, x[0], bias)
    end = last_node(reference)
    named = {f"steps.{n}": reference.at[n + 1] for n, (kind, *_) in enumerate(network.steps)
             if kind in ("act", "add", "cat") and reference.at[n + 1] != end}  # fmt: skip
    assert len(named) > 1
    explainer = SRD(model, bias=bias)
    operator = explainer.prepare(x)
    seed = operator.seed(3)
    found = explainer.explain(x, 3, sites=("low", *named)).values
    assert relative(found["low"][0, 0], seed[0]) < 1e-10
    for layer, node in named.items():
        assert node is not None
        expected = torch.from_numpy(reference.relevance(seed[0].numpy(), end, node))
        assert relative(operator.relevance(seed, to=layer)[0].flatten(), expected) < 1e-10, layer
        assert relative(found[layer].flatten(), expected) < 1e-10, layer
        assert relative(explainer.explain(x, 3, sites=layer).value.flatten(), expected) < 1e-10, layer


# claims


@pytest.mark.parametrize("bias", ["norm", "uniform"])
@pytest.mark.parametrize("name", KINDS)
def test_relevance_is_conserved(name: str, bias: str) -> None:
    network = KINDS[name]("gelu", 2)
    x = pictures(network, 3)
    explainer = SRD(Drawn(network), head="mean", bias=bias)
    found = explainer.explain(x, [0, 1, 4])
    low = explainer.explain(x, [0, 1, 4], sites="low").value
    scale = low.abs().sum()
    if name == "dilated_and_grouped":  # its last layer pads around a 1 x 1 window: there is a bias, and no source
        assert found.residual.abs().max() > 1e-3 * scale
    else:
        assert found.residual.abs().max() < 1e-10 * scale
    assert (found.value.flatten(1).sum(1) + found.residual - low.flatten(1).sum(1)).abs().max() < 1e-10 * scale


def dead_region() -> tuple[nn.Module, Tensor]:
    """A network with a patch of input that is zero, larger than what a position of the first layers sees."""
    network = Network(3, (12, 12), 4)
    x = network.act(network.bn(network.conv(0, 4)), "relu")
    x = network.step("max_pool", x, kernel_size=2)
    network.act(network.add(network.conv(x, 4), x), "relu")
    picture = pictures(network)
    picture[:, :, :7, :] = 0
    return Drawn(network), picture


@pytest.mark.parametrize("bias", BIASES)
def test_a_dead_region_gives_no_nan_and_its_leak_is_said(bias: str) -> None:
    model, x = dead_region()
    explainer = SRD(model, head="raw", bias=bias)
    found, operator = explainer.explain(x, 2), explainer.prepare(x)
    assert torch.isfinite(found.value).all()
    assert (found.value[:, :, :7] == 0).all()
    assert found.value[:, :, 7:].abs().max() > 0
    seed = operator.seed(2)
    assert relative(operator.relevance(seed)[:, None], found.value) < 1e-10
    assert found.residual.abs().min() > 1e-6  # biases made activity where there is no input
    assert torch.allclose(found.residual, (seed * (1 - operator.ierf("@features").flatten(2).sum(2).view_as(seed)))
                          .flatten(1).sum(1), atol=1e-12)  # fmt: skip
    assert operator.leak("steps.2")[:, :6].allclose(torch.ones(2, 6, 12, dtype=torch.float64))


def test_an_input_of_zeros_has_no_relevance_and_all_of_it_leaks() -> None:
    network = KINDS["resnet_bottleneck"]("relu", 1)
    x = torch.zeros(1, 3, 6, 6, dtype=torch.float64)
    explainer = SRD(Drawn(network), head="raw")
    found = explainer.explain(x, 1)
    seed = explainer.prepare(x).seed(1)
    assert (found.value == 0).all()
    assert torch.allclose(found.residual, seed.flatten(1).sum(1))
    assert seed.abs().max() > 0


def test_dead_activations_lose_nothing_but_their_own() -> None:
    """A layer whose every channel is cut off by ReLU, z < 0: a = 0, and nothing was made of it."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Conv2d(3, 4, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
                          nn.Flatten(), nn.Linear(4, 5)).double()  # fmt: skip
    nn.init.constant_(model[0].bias, -100.0)
    x = torch.randn(2, 2, 5, 5, dtype=torch.float64)
    found = SRD(model, head="raw").explain(x, 1)
    operator = SRD(model, head="raw").prepare(x)
    assert (found.value == 0).all()
    assert relative(operator.relevance(operator.seed(1))[:, None], found.value) == 0


# derivatives


@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize(
    ("kind", "act", "site"),
    [
        ("resnet_basic", "tanh", "input"),
        ("resnet_basic", "tanh", "steps.9"),
        ("efficientnet", "gelu", "input"),
        ("vgg_bn", "silu", "input"),  # a pool fused with convolution and BatchNorm
        ("overlapping_pools", "gelu", "input"),
        ("averages", "gelu", "steps.1"),
        ("mobilenet", "gelu", "low"),
        ("densenet", "tanh", "input"),
        ("positions_moved", "gelu", "input"),
    ],
)
def test_a_map_can_be_differentiated_in_the_input(kind: str, act: str, site: str, bias: str) -> None:
    network = KINDS[kind](act, 3)
    model, x = Drawn(network), pictures(network, 1)
    weights = None

    def scalar(x: Tensor, create_graph: bool = False) -> Tensor:
        nonlocal weights
        found = SRD(model, head="mean", bias=bias).explain(x, 1, sites=site, create_graph=create_graph).value
        weights = torch.randn(found.shape, dtype=torch.float64) if weights is None else weights
        return (weights * found).sum()

    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(scalar(leaf, True), leaf)
    assert gradient.abs().max() > 1e-4
    for _ in range(4):
        direction = torch.randn_like(x)
        slope = (scalar(x + 1e-5 * direction) - scalar(x - 1e-5 * direction)) / 2e-5
        assert (slope - (gradient * direction).sum()).abs() < 1e-6 * gradient.norm()


def test_the_derivative_of_a_batch_is_that_of_its_samples() -> None:
    network = KINDS["resnet_basic"]("gelu", 3)
    model, x = Drawn(network), pictures(network, 3)
    gradients = []
    for size in (None, 1, 2):
        leaf = x.clone().requires_grad_()
        found = SRD(model).explain(leaf, [0, 1, 2], create_graph=True, internal_batch_size=size).value
        gradients += torch.autograd.grad(found.square().sum(), leaf)
    assert gradients[0].abs().max() > 1e-6
    assert relative(gradients[1], gradients[0]) < 1e-10
    assert relative(gradients[2], gradients[0]) < 1e-10


# invariances


def test_the_map_depends_on_the_scale_of_hidden_channels_and_lrp_does_not() -> None:
    """W <- D W, next W <- W D^-1 keeps the function of a ReLU network; PFVs change, and ratios with them."""
    network = Network(3, (8, 8), 1, bias_scale=0)
    x = network.act(network.conv(0, 6, bias=False), "relu")
    x = network.act(network.conv(x, 6, bias=False), "relu")
    network.act(network.conv(x, 6, bias=False), "relu")
    model, x = Drawn(network), pictures(network)
    nn.init.zeros_(model.head.bias)
    before = {method: method(model).attribute(x, 1) for method in (SRD, InputXGradient)}
    score = model(x)
    gain = torch.randn(6, dtype=torch.float64).exp()
    first, second = network.steps[0][2], network.steps[2][2]
    first["weight"] *= gain[:, None, None, None]
    second["weight"] /= gain[:, None, None]
    assert relative(model(x), score) < 1e-12
    assert relative(InputXGradient(model).attribute(x, 1), before[InputXGradient]) < 1e-12  # LRP-0 of such a network
    changed = SRD(model).attribute(x, 1)
    assert relative(changed, before[SRD]) > 1e-3
    assert torch.cosine_similarity(changed.flatten(), before[SRD].flatten(), dim=0) > 0.8  # mildly
    assert (changed.sum() - before[SRD].sum()).abs() < 1e-10


def test_batches_are_their_samples() -> None:
    network = KINDS["densenet"]("relu", 2)
    model, x = Drawn(network), pictures(network, 3)
    whole = SRD(model).explain(x, [0, 1, 2], sites=("input", "low", "steps.5"))
    for size in (1, 2):
        parts = SRD(model).explain(x, [0, 1, 2], sites=("input", "low", "steps.5"), internal_batch_size=size)
        for site in ("input", "low", "steps.5"):
            assert relative(parts.values[site], whole.values[site]) < 1e-12
        assert (parts.residual - whole.residual).abs().max() < 1e-12
    single = SRD(model).explain(x[2:], 2, sites="steps.5").value
    assert relative(single, whole.values["steps.5"][2:]) < 1e-12
