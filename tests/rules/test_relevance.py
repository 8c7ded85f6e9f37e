"""Relevance rules against plain matrix algebra: each layer as an explicit matrix, contribution by contribution."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from probes import Spelled, pulled
from torch import Tensor, nn
from torch.nn import functional as F

from backlight.engine import GRADIENT, Rule, RuleSet, attribute
from backlight.errors import InputError
from backlight.methods import method
from backlight.rules.attn_lrp import attn_lrp
from backlight.rules.composites import Composite, FoldedNormRule
from backlight.rules.first_layer import FlatRule, InputRule, WSquareRule, ZBoxRule
from backlight.rules.relevance import AlphaBetaRule, EpsilonRule, GammaRule, ZPlusRule

# contributions [out, in], bias [out], relevance [out] -> relevance [in]
Shared = Callable[[Tensor, Tensor, Tensor], Tensor]


def over(a: Tensor, b: Tensor) -> Tensor:
    return torch.where(b == 0, 0.0, a / torch.where(b == 0, 1.0, b))


def epsilon(eps: float) -> Shared:
    def share(z: Tensor, b: Tensor, r: Tensor) -> Tensor:
        y = z.sum(1) + b
        return (z * over(r, y + eps * torch.where(y < 0, -1.0, 1.0).to(y))[:, None]).sum(0)

    return share


def gamma(gamma: float) -> Shared:
    def share(z: Tensor, b: Tensor, r: Tensor) -> Tensor:
        sign = torch.where(z.sum(1) + b < 0, -1.0, 1.0)[:, None]
        more = z + gamma * sign * (sign * z).clamp(min=0)
        bias = b + gamma * sign[:, 0] * (sign[:, 0] * b).clamp(min=0)
        return (more * over(r, more.sum(1) + bias)[:, None]).sum(0)

    return share


def alpha_beta(alpha: float, beta: float) -> Shared:
    def share(z: Tensor, b: Tensor, r: Tensor) -> Tensor:
        total = torch.zeros(z.shape[1], dtype=z.dtype)
        for row, bias, relevance in zip(z, b, r, strict=True):
            plus, minus = row.clamp(min=0), row.clamp(max=0)
            p, n = plus.sum() + bias.clamp(min=0), minus.sum() + bias.clamp(max=0)
            if p > 0 and n < 0:
                total += (alpha * plus / p - beta * minus / n) * relevance
            elif p > 0:
                total += plus / p * relevance
            elif n < 0:
                total += minus / n * relevance
        return total

    return share


RULES: dict[str, tuple[Rule, Shared]] = {
    "epsilon": (EpsilonRule(0.01), epsilon(0.01)),
    "epsilon 0": (EpsilonRule(0.0), epsilon(0.0)),
    "gamma": (GammaRule(0.25), gamma(0.25)),
    "large gamma": (GammaRule(100.0), gamma(100.0)),
    "z-plus": (ZPlusRule(), alpha_beta(1, 0)),
    "alpha-beta 1 0": (AlphaBetaRule(1, 0), alpha_beta(1, 0)),
    "alpha-beta 2 1": (AlphaBetaRule(2, 1), alpha_beta(2, 1)),
}


def answering(rule: Rule) -> RuleSet:
    return RuleSet("tested", dict.fromkeys(("linear", "conv", "conv_transpose"), rule))


def matrix(layer: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """W `[out, in]` and b `[out]` of an affine function of one sample."""
    zero = torch.zeros(1, *shape, dtype=torch.float64)
    with torch.no_grad():
        bias = layer(zero).flatten()
        basis = torch.eye(zero.numel(), dtype=torch.float64).reshape(-1, *shape)
        weight = torch.stack([layer(one[None]).flatten() - bias for one in basis], 1)
    return weight, bias


def in_matrices(layer: Callable[[Tensor], Tensor], x: Tensor, g: Tensor, share: Shared) -> Tensor:
    """The relevance of x, sample by sample, given the cotangent g of the output."""
    weight, bias = matrix(layer, tuple(x.shape[1:]))
    rows = []
    for one, cotangent in zip(x, g, strict=True):
        z = weight * one.flatten()
        rows.append(share(z, bias, (z.sum(1) + bias) * cotangent.flatten()).reshape(one.shape))
    return torch.stack(rows)


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[nn.Module, tuple[int, ...]]:
    """A small convolution of any kind and the shape of what it takes."""
    rank, groups = draw(st.sampled_from([1, 2, 2, 3])), draw(st.sampled_from([1, 2]))
    kernel, stride, dilation = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 2))
    transposed, bias = draw(st.booleans()), draw(st.booleans())
    inputs, outputs = groups * draw(st.integers(1, 2)), groups * draw(st.integers(1, 2))
    size = tuple(draw(st.integers(dilation * (kernel - 1) + 1, 6 if rank < 3 else 5)) for _ in range(rank))
    torch.manual_seed(draw(st.integers(0, 999)))
    if transposed:
        cls = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[rank - 1]
        extra = 0 if stride == 1 else draw(st.integers(0, 1))
        layer = cls(inputs, outputs, kernel, stride, 0, extra, groups, bias, dilation)
    else:
        cls = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[rank - 1]
        padding = draw(st.sampled_from(["same", "valid", 0, 1])) if stride == 1 else draw(st.integers(0, 1))
        layer = cls(inputs, outputs, kernel, stride, padding, dilation, groups, bias)
    return layer.double(), (inputs, *size)


def values(shape: tuple[int, ...], signed: bool) -> Tensor:
    """Two samples with some exact zeros."""
    x = torch.randn(2, *shape, dtype=torch.float64)
    x = torch.where(torch.rand_like(x) < 0.2, 0.0, x)
    return x if signed else x.clamp(min=0)


@pytest.mark.parametrize("name", RULES)
@given(convolutions(), st.booleans())
@settings(max_examples=25, deadline=None)
def test_a_convolution_shares_as_its_matrix(name: str, made: tuple[nn.Module, tuple[int, ...]], signed: bool) -> None:
    rule, share = RULES[name]
    layer, shape = made
    x = values(shape, signed)
    with torch.no_grad():
        y = layer(x)
    g = torch.randn_like(y)
    value, (back,) = pulled(layer, x, rules=answering(rule), cotangent=g)
    assert torch.equal(value, y)
    expected = in_matrices(layer, x, g, share)
    assert (back * x - expected).abs().max() < 1e-10 * max(1, float(expected.abs().max()))


@pytest.mark.parametrize("shape", [(5,), (3, 5), (2, 3, 5)])
@pytest.mark.parametrize("name", RULES)
def test_a_linear_layer_shares_as_its_matrix(name: str, shape: tuple[int, ...]) -> None:
    rule, share = RULES[name]
    layer = nn.Linear(5, 4).double()
    x = values(shape, True)
    g = torch.randn(2, *shape[:-1], 4, dtype=torch.float64)
    _, (back,) = pulled(layer, x, rules=answering(rule), cotangent=g)
    assert torch.allclose(back * x, in_matrices(layer, x, g, share), atol=1e-10)


@pytest.mark.parametrize("name", RULES)
def test_contributions_of_one_sign_share_everything(name: str) -> None:
    """Where alpha-beta has no negative contributions, or z+ no positive ones, relevance is neither doubled nor lost."""
    layer = nn.Linear(6, 4, bias=False).double()
    layer.weight.data = torch.stack([s * torch.rand(6, dtype=torch.float64) + s * 0.1 for s in (1, -1, 1, -1)])
    x = torch.rand(2, 6, dtype=torch.float64) + 0.1
    y, g = layer(x).detach(), torch.randn(2, 4, dtype=torch.float64)
    _, (back,) = pulled(layer, x, rules=answering(RULES[name][0]), cotangent=g)
    assert torch.allclose((back * x).sum(1), (y * g).sum(1), rtol=1e-2 if name == "epsilon" else 1e-12)


NORMS: dict[str, Callable[[], tuple[list[nn.Module], tuple[int, ...]]]] = {
    "conv": lambda: ([nn.Conv2d(2, 4, 3, 2, 1, groups=2), nn.BatchNorm2d(4)], (2, 5, 5)),
    "conv without bias": lambda: ([nn.Conv1d(2, 3, 2, bias=False), nn.BatchNorm1d(3)], (2, 6)),
    "transposed": lambda: ([nn.ConvTranspose2d(4, 6, 2, 2, groups=2), nn.BatchNorm2d(6)], (4, 3, 3)),
    "linear": lambda: ([nn.Linear(5, 4), nn.BatchNorm1d(4)], (5,)),
    "two norms": lambda: ([nn.Conv2d(2, 3, 2), nn.BatchNorm2d(3), nn.BatchNorm2d(3, affine=False)], (2, 4, 4)),
    "alone": lambda: ([nn.BatchNorm2d(3)], (3, 4, 4)),
}


def normalised(kind: str) -> tuple[nn.Sequential, tuple[int, ...]]:
    """A layer and its norms, with statistics and scales of both signs."""
    layers, shape = NORMS[kind]()
    for norm in layers:
        if isinstance(norm, (nn.BatchNorm1d, nn.BatchNorm2d)):
            norm.running_mean.normal_()  # type: ignore[union-attr]
            norm.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
            if norm.affine:
                nn.init.normal_(norm.weight)
                nn.init.normal_(norm.bias)
    return nn.Sequential(*layers).double().eval(), shape


@pytest.mark.parametrize("kind", NORMS)
@pytest.mark.parametrize("name", RULES)
def test_a_batch_norm_is_folded_into_the_layer_before_it(name: str, kind: str) -> None:
    rule, share = RULES[name]
    net, shape = normalised(kind)
    x = values(shape, True)
    y = net(x).detach()
    g = torch.randn_like(y)
    rules = RuleSet("tested", {**answering(rule).rules, "batch_norm": FoldedNormRule(rule)})  # type: ignore[arg-type]
    value, (back,) = pulled(net, x, rules=rules, cotangent=g)
    assert torch.equal(value, y)
    assert torch.allclose(back * x, in_matrices(net, x, g, share), atol=1e-10)


def test_a_layer_whose_value_is_used_twice_is_folded_on_one_way_only() -> None:
    net, _ = normalised("conv")
    x = torch.randn(2, 2, 5, 5, dtype=torch.float64)
    rule = GammaRule(0.5)
    rules = RuleSet("tested", {"conv": rule, "batch_norm": FoldedNormRule(rule)})
    g = torch.randn(2, 4, 3, 3, dtype=torch.float64)
    both = Spelled(lambda x: net[0](x) + net[1](net[0](x)), net)
    shared = Spelled(lambda x: (lambda y: y + net[1](y))(net[0](x)), net)
    assert torch.allclose(pulled(shared, x, rules=rules, cotangent=g)[1][0],
                          pulled(both, x, rules=rules, cotangent=g)[1][0], atol=1e-12)  # fmt: skip
    folded = pulled(net, x, rules=rules, cotangent=g)[1][0]
    alone = pulled(net[0], x, rules=rules, cotangent=g)[1][0]
    assert torch.allclose(pulled(shared, x, rules=rules, cotangent=g)[1][0], folded + alone, atol=1e-12)


# first layers


def flat(weight: Tensor, b: Tensor, r: Tensor, seen: Tensor, x: Tensor) -> Tensor:
    return (seen * over(r, seen.sum(1))[:, None]).sum(0)


def w_square(weight: Tensor, b: Tensor, r: Tensor, seen: Tensor, x: Tensor) -> Tensor:
    return (weight**2 * over(r, (weight**2).sum(1))[:, None]).sum(0)


def z_box(weight: Tensor, b: Tensor, r: Tensor, seen: Tensor, x: Tensor) -> Tensor:
    z = weight * x + 2 * weight.clamp(min=0) - 3 * weight.clamp(max=0)
    edge = torch.where(z.sum(1) == 0, r, 0.0)  # all contributions are 0
    return (z * over(r, z.sum(1))[:, None]).sum(0) + flat(weight, b, edge, seen, x)


FIRST: dict[str, tuple[InputRule, Callable[..., Tensor]]] = {
    "flat": (FlatRule(), flat),
    "w-square": (WSquareRule(), w_square),
    "z-box": (ZBoxRule(-2, torch.tensor(3.0)), z_box),
}


@pytest.mark.parametrize("name", FIRST)
@given(convolutions())
@settings(max_examples=25, deadline=None)
def test_a_first_layer_shares_as_its_matrix(name: str, made: tuple[nn.Module, tuple[int, ...]]) -> None:
    rule, share = FIRST[name]
    layer, shape = made
    x = values(shape, True).clamp(-2, 3)
    settings = "in_channels out_channels kernel_size stride padding dilation groups".split()
    settings += ["output_padding"] if "Transpose" in type(layer).__name__ else []
    ones = type(layer)(**{key: getattr(layer, key) for key in settings}, bias=False).double()
    ones.weight.data.fill_(1.0)
    (weight, bias), (seen, _) = matrix(layer, shape), matrix(ones, shape)
    y = layer(x).detach()
    g = torch.randn_like(y)
    explainer = method("LRP")(layer, composite=Composite(ZPlusRule(), ZPlusRule(), ZPlusRule(), rule))
    found = explainer.attribute(x, lambda out: (out * g).flatten(1).sum(1))
    expected = torch.stack([
        share(weight, bias, (weight @ one.flatten() + bias) * c.flatten(), seen, one.flatten()).reshape(one.shape)
        for one, c in zip(x, g, strict=True)
    ])  # fmt: skip
    assert (found - expected).abs().max() < 1e-10 * max(1, float(expected.abs().max()))


def test_relevance_of_an_input_that_is_zero_is_not_lost() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2, bias=False)).double()
    x = torch.rand(1, 1, 4, 4, dtype=torch.float64)
    x[0, 0, 1, 1] = 0
    found = method("LRP")(model, composite="epsilon_plus_flat", epsilon=0.0).attribute(x, 1)
    assert found[0, 0, 1, 1].abs() > 1e-3
    assert found.sum().item() == pytest.approx(model(x)[0, 1].item(), abs=1e-12)


def test_in_another_place_a_first_layer_rule_says_so() -> None:
    layer, x = nn.Linear(3, 2).double(), torch.tensor([[1.0, 0.0, 2.0]], dtype=torch.float64)
    with pytest.raises(InputError, match="rule of the first layer"):
        pulled(layer, x, rules=answering(FlatRule()))
    _, (back,) = pulled(layer, x + 1, rules=answering(FlatRule()))
    assert torch.allclose(back * (x + 1), (layer(x + 1).sum(1, keepdim=True) / 3).expand(1, 3))


def test_the_box_has_to_hold_the_input() -> None:
    model, x = nn.Linear(3, 2), torch.tensor([[0.0, 1.0, 3.0]])
    explainer = method("LRP")(model, composite="epsilon_gamma_box", low=0, high=2)
    with pytest.raises(InputError, match="outside of the z-box"):
        explainer.attribute(x, 0)
    with pytest.raises(InputError, match="do not broadcast"):
        method("LRP")(model, composite="epsilon_gamma_box", low=torch.zeros(7)).attribute(x, 0)


def test_what_is_at_the_edge_of_the_box_everywhere_shares_equally() -> None:
    layer = nn.Conv2d(2, 3, 3, bias=False).double()
    x = torch.full((1, 2, 3, 3), 0.5, dtype=torch.float64)
    found = method("LRP")(layer, composite="epsilon_gamma_box").attribute(x, lambda y: y[:, 1, 0, 0])
    assert torch.allclose(found, (layer(x)[0, 1, 0, 0] / 18).expand_as(x), atol=1e-12)


@pytest.mark.parametrize(("rule", "settings"), [(EpsilonRule, {"epsilon": -1.0}), (GammaRule, {"gamma": float("nan")}),
                                                (AlphaBetaRule, {"alpha": 2.0, "beta": 2.0}),
                                                (AlphaBetaRule, {"alpha": 0.0, "beta": -1.0})])  # fmt: skip
def test_settings_outside_of_their_range_are_refused(rule: Any, settings: dict[str, float]) -> None:
    with pytest.raises(InputError, match="must"):
        rule(**settings)


# in other company


def test_a_product_of_two_signals_is_no_layer() -> None:
    x, w = torch.randn(2, 3, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
    with pytest.raises(Exception, match="no rule for the operation 'linear'"):
        pulled(F.linear, x, w, rules=answering(GammaRule()))


def test_rules_are_overrides_and_take_tokens() -> None:
    torch.manual_seed(1)
    block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
    model = nn.Sequential(block, nn.Flatten(), nn.Linear(24, 2)).double().eval()
    x = torch.randn(2, 3, 8, dtype=torch.float64)
    plain, none, some = (
        attribute(model, x, 1, rules=attn_lrp(linear=rule), readout="value").value
        for rule in (None, GammaRule(0.0), GammaRule(0.5))
    )
    assert torch.allclose(plain, none, atol=1e-12)
    assert (some - plain).abs().max() > 1e-3
    head = RuleSet("head", {"linear": GammaRule(0.5)}, lenient=True)
    found = attribute(model, x, 1, rules=attn_lrp().override({"2": head}), readout="value", sites="0").value
    hidden = block(x).detach()
    g = pulled(model[2], hidden.flatten(1), rules=head, cotangent=torch.eye(2).double()[[1, 1]])[1][0]
    assert torch.allclose(found, hidden * g.view_as(hidden), atol=1e-10)


@pytest.mark.parametrize("name", RULES)
def test_half_precision_does_not_overflow(name: str) -> None:
    layer = nn.Linear(64, 32)
    x = torch.rand(2, 64) * 1e-3
    expected = pulled(layer, x, rules=answering(RULES[name][0]))[1][0]
    for dtype in (torch.float16, torch.bfloat16):
        found = pulled(nn.Linear(64, 32).to(dtype).requires_grad_(False), x.to(dtype), rules=answering(RULES[name][0]))
        assert torch.isfinite(found[1][0]).all()
        half = nn.Linear(64, 32)
        half.load_state_dict(layer.state_dict())
        back = pulled(half.to(dtype), x.to(dtype), rules=answering(RULES[name][0]))[1][0]
        assert back.dtype == dtype
        assert torch.cosine_similarity(back.float().flatten(), expected.flatten(), dim=0) > 0.95


def test_large_relevance_of_nearly_nothing_stays_finite() -> None:
    """Positive contributions of 1e-30 beside an output of -1e3: their quotient would overflow in single precision."""
    layer = nn.Linear(2, 1, bias=False)
    layer.weight.data = torch.tensor([[1e-30, -1.0]])
    for rule in (ZPlusRule(), AlphaBetaRule(2, 1), GammaRule(1.0)):
        _, (back,) = pulled(layer, torch.tensor([[1.0, 1e10]]), rules=answering(rule), cotangent=torch.tensor([[1e20]]))
        assert torch.isfinite(back).all()


@pytest.mark.parametrize("name", ["epsilon", "gamma", "z-plus", "alpha-beta 2 1"])
@pytest.mark.parametrize("norm", [False, True])
def test_the_derivative_of_a_relevance_is_its_difference_quotient(name: str, norm: bool) -> None:
    net = normalised("conv")[0] if norm else nn.Conv2d(2, 4, 3, 2, 1).double()
    model = nn.Sequential(net, nn.GELU(), nn.Flatten(), nn.Linear(36, 3)).double().eval()
    rule = RULES[name][0]
    rules = RuleSet("tested", {**method("LRP")(model).rules().rules, **answering(rule).rules,
                               "batch_norm": FoldedNormRule(rule)})  # fmt: skip  # type: ignore[arg-type]
    x = torch.randn(1, 2, 5, 5, dtype=torch.float64)
    weight = torch.randn_like(x)

    def score(x: Tensor, graph: bool = False) -> Tensor:
        return (attribute(model, x, 1, rules=rules, readout="value", create_graph=graph).value * weight).sum()

    leaf = x.clone().requires_grad_()
    (got,) = torch.autograd.grad(score(leaf, True), leaf)
    direction, h = torch.randn_like(x), 1e-6
    quotient = (score(x + h * direction) - score(x - h * direction)) / (2 * h)
    assert (got * direction).sum().item() == pytest.approx(quotient.item(), rel=1e-5, abs=1e-8)
    assert quotient.abs() > 1e-6


@pytest.mark.parametrize("composite", ["epsilon_plus_flat", "epsilon_gamma_box"])
def test_so_is_that_of_a_first_layer_s(composite: str) -> None:
    model = nn.Sequential(nn.ZeroPad2d(1), nn.Conv2d(2, 4, 3, 2), nn.GELU(), nn.Flatten(), nn.Linear(36, 3)).double()
    x = torch.randn(1, 2, 5, 5, dtype=torch.float64)
    weight = torch.randn_like(x)
    explainer = method("LRP")(model, composite=composite, low=-9.0, high=9.0)

    def score(x: Tensor, graph: bool = False) -> Tensor:
        return (explainer.attribute(x, 1, create_graph=graph) * weight).sum()

    leaf = x.clone().requires_grad_()
    (got,) = torch.autograd.grad(score(leaf, True), leaf)
    direction, h = torch.randn_like(x), 1e-6
    quotient = (score(x + h * direction) - score(x - h * direction)) / (2 * h)
    assert (got * direction).sum().item() == pytest.approx(quotient.item(), rel=1e-5, abs=1e-8)
    assert quotient.abs() > 1e-6


def test_the_gradient_is_what_is_left_of_epsilon_zero() -> None:
    net, shape = normalised("conv")
    x, g = values(shape, True), torch.randn(2, 4, 3, 3, dtype=torch.float64)
    rules = RuleSet("tested", {"conv": EpsilonRule(0.0), "batch_norm": FoldedNormRule(EpsilonRule(0.0))})
    plain = pulled(net, x, rules=GRADIENT, cotangent=g)[1][0]
    assert torch.allclose(pulled(net, x, rules=rules, cotangent=g)[1][0], plain, atol=1e-12)
