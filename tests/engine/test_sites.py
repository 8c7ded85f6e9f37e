"""Sites: inputs, outputs and inputs of named modules, several at once, by call; and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from probes import Spelled
from torch import Tensor, nn

from backlight.engine import Line, Logit, Site, Unit, attribute, captured, edited, patched
from backlight.errors import InputError, SiteError, UnknownNameError
from backlight.rules import pullback, soft_pullback


class Twice(nn.Module):
    """One ReLU called twice, two inputs, a tuple on the way."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(3, 4), nn.Linear(2, 4), nn.Linear(4, 3)
        self.relu = nn.ReLU()
        self.pair = Spelled(lambda u, v: (u + v, u - v))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        u, v = self.relu(self.a(x)), self.relu(self.b(y))
        total, difference = self.pair(u, v)
        return self.head(total) + 0.1 * difference.sum(1, keepdim=True)


@pytest.fixture
def net() -> Twice:
    return Twice().double()


@pytest.fixture
def xy() -> tuple[Tensor, Tensor]:
    return torch.randn(2, 3, dtype=torch.float64), torch.randn(2, 2, dtype=torch.float64)


def test_every_site_has_the_gradient_at_it(net: Twice, xy: tuple[Tensor, Tensor]) -> None:
    x, y = (t.clone().requires_grad_() for t in xy)
    a, b = net.a(x), net.b(y)
    u, v = a.relu(), b.relu()
    total = u + v
    score = (net.head(total) + 0.1 * (u - v).sum(1, keepdim=True))[:, 1]
    sites = {
        "input#0": x, "input#1": y, "a": a, "a:input": x, "a:output": a, "b": b, "relu#0": u, "relu#1": v,
        "relu#1:input": b, "pair": total, "pair:input": u,
    }  # fmt: skip
    found = attribute(net, xy, 1, sites=list(sites))
    expected = torch.autograd.grad(score.sum(), list(sites.values()))
    assert list(found.values) == list(sites)
    for site, gradient in zip(sites, expected, strict=True):
        assert torch.allclose(found.values[site], gradient, atol=1e-12), site
    for site in sites:
        assert torch.allclose(attribute(net, xy, 1, sites=site).value, found.values[site], atol=1e-14)


def test_input_stands_for_every_input(net: Twice, xy: tuple[Tensor, Tensor]) -> None:
    found = attribute(net, xy, 1)
    assert list(found.values) == ["input#0", "input#1"]
    with pytest.raises(SiteError, match="input#0, input#1"):
        _ = found.value
    assert list(attribute(net, xy, 1, sites=("input", "a", "input")).values) == ["input#0", "input#1", "a"]


@pytest.mark.parametrize(
    ("site", "error", "words"),
    [
        ("relu", SiteError, "relu#0"),
        ("relu#2", SiteError, "2 calls"),
        ("input#2", SiteError, "input#0, input#1"),
        ("hed", UnknownNameError, "head"),
        ("a:inputs", SiteError, "NAME:input"),
        ("a#x", SiteError, "NAME#CALL"),
        ([], SiteError, "no site"),
    ],
)
def test_sites_that_are_not_there_are_refused(
    net: Twice, xy: tuple[Tensor, Tensor], site: Any, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        attribute(net, xy, 1, sites=site)


def test_a_module_that_is_not_reached_is_named(net: Twice, xy: tuple[Tensor, Tensor]) -> None:
    net.spare = nn.Linear(1, 1)
    with pytest.raises(SiteError, match=r"spare.*0 calls"):
        attribute(net, xy, 1, sites="spare")


def test_addresses_are_parsed() -> None:
    assert Site.parse("layer4.1") == Site("layer4.1", "output", None)
    assert Site.parse("relu#2:input") == Site("relu", "input", 2)


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(7, 4), nn.Linear(4, 3)

    def forward(self, ids: Tensor, scale: Tensor | None = None) -> Tensor:
        z = self.embed(ids).mean(1)
        return self.head(z if scale is None else z * scale)


def test_integers_are_explained_at_their_embedding() -> None:
    model, ids = Words().double(), torch.tensor([[1, 2, 3], [4, 5, 6]])
    with pytest.raises(InputError, match="embedding"):
        attribute(model, ids, 0)
    found = attribute(model, ids, 0, sites="embed", rules=pullback(), readout="value")
    assert torch.allclose(found.value, model.embed(ids) * model.head.weight[0] / 3)
    assert found.value.sum((1, 2)).tolist() == pytest.approx((found.scores - model.head.bias[0]).tolist())


def test_integers_beside_floats_are_passed_on() -> None:
    model, ids, scale = Words().double(), torch.tensor([[1, 2, 3]]), torch.ones(1, 4, dtype=torch.float64)
    found = attribute(model, (ids, scale), 0, sites="input#1").value
    assert torch.allclose(found, model.embed(ids).mean(1) * model.head.weight[0])
    with pytest.raises(InputError, match="input#0"):
        attribute(model, (ids, scale), 0)


def test_additional_arguments_follow_their_samples() -> None:
    model = Spelled(lambda x, weight, bias: x * weight + bias)
    x, weight = torch.randn(3, 2, dtype=torch.float64), torch.randn(3, 2, dtype=torch.float64)
    for size in (1, 2, None):
        found = attribute(model, x, 0, additional_forward_args=(weight, 2.0), internal_batch_size=size).value
        assert torch.allclose(found[:, 0], weight[:, 0])
        assert not found[:, 1].any()


def test_captured_patched_and_edited_leave_no_hooks(net: Twice, xy: tuple[Tensor, Tensor]) -> None:
    before = net(*xy)
    with captured(net, ["a", "relu#1"]) as store:
        net(*xy)
    assert torch.equal(store["a"], net.a(xy[0]))
    assert torch.equal(store["relu#1"], net.b(xy[1]).relu())
    with patched(net, {"a": torch.zeros(2, 4, dtype=torch.float64)}):
        zeroed = net(*xy)
    with patched(net, {"pair:input": lambda u: 2 * u}):
        doubled = net(*xy)
    assert not torch.equal(zeroed, before)
    u, v = net.a(xy[0]).relu(), net.b(xy[1]).relu()
    assert torch.allclose(doubled, net.head(2 * u + v) + 0.1 * (2 * u - v).sum(1, keepdim=True))
    with pytest.raises(ZeroDivisionError), edited(net, {"a": lambda z: z, "b:input": lambda z: z}):
        raise ZeroDivisionError
    for module in net.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
    assert torch.equal(net(*xy), before)


@pytest.mark.parametrize("gradients", [True, False])
def test_what_is_captured_is_not_what_is_written_over_it(gradients: bool) -> None:
    first, head = nn.Linear(3, 4).double(), nn.Linear(4, 2).double()
    model, x = nn.Sequential(first, nn.ReLU(inplace=True), head), torch.randn(5, 3, dtype=torch.float64)
    with torch.set_grad_enabled(gradients), captured(model, ["0", "1"]) as store:
        outputs = model(x)
    assert torch.equal(store["0"], first(x))
    assert torch.equal(store["1"], first(x).relu())
    if gradients:
        found = torch.autograd.grad(outputs[:, 0].sum(), [store["0"], store["1"]])
        assert torch.equal(found[0], head.weight[0] * (first(x) > 0))
        assert torch.equal(found[1], head.weight[0].expand(5, 4))


def test_a_patch_inside_a_run_is_explained(net: Twice, xy: tuple[Tensor, Tensor]) -> None:
    with patched(net, {"relu#0": lambda u: u * 0}):
        assert not attribute(net, xy, 1, sites="input#0", rules=pullback()).value.any()


@pytest.mark.parametrize("rules", [pullback(), soft_pullback("paper")], ids=lambda r: r.name)
def test_reading_a_site_does_not_change_the_input_s_explanation(rules: Any) -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, 3)).double()
    x = torch.randn(2, 2, 6, 6, dtype=torch.float64)
    alone = attribute(model, x, 1, rules=rules).value
    both = attribute(model, x, 1, rules=rules, sites=("input", "0", "1", "2"))
    assert torch.equal(both.values["input"], alone)
    from_unit = attribute(model, x, Unit("0", 1, (2, 2)), rules=rules, sites=("input", "0"))
    assert from_unit.values["0"].sum().item() == 2.0


def test_a_value_readout_on_a_line_multiplies_by_what_is_at_the_point() -> None:
    """A hidden site on a line is read at each point; for a linear network that is the mean of value x gradient."""
    model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.Linear(4, 2, bias=False)).double()
    x = torch.randn(2, 3, dtype=torch.float64)
    found = attribute(model, x, Logit(0), path=Line(8), sites="0", readout="value").value
    assert torch.allclose(found, model[0](x) * model[1].weight[0] / 2, atol=1e-12)


@pytest.mark.parametrize("in_place", [False, True])
def test_the_last_feature_map_is_read_wherever_it_comes_from(in_place: bool) -> None:
    conv, head = nn.Conv2d(2, 3, 3), nn.Linear(3, 4)
    model = nn.Sequential(conv, nn.ReLU(in_place), nn.AdaptiveAvgPool2d(1), nn.Flatten(), head).double()
    x = torch.randn(2, 2, 5, 5, dtype=torch.float64)
    found = attribute(model, x, 1, sites="@features", readout="value_over_space").value
    expected = conv(x).relu().mean((2, 3)) * head.weight[1]
    assert torch.allclose(found, expected, atol=1e-12)
    both = attribute(model, x, 1, sites=("@features", "input"))
    assert set(both.values) == {"@features", "input"}
    assert torch.equal(both.values["input"], attribute(model, x, 1).value)


def test_a_model_without_feature_map_asks_for_a_layer() -> None:
    with pytest.raises(SiteError, match="name a layer"):
        attribute(nn.Linear(3, 2), torch.randn(1, 3), 0, sites="@features")
