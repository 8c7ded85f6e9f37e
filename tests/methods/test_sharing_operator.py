"""The operator of sharing ratios: receptive fields, adjointness, cancellation, leaks, and what it refuses."""

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

from backlight import SRD
from backlight.errors import InputError, SiteError, UnknownNameError
from backlight.methods.sharing_operator import SharingOperator

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")

BIASES = ("norm", "uniform", "drop")
SAMPLES = ("vgg", "overlapping_pools", "resnet_basic", "residual_of_one_layer", "densenet", "efficientnet", "one_axis",
           "positions_moved")  # fmt: skip


def prepared(
    kind: str, bias: str = "norm", seed: int = 6, act: str = "silu"
) -> tuple[SharingOperator, list[Reference]]:
    network = KINDS[kind](act, seed)
    x = pictures(network)
    operator = SRD(Drawn(network), head="raw", bias=bias).prepare(x)
    return operator, [Reference(network, picture, bias) for picture in x]


def layers(operator: SharingOperator, reference: Reference) -> dict[str, int]:
    """Node of the reference by name, of the values that are activations, sums and concatenations."""
    named = {}
    for n, (kind, *_) in enumerate(reference.network.steps):
        node = reference.at[n + 1]
        if kind in ("act", "add", "cat") and node is not None and f"steps.{n}" in operator.names:
            named[f"steps.{n}"] = node
    assert len(named) > 1
    return named


def stacked(references: list[Reference], value: str, node: int) -> Tensor:
    return torch.from_numpy(np.stack([getattr(r.nodes[node], value) for r in references]))


# receptive fields


@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize("kind", SAMPLES)
def test_fields_propagated_back_are_those_of_the_forward_recursion(kind: str, bias: str) -> None:
    """Appendix VII-B: multiplication from the left by E^j, and from the right from iERF(p) = E^p on, layer by layer."""
    operator, references = prepared(kind, bias)
    for layer, node in layers(operator, references[0]).items():
        expected = torch.from_numpy(np.stack([r.fields(node) for r in references]))
        found = operator.ierf(layer)
        assert found.shape == (2, expected.shape[1], *operator.size("input"))
        assert relative(found.flatten(2), expected) < 1e-10, layer


@pytest.mark.parametrize("bias", ["norm", "uniform"])
@pytest.mark.parametrize("kind", SAMPLES)
def test_every_field_sums_to_one(kind: str, bias: str) -> None:
    operator, references = prepared(kind, bias)
    for layer in layers(operator, references[0]):
        assert (operator.ierf(layer).flatten(2).sum(2) - 1).abs().max() < 1e-10, layer
        assert (operator.ierf(layer, channel=[0, 1]).flatten(2).sum(2) - 1).abs().max() < 1e-9, layer
        width = dict(zip((f"steps.{n}" for n in range(99)), operator_widths(references[0]), strict=False))[layer]
        fields = operator.ierf(layer, direction=torch.randn(3, width, dtype=torch.float64))
        assert fields.shape[1] == 3
        assert (fields.flatten(2).sum(2) - 1).abs().max() < 1e-9, layer


def operator_widths(reference: Reference) -> list[int]:
    return [reference.network.width(n + 1) for n in range(len(reference.network.steps))]


def test_fields_of_chosen_positions_and_between_layers() -> None:
    operator, references = prepared("resnet_basic")
    height, width = operator.size("steps.9")
    every = operator.ierf("steps.9")
    some = operator.ierf("steps.9", [(0, 1), (height - 1, 2)])
    assert torch.equal(some, every[:, [1, (height - 1) * width + 2]])
    assert torch.equal(operator.ierf("steps.9", [3, 0]), every[:, [3, 0]])
    assert torch.equal(operator.ierf("steps.9", torch.tensor([[1, 0]])), every[:, [width]])
    for size in (1, 3, 1000):
        assert relative(operator.ierf("steps.9", batch_size=size), every) < 1e-12
    middle = operator.ierf("steps.9", to="steps.2")
    assert middle.shape[2:] == operator.size("steps.2")
    through = torch.einsum("njp,npi->nji", middle.flatten(2), operator.ierf("steps.2").flatten(2))
    assert relative(through, every.flatten(2)) < 1e-10  # matrices of segments multiply
    assert relative(operator.ierf("input", [4]).flatten(2), torch.eye(49, dtype=torch.float64)[4].expand(2, 1, -1)) == 0
    assert references[0].nodes[0].size == (7, 7)


def test_the_field_of_a_channel_is_the_mean_of_fields_that_it_weighs() -> None:
    operator, references = prepared("densenet", act="elu")
    layer = list(layers(operator, references[0]))[-1]
    number = int(layer.split(".")[1]) + 1
    values = torch.from_numpy(np.stack([r.values[number].array for r in references]))  # [N, C, P]
    fields = operator.ierf(layer).flatten(2)
    weights = values / values.sum(2, keepdim=True)
    assert relative(operator.ierf(layer, channel=2).flatten(2), weights[:, 2:3] @ fields) < 1e-10
    direction = torch.randn(values.shape[1], dtype=torch.float64)
    along = torch.einsum("c,ncp->np", direction, values)
    expected = (along / along.sum(1, keepdim=True))[:, None] @ fields
    assert relative(operator.ierf(layer, direction=direction).flatten(2), expected) < 1e-10
    unit = torch.zeros(values.shape[1], dtype=torch.float64)
    unit[2] = 5.0
    assert relative(operator.ierf(layer, direction=unit), operator.ierf(layer, channel=2)) < 1e-12


# multiplication from the left and from the right


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10**6), act=st.sampled_from(list(ACTIVATIONS)), bias=st.sampled_from(BIASES),
    count=st.integers(1, 3),
)  # fmt: skip
def test_spread_is_the_adjoint_of_relevance(seed: int, act: str, bias: str, count: int) -> None:
    network = program(seed, act)
    x = pictures(network)
    operator = SRD(Drawn(network), bias=bias).prepare(x)
    ends = ["@features", *list(operator.names)[:2]]
    for end in ends:
        relevance = network.draw(2, count, *operator.size(end))
        values = network.draw(2, count, *network.size)
        left = (operator.spread(values, to=end) * relevance).flatten(1).sum(1)
        right = (values * operator.relevance(relevance, at=end)).flatten(1).sum(1)
        assert (left - right).abs().max() < 1e-10 * max(1.0, right.abs().max().item())


def test_spread_of_a_mask_says_how_much_of_each_vector_comes_from_it() -> None:
    operator, _ = prepared("resnet_basic", act="relu", seed=3)
    mask = torch.zeros(2, 7, 7, dtype=torch.float64)
    mask[:, :3] = 1
    found = operator.spread(mask, to="steps.9")
    expected = operator.ierf("steps.9").flatten(2)[:, :, :21].sum(2).view_as(found)
    assert relative(found, expected) < 1e-10
    assert relative(operator.spread(torch.ones_like(mask)), torch.ones_like(operator.spread(mask))) < 1e-10
    several = operator.spread(torch.stack([mask, 1 - mask], 1), to="steps.9")
    assert several.shape[:2] == (2, 2)
    assert relative(several.sum(1), torch.ones_like(found)) < 1e-10


def test_relevance_is_linear_in_its_seed_and_takes_several() -> None:
    operator, references = prepared("vgg_bn", act="relu")
    size = operator.size("@features")
    seeds = torch.randn(2, 5, *size, dtype=torch.float64)
    found = operator.relevance(seeds)
    assert found.shape == (2, 5, 6, 6)
    for n in range(5):
        assert relative(operator.relevance(seeds[:, n]), found[:, n]) < 1e-12
    assert relative(operator.relevance(seeds.sum(1)), found.sum(1)) < 1e-12
    node = references[0].at[-1]
    assert node is not None
    expected = [references[0].relevance(seed.numpy(), node) for seed in seeds[0]]
    assert relative(found[0].flatten(1), torch.from_numpy(np.stack(expected))) < 1e-10


# diagnostics


@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize("kind", [name for name in KINDS if name != "dilated_and_grouped"])
def test_ratios_sum_to_one_unless_biases_are_dropped(kind: str, bias: str) -> None:
    operator, references = prepared(kind, bias)
    lost = 0.0
    for layer, node in layers(operator, references[0]).items():
        leak = operator.leak(layer)
        expected = 1 - stacked(references, "total", node)
        if bias != "drop":
            assert leak.abs().max() < 1e-10, layer
            assert expected.abs().max() < 1e-10, layer
        elif not follows_a_sum(references[0], layer):
            assert relative(leak.flatten(1), expected) < 1e-10, layer
            lost = max(lost, leak.abs().max().item())
    assert (lost > 1e-3) == (bias == "drop")


def follows_a_sum(reference: Reference, layer: str) -> bool:
    """Whether a layer is an activation of a sum: its diagnostics are the sum's."""
    kind, (x, *_), _ = reference.network.steps[int(layer.split(".")[1])]
    return kind == "act" and x > 0 and reference.network.steps[x - 1][0] in ("add", "cat")


def test_a_position_with_one_source_cancels_nothing() -> None:
    """A convolution of one tap: mu = 1, whatever cancelled in its source."""
    operator, references = prepared("efficientnet")
    assert references[0].network.steps[3][2]["weight"].shape[2:] == (1, 1)
    assert torch.equal(operator.cancellation("steps.5"), torch.ones(2, 5, 5, dtype=torch.float64))
    assert (operator.cancellation("steps.2") > 1 + 1e-3).any()


@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize("kind", SAMPLES)
def test_cancellation_is_the_sum_of_magnitudes(kind: str, bias: str) -> None:
    operator, references = prepared(kind, bias)
    largest = 0.0
    for layer, node in layers(operator, references[0]).items():
        found = operator.cancellation(layer)
        total = 1 - operator.leak(layer)
        assert (found >= total.abs() - 1e-12).all()
        if not follows_a_sum(references[0], layer):
            assert relative(found.flatten(1), stacked(references, "magnitude", node)) < 1e-10, layer
        largest = max(largest, (found - total.abs()).max().item())
    assert largest > 1e-3


def test_an_activation_of_a_sum_has_the_diagnostics_of_the_sum() -> None:
    operator, references = prepared("resnet_basic")
    largest = 0.0
    sums = [f"steps.{n}" for n, (kind, *_) in enumerate(references[0].network.steps) if kind == "add"]
    assert len(sums) == 2
    for layer in sums:
        after = f"steps.{int(layer.split('.')[1]) + 1}"
        assert follows_a_sum(references[0], after)
        assert torch.equal(operator.cancellation(after), operator.cancellation(layer))
        assert torch.equal(operator.leak(after), operator.leak(layer))
        largest = max(largest, operator.cancellation(layer).max().item())
    assert largest > 1 + 1e-3


def test_a_zero_vector_leaks_everything() -> None:
    network = Network(2, (6, 6), 3)
    x = network.act(network.conv(0, 3), "relu")
    network.act(network.conv(x, 3), "relu")
    pixels = pictures(network)
    pixels[0, :, :, :4] = 0
    operator = SRD(Drawn(network), head="raw").prepare(pixels)
    leak = operator.leak("steps.1")
    assert torch.equal(leak[0, :, :3], torch.ones(6, 3, dtype=torch.float64))  # windows that see nothing
    assert leak[0, :, 3:].abs().max() < 1e-10
    assert leak[1].abs().max() < 1e-10
    assert torch.isfinite(operator.ierf("steps.3")).all()
    assert torch.equal(operator.ierf("steps.1", [0]), torch.cat([torch.zeros(1, 1, 6, 6, dtype=torch.float64),
                                                                 operator.ierf("steps.1", [0])[1:]]))  # fmt: skip
    no_bias = nn.Sequential(nn.Conv2d(2, 3, 3, bias=False), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).double()
    zero = SRD(no_bias).prepare(torch.zeros(1, 2, 6, 6, dtype=torch.float64))
    assert torch.equal(zero.leak("1"), torch.ones(1, 4, 4, dtype=torch.float64))  # z = 0
    assert (zero.relevance(torch.ones(1, 4, 4)) == 0).all()


# what it keeps, and what it refuses


@pytest.mark.parametrize("kind", ["vgg_bn", "densenet", "efficientnet", "residual_of_one_layer"])
def test_a_batch_is_its_samples(kind: str) -> None:
    network = KINDS[kind]("gelu", 7)
    model, x = Drawn(network), pictures(network, 3)
    whole = SRD(model).prepare(x)
    for n in range(3):
        single = SRD(model).prepare(x[n : n + 1])
        assert relative(single.seed(2), whole.seed(2)[n : n + 1]) < 1e-12
        assert relative(single.ierf("@features"), whole.ierf("@features")[n : n + 1]) < 1e-12
        assert relative(single.cancellation("@features"), whole.cancellation("@features")[n : n + 1]) < 1e-12


def test_nothing_is_left_on_the_model_and_nothing_needs_gradients() -> None:
    network = KINDS["resnet_bottleneck"]("relu", 0)
    model, x = Drawn(network), pictures(network)
    hooks = [len(module._forward_hooks) for module in model.modules()]
    plain = model(x)
    operator = SRD(model).prepare(x)
    assert [len(module._forward_hooks) for module in model.modules()] == hooks
    assert torch.equal(model(x), plain)
    assert torch.equal(operator.outputs, plain)
    assert [p.grad for p in model.parameters()] == [None] * len(list(model.parameters()))
    for value in (operator.seed(1), operator.relevance(operator.seed(1)), operator.ierf("@features", [0])):
        assert not value.requires_grad
    assert all(not edge.ratios.requires_grad for edges in operator.edges.values() for edge in edges
               if edge.ratios is not None)  # fmt: skip
    assert not x.requires_grad
    seeds = [operator.seed(c) for c in range(5)]  # the head can be asked again and again
    assert relative(operator.seed(0), seeds[0]) == 0


def test_single_precision_agrees_with_double() -> None:
    network = KINDS["resnet_bottleneck"]("relu", 0)
    model, x = Drawn(network), pictures(network)
    double = SRD(model, head="mean").prepare(x)
    expected = double.relevance(double.seed(1))
    for kind, settings_ in (*network_weights(network),):
        settings_[kind] = settings_[kind].float()
    single = SRD(model.float(), head="mean").prepare(x.float())
    found = single.relevance(single.seed(1))
    assert found.dtype == torch.float32
    assert relative(found.double(), expected) < 1e-4


def network_weights(network: Network) -> list[tuple[str, dict]]:
    return [(key, s) for _, _, s in network.steps for key, value in s.items() if isinstance(value, Tensor)]


def test_what_does_not_fit_is_refused() -> None:
    operator, _ = prepared("resnet_basic")
    size = operator.size("@features")
    with pytest.raises(InputError, match=r"a map is \[N, \*space\].*space \[2, 2\]; got \[2, 3, 3\]"):
        operator.relevance(torch.ones(2, 3, 3))
    with pytest.raises(InputError, match="N = 2"):
        operator.relevance(torch.ones(1, *size))
    with pytest.raises(InputError, match="a map is"):
        operator.spread(torch.ones(2, 6, 6))
    for wrong in ([(2, 0)], [(-1, 0)], [4], [-1], [0.5], [(0, 0.5)]):
        with pytest.raises(InputError, match=r"positions are pairs or numbers within \[2, 2\]"):
            operator.ierf("@features", wrong)
    with pytest.raises(UnknownNameError, match=r"unknown layer 'steps\.99'"):
        operator.ierf("steps.99")
    with pytest.raises(UnknownNameError, match=r"close matches: .*@features"):
        operator.relevance(torch.ones(2, *size), at="features")
    with pytest.raises(SiteError, match=r"'steps\.0' gives no feature map"):
        operator.ierf("steps.0")
    with pytest.raises(InputError, match=r"channel 9 is out of range: 'steps\.2' has 4 channels"):
        operator.ierf("steps.2", channel=9)
    with pytest.raises(InputError, match=r"a direction in 'steps\.2' has 4 entries, not 3"):
        operator.ierf("steps.2", direction=torch.ones(3))
    with pytest.raises(InputError, match="of positions, or of a channel or direction"):
        operator.ierf("steps.2", [0], channel=0)
    with pytest.raises(SiteError, match=r"'steps\.2' does not depend on 'steps\.9'"):
        operator.spread(torch.ones(2, *operator.size("steps.9")), to="steps.2", at="steps.9")


def test_a_direction_along_which_nothing_lies_is_refused() -> None:
    network = Network(2, (6, 6), 3)
    network.act(network.conv(0, 3), "relu")
    network.steps[0][2]["bias"][1] = -100.0
    operator = SRD(Drawn(network)).prepare(pictures(network))
    with pytest.raises(InputError, match=r"nothing of 'steps\.1' lies along"):
        operator.ierf("steps.1", channel=1)
    assert torch.isfinite(operator.ierf("steps.1", channel=0)).all()
