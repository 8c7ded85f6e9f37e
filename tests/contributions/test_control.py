"""Control: exact edits, no trace, the engine inside, fills, several sites, what is refused."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import backlight
from backlight.contributions.control import (
    ChannelEdit,
    control,
    donors,
    mean_of_rows,
    site_means,
    site_values,
)
from backlight.contributions.reduction import Layout
from backlight.engine import attribute
from backlight.errors import InputError, SiteError, UnknownNameError
from backlight.rules import rule_set
from backlight.store.rows import TensorRows


class Net(nn.Module):
    """Convolutions, one ReLU for all that works in place, a module that gives a tuple, a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 5, 3, stride=2)
        self.relu, self.pair, self.head = nn.ReLU(inplace=True), Pair(), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.second(self.relu(self.first(x))))
        both = self.pair(x)
        return self.head((both[0] + both[1]).mean((2, 3)))


class Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x * 2, x - 1


class Tokens(nn.Module):
    """A class token and patches through one MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.randn(1, 1, 6))
        self.fc1, self.fc2, self.head = nn.Linear(6, 8), nn.Linear(8, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat((self.cls_token.expand(len(x), -1, -1), x), 1)
        x = x + self.fc2(torch.tanh(self.fc1(x)))
        return self.head(x[:, 0] + x[:, 1:].mean(1))


@pytest.fixture
def net() -> Net:
    return Net().double().eval()


@pytest.fixture
def x() -> Tensor:
    return torch.randn(3, 3, 8, 8, dtype=torch.float64)


def traces(model: nn.Module) -> list[Any]:
    """All that could be left on a model."""
    parts = [
        (sorted(vars(m)), m.training, len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks))
        for m in model.modules()
    ]
    return [parts, {name: (p.requires_grad, p.grad is None) for name, p in model.named_parameters()}]


def literal(net: Net, x: Tensor, removed: list[int], fill: Tensor) -> Tensor:
    """The network with channels of its first convolution replaced, entry by entry."""
    y = net.first(x).clone()
    for sample in range(len(y)):
        for channel in removed:
            for row in range(y.shape[2]):
                for column in range(y.shape[3]):
                    y[sample, channel, row, column] = fill[sample, channel, row, column]
    return net.head(sum_of(net, torch.relu(net.second(torch.relu(y)))))


def sum_of(net: Net, x: Tensor) -> Tensor:
    both = net.pair(x)
    return (both[0] + both[1]).mean((2, 3))


@pytest.mark.parametrize("action", ["ablate", "preserve"])
@pytest.mark.parametrize("fill", ["zero", "mean", "mean by position", "resample"])
def test_edit_is_the_literal_loop(net: Net, x: Tensor, action: str, fill: str) -> None:
    reference = torch.randn(4, 3, 8, 8, dtype=torch.float64)
    there = net.first(reference).detach()
    successor = donors([7, 1, 2], 4, seed=5)
    fills = {
        "zero": torch.zeros(3, 6, 8, 8).double(),
        "mean": there.mean((0, 2, 3)).reshape(1, 6, 1, 1).expand(3, 6, 8, 8),
        "mean by position": there.mean(0, keepdim=True).expand(3, 6, 8, 8),
        "resample": there[successor],
    }
    values = {
        "zero": None,
        "mean": site_means(net, reference, ["first"])["first"],
        "mean by position": site_means(net, reference, ["first"], positions=True)["first"],
        "resample": site_values(net, reference.split(3), ["first"])["first"],
    }[fill]
    edit = ChannelEdit([4, 0], action, fill.split()[0], values, seed=5)
    removed = [0, 4] if action == "ablate" else [1, 2, 3, 5]
    with torch.no_grad(), control(net, {"first": edit}, samples=[7, 1, 2]):
        found = net(x)
    assert torch.allclose(found, literal(net, x, removed, fills[fill]), atol=1e-12)
    assert not torch.allclose(found, net(x))


@settings(deadline=None, max_examples=30)
@given(st.sets(st.integers(0, 8)), st.integers(9, 12))
def test_to_preserve_is_to_ablate_the_others(channels: set[int], width: int) -> None:
    chosen = sorted(channels)
    others = [channel for channel in range(width) if channel not in channels]
    assert torch.equal(ChannelEdit(chosen, "preserve").removed(width), ChannelEdit(others, "ablate").removed(width))
    value = torch.randn(2, width, 3)
    maps = Layout("maps")
    kept, gone = (ChannelEdit(chosen, action).applied(value, maps) for action in ("preserve", "ablate"))
    assert torch.equal(kept + gone, value)


def test_several_sites_at_once_are_one_after_another(net: Net, x: Tensor) -> None:
    edits = {"first": ChannelEdit([1]), "second": ChannelEdit([0, 2]), "head:input": ChannelEdit([3])}
    with control(net, edits):
        together = net(x)
    one, two, three = ({site: edits[site]} for site in ("head:input", "second", "first"))
    with control(net, one), control(net, two), control(net, three):
        assert torch.equal(together, net(x))
    y = net.first(x)
    y[:, 1] = 0
    y = net.second(y.relu())
    y[:, [0, 2]] = 0
    y = sum_of(net, y.relu())
    y[:, 3] = 0
    assert torch.allclose(together, net.head(y), atol=1e-12)


def test_call_numbers_start_anew_in_each_forward_pass(net: Net, x: Tensor) -> None:
    edit = ChannelEdit([0, 1])
    y = net.second(net.first(x).relu()).relu()
    y[:, :2] = 0
    expected = net.head(sum_of(net, y))
    with control(net, {"relu#1": replace_layout(edit)}):
        for _ in range(3):
            assert torch.allclose(net(x), expected, atol=1e-12)
    with control(net, {"second:input": edit}):
        other = net(x)
    with control(net, {"relu#0": replace_layout(edit)}):
        assert torch.equal(net(x), other)


def replace_layout(edit: ChannelEdit) -> ChannelEdit:
    return ChannelEdit(edit.channels, edit.action, layout="maps")


def test_first_tensor_of_a_tuple(net: Net, x: Tensor) -> None:
    features = net.second(net.first(x).relu()).relu()
    first, second = net.pair(features)
    first = first.clone()
    first[:, 2] = 0
    with control(net, {"pair": ChannelEdit([2], layout="maps")}):
        assert torch.allclose(net(x), net.head((first + second).mean((2, 3))), atol=1e-12)


@pytest.mark.parametrize("class_token", [True, False])
def test_tokens_are_edited_on_the_last_axis(class_token: bool) -> None:
    net, x = Tokens().double(), torch.randn(2, 4, 6).double()
    tokens = torch.cat((net.cls_token.expand(2, -1, -1), x), 1)
    hidden = torch.tanh(net.fc1(tokens))
    hidden[:, 0 if class_token else 1 :, [1, 6]] = 0
    y = tokens + net.fc2(hidden)
    edit = ChannelEdit([6, 1], class_token=class_token)
    with control(net, {"fc2:input": edit}):
        assert torch.allclose(net(x), net.head(y[:, 0] + y[:, 1:].mean(1)), atol=1e-12)


def test_nothing_is_left(net: Net, x: Tensor) -> None:
    before, weights, state = traces(net), copy.deepcopy(net.state_dict()), torch.random.get_rng_state()
    edit = ChannelEdit([1], fill="resample", values=site_values(net, x, ["first"])["first"])
    site_means(net, x, ["first", "head:input"])
    expected = net(x)
    with control(net, {"first": edit}):
        with control(net, {"second": ChannelEdit([0])}):
            net(x)
        assert not torch.equal(net(x), expected)
    for wrong in ({"first": ChannelEdit([60])}, {"first": ChannelEdit([1]), "nowhere": edit}):
        with pytest.raises((InputError, UnknownNameError)), control(net, wrong):
            net(x)
    with pytest.raises(KeyboardInterrupt):
        interrupted(net, {"first": edit}, x)
    assert traces(net) == before
    assert torch.equal(net(x), expected)
    assert all(torch.equal(weights[name], value) for name, value in net.state_dict().items())
    assert torch.equal(state, torch.random.get_rng_state())


def interrupted(net: Net, edits: dict[str, ChannelEdit], x: Tensor) -> None:
    with control(net, edits):
        net(x)
        raise KeyboardInterrupt


@pytest.mark.parametrize("numbers", [None, [11, 4, 0, 9, 4]])
def test_a_sample_does_not_depend_on_its_batch_mates(net: Net, numbers: list[int] | None) -> None:
    x = torch.randn(5, 3, 8, 8).double()
    values = site_values(net, torch.randn(6, 3, 8, 8).double(), ["first"])["first"]
    edits = {"first": ChannelEdit([0, 1, 2, 3], fill="resample", values=values, seed=3)}
    with torch.no_grad(), control(net, edits, numbers):
        whole = net(x)
    for place in range(5):
        one = None if numbers is None else [numbers[place]]
        with torch.no_grad(), control(net, edits, one):
            assert torch.allclose(net(x[place : place + 1])[0], whole[place], atol=1e-12)
    order = [3, 1, 4, 0, 2]
    with torch.no_grad(), control(net, edits, numbers and [numbers[place] for place in order]):
        assert torch.allclose(net(x[order]), whole[order], atol=1e-12)


@settings(deadline=None, max_examples=40)
@given(st.integers(2, 30), st.integers(0, 5))
def test_donors_are_a_cycle_through_all_references(count: int, seed: int) -> None:
    found = donors(range(count), count, seed)
    assert sorted(found.tolist()) == list(range(count))
    assert not (found == torch.arange(count)).any()
    assert torch.equal(donors(range(count, 2 * count), count, seed), found)
    at = 0
    for step in range(1, count + 1):
        at = int(found[at])
        assert (at == 0) == (step == count)


def test_rules_are_active_inside_a_controlled_network(net: Net, x: Tensor) -> None:
    means = site_means(net, x, ["second"])["second"]
    edits = {"second": ChannelEdit([0, 3], fill="mean", values=means)}
    mask = torch.tensor([0, 1, 1, 0, 1]).double().reshape(1, 5, 1, 1)

    class Written(nn.Module):
        """The same network with the edit written in."""

        def __init__(self) -> None:
            super().__init__()
            self.net = copy.deepcopy(net)

        def forward(self, x: Tensor) -> Tensor:
            y = self.net.second(self.net.relu(self.net.first(x)))
            y = torch.where(mask > 0, y, means.reshape(1, 5, 1, 1))
            return self.net.head(sum_of(self.net, self.net.relu(y)))

    for name in ("gradient", "pullback", "soft_pullback", "guided"):
        with control(net, edits):
            found = attribute(net, x, 1, rules=rule_set(name), sites=("input", "first"), bias=name == "gradient")
        expected = attribute(Written(), x, 1, rules=rule_set(name), sites=("input", "net.first"))
        assert torch.allclose(found.values["input"], expected.values["input"], atol=1e-12), name
        assert torch.allclose(found.values["first"], expected.values["net.first"], atol=1e-12), name
        assert found.values["input"].abs().max() > 0
    with control(net, edits):
        total = attribute(net, x, 1, readout="value", bias=True)
    assert total.bias is not None
    assert total.scores is not None
    assert torch.allclose(total.value.flatten(1).sum(1) + total.bias, total.scores, atol=1e-10)


def test_methods_explain_a_controlled_network(net: Net, x: Tensor) -> None:
    with control(net, {"first": ChannelEdit([1, 2])}):
        inside = backlight.IntegratedGradients(net, n_steps=5).attribute(x, target=2)
    assert not torch.allclose(inside, backlight.IntegratedGradients(net, n_steps=5).attribute(x, target=2))
    with control(net, {"first": ChannelEdit([], "preserve")}):
        nothing = backlight.IntegratedGradients(net, n_steps=5).attribute(x, target=2)
    assert torch.equal(nothing, torch.zeros_like(x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(net: Net, x: Tensor, dtype: torch.dtype) -> None:
    half, means = copy.deepcopy(net).to(dtype), site_means(net, x, ["first"])["first"]
    assert means.dtype == torch.float64
    with torch.no_grad(), control(half, {"first": ChannelEdit([0], fill="mean", values=means)}):
        found = half(x.to(dtype))
    assert found.dtype == dtype
    with torch.no_grad(), control(net, {"first": ChannelEdit([0], fill="mean", values=means)}):
        assert torch.allclose(found.double(), net(x), atol=0.05)


def test_infinite_activations_that_are_removed_leave_no_nan() -> None:
    value = torch.ones(1, 2, 2).masked_fill(torch.tensor([[[True], [False]]]), torch.inf).requires_grad_()
    out = ChannelEdit([0]).applied(value, Layout("maps"))
    out.sum().backward()
    assert torch.equal(out, torch.tensor([[[0.0, 0.0], [1.0, 1.0]]]))
    assert torch.equal(value.grad, out.detach())


def test_means_of_a_store_are_those_of_the_network(net: Net, x: Tensor) -> None:
    rows = net.first(x).detach().sum((2, 3))
    assert torch.allclose(mean_of_rows(TensorRows(rows.float()), 64), site_means(net, x, ["first"])["first"], atol=1e-6)
    several = site_means(net, x.split(2), {"first": "maps", "relu#1": "maps"})
    assert torch.allclose(several["first"], net.first(x).mean((0, 2, 3)), atol=1e-12)
    assert torch.allclose(several["relu#1"], net.second(net.first(x).relu()).relu().mean((0, 2, 3)), atol=1e-12)


def test_values_are_those_before_later_calls_write_to_them(net: Net, x: Tensor) -> None:
    assert torch.equal(site_values(net, x, ["first"])["first"], net.first(x).detach())  # the ReLU works in place


def test_what_is_refused(net: Net, x: Tensor) -> None:
    with pytest.raises(UnknownNameError, match="ablate"):
        ChannelEdit([0], "ablte")
    with pytest.raises(UnknownNameError, match="resample"):
        ChannelEdit([0], fill="resampled")
    with pytest.raises(InputError, match="needs values"):
        ChannelEdit([0], fill="mean")
    with pytest.raises(InputError, match="no use"):
        ChannelEdit([0], values=torch.zeros(3))
    for wrong in ([0, 0], [-1]):
        with pytest.raises(InputError, match="channels are"):
            ChannelEdit(torch.tensor(wrong))
    cases = [
        ("first", ChannelEdit([6]), "channel 6 .* 0 to 5"),
        ("first", ChannelEdit([0], fill="mean", values=torch.zeros(5)), "fit no site"),
        ("first", ChannelEdit([0], fill="resample", values=torch.zeros(2, 6, 4, 4)), "to resample"),
    ]
    for site, edit, text in cases:
        with pytest.raises(InputError, match=text), control(net, {site: edit}):
            net(x)
    values = torch.zeros(2, 6, 8, 8)
    with (
        pytest.raises(InputError, match="2 numbers"),
        control(net, {"first": ChannelEdit([0], fill="resample", values=values)}, [0, 1]),
    ):
        net(x)
    with pytest.raises(UnknownNameError, match="first"), control(net, {"frist": ChannelEdit([0])}):
        net(x)
    with pytest.raises(SiteError, match="not reached"), control(net, {"relu#7": ChannelEdit([0], layout="maps")}):
        net(x)
    with pytest.raises(SiteError, match="several times"):
        site_means(net, x, {"relu": "maps"})


def test_attention_that_never_calls_its_projection_is_no_silent_success() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    edit = ChannelEdit([0], layout="tokens")
    with pytest.raises(SiteError, match="not reached"), control(layer, {"self_attn.out_proj:input": edit}):
        layer(torch.randn(2, 3, 8))
