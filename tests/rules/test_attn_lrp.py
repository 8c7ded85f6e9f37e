"""AttnLRP as modified gradients against its explicit rules in plain matrices (`explicit_rules`); each rule alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from explicit_rules import Block, drawn, relative, through_block, through_layer_norm, through_linear, through_sum
from probes import Spelled, pull, pulled
from torch import Tensor, nn
from torch.nn import functional as F

from backlight.engine import attribute, running
from backlight.errors import UncoveredOperationError
from backlight.rules import attn_lrp, cp_lrp, gradient, pullback
from backlight.rules.relevance import GammaRule


@pytest.mark.parametrize("by_hand", [False, True])
def test_a_block_is_its_explicit_rules(by_hand: bool) -> None:
    block = drawn(Block(by_hand=by_hand))
    x, back = torch.randn(1, 5, 8, dtype=torch.float64), torch.randn(1, 5, 8, dtype=torch.float64)
    with torch.no_grad():
        y = block(x)[0]
        expected = through_block(block, x[0], y * back[0])
    value, (got,) = pulled(block, x, rules=attn_lrp(), cotangent=back)
    assert torch.equal(value, block(x))
    assert relative(x * got, expected) < 1e-9
    assert relative(x * pull(block, x, gradient(), back), expected) > 1e-2
    assert relative(x * pull(block, x, cp_lrp(), back), expected) > 1e-2


def test_a_vision_transformer_of_two_blocks_is_its_explicit_rules() -> None:
    timm = pytest.importorskip("timm")
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=12, num_heads=3, depth=2, num_classes=5
    )
    model = drawn(model)
    x = torch.randn(1, 3, 32, 32, dtype=torch.float64)
    names = {"qkv": "attn.qkv", "proj": "attn.proj", "fc1": "mlp.fc1", "fc2": "mlp.fc2"}
    with torch.no_grad():
        patches = F.unfold(x, 8, stride=8)[0].T  # [16, 3 * 64]
        weight = model.patch_embed.proj.weight.flatten(1)
        embedded = patches @ weight.T + model.patch_embed.proj.bias
        tokens = torch.cat((model.cls_token[0], embedded))
        states = [tokens + model.pos_embed[0]]
        for block in model.blocks:
            states.append(block(states[-1][None])[0])
        pooled = model.norm(states[-1])
        logits = pooled[:1] @ model.head.weight.T + model.head.bias
        relevance = torch.zeros(1, 5, dtype=torch.float64)
        relevance[0, 2] = logits[0, 2]
        on_pooled = torch.zeros_like(pooled)
        on_pooled[:1] = through_linear(pooled[:1], model.head.weight, model.head.bias, relevance)
        on_state = through_layer_norm(model.norm, states[2], on_pooled)
        for block, state in ((model.blocks[1], states[1]), (model.blocks[0], states[0])):
            on_state = through_block(block, state, on_state, names)
        on_tokens = through_sum(tokens, model.pos_embed[0], on_state)[0]
        on_patches = through_linear(patches, weight, model.patch_embed.proj.bias, on_tokens[1:])
        expected = F.fold(on_patches.T, (32, 32), 8, stride=8)[None]
    found = attribute(model, x, 2, rules=attn_lrp(), sites=("input", "blocks.0:input"), readout="value")
    assert relative(found.values["input"], expected) < 1e-9
    assert relative(found.values["blocks.0:input"][0], on_state) < 1e-9
    assert found.coverage.calls("attention", "shared attention") == 2
    assert found.coverage.calls("layer_norm", "held deviation") == 5


def test_relevance_is_not_conserved_by_a_softmax_but_by_held_weights() -> None:
    model = nn.Sequential(*(drawn(Block(), bias=0.0) for _ in range(2)))
    x, back = torch.randn(1, 5, 8, dtype=torch.float64), torch.randn(1, 5, 8, dtype=torch.float64)
    score = (model(x) * back).sum().item()
    whole = {rules.name: float((x * pull(model, x, rules, back)).sum()) for rules in (attn_lrp(), cp_lrp())}
    assert whole["cp_lrp"] == pytest.approx(score, rel=1e-12)
    assert abs(whole["attn_lrp"] - score) > 0.05 * abs(score)


def test_held_weights_and_biases_are_the_whole_score() -> None:
    block = drawn(Block())
    x = torch.randn(3, 5, 8, dtype=torch.float64)
    model = Spelled(lambda x: block(x).mean(1), block)
    found = attribute(model, x, 1, rules=cp_lrp(), readout="value", bias=True)
    assert found.residual.abs().max() < 1e-12
    assert found.bias.abs().min() > 1e-3
    assert attribute(model, x, 1, rules=attn_lrp(), readout="value", bias=True).residual.abs().max() > 1e-3


N, HEADS, L, S, D = 2, 4, 5, 6, 3
MASK = torch.rand(L, S, generator=torch.Generator().manual_seed(1)) > 0.4
MASK[:, 0] = True
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "scale": {"scale": 0.3},
    "mask": {"attn_mask": MASK},
    "causal": {"is_causal": True},
    "grouped": {"enable_gqa": True},
}


def signals(grouped: bool = False) -> list[Tensor]:
    heads = HEADS // 2 if grouped else HEADS
    shapes = ((N, HEADS, L, D), (N, heads, S, D), (N, heads, S, D + 1))
    return [2 * torch.randn(shape, dtype=torch.float64) for shape in shapes]


@pytest.mark.parametrize("name", OPTIONS)
def test_the_fused_kernel_gives_a_quarter_a_quarter_and_a_half(name: str) -> None:
    options = OPTIONS[name]
    given = signals("enable_gqa" in options)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, **options)

    back = torch.randn(N, HEADS, L, D + 1, dtype=torch.float64)
    value, found = pulled(attend, *given, rules=attn_lrp(), cotangent=back)
    plain = pulled(attend, *given, rules=gradient(), cotangent=back)
    assert torch.equal(value, plain[0])
    for got, full, share in zip(found, plain[1], (4, 4, 2), strict=True):
        assert torch.allclose(got, full / share, atol=1e-14)


BY_HAND: dict[str, Callable[..., Tensor]] = {
    "fused": F.scaled_dot_product_attention,
    "softmax(-1) @ v": lambda q, k, v: (q @ k.transpose(-2, -1) / math.sqrt(D)).softmax(-1) @ v,
    "scaled queries": lambda q, k, v: torch.matmul(F.softmax((q * D**-0.5) @ k.mT, dim=-1), v),
    "dropout": lambda q, k, v: F.dropout((q @ k.mT / math.sqrt(D)).softmax(-1), 0.5, training=False) @ v,
    "einsum": lambda q, k, v: torch.einsum(
        "nhls,nhsd->nhld", (torch.einsum("nhld,nhsd->nhls", q, k) / math.sqrt(D)).softmax(-1), v
    ),
    "baddbmm": lambda q, k, v: torch.bmm(
        torch.baddbmm(
            torch.zeros(1, 1, 1, dtype=q.dtype), q.flatten(0, 1), k.flatten(0, 1).mT, alpha=D**-0.5
        ).softmax(-1),
        v.flatten(0, 1),
    ).unflatten(0, (N, HEADS)),
}  # fmt: skip


@pytest.mark.parametrize("rules", [attn_lrp(), cp_lrp()], ids=lambda rules: rules.name)
@pytest.mark.parametrize("name", BY_HAND)
def test_attention_written_by_hand_is_attention(name: str, rules: Any) -> None:
    given, attend = signals(), BY_HAND[name]
    back = torch.randn(N, HEADS, L, D + 1, dtype=torch.float64)
    value, found = pulled(attend, *given, rules=rules, cotangent=back)
    assert torch.equal(value, attend(*given))
    with torch.enable_grad():
        leaves = [x.clone().requires_grad_() for x in given]
        plain = torch.autograd.grad(BY_HAND["fused"](*leaves), leaves, back)
    shares = (0.25, 0.25, 0.5) if rules.name == "attn_lrp" else (0.0, 0.0, 1.0)
    for got, full, share in zip(found, plain, shares, strict=True):
        assert torch.allclose(got, full * share, atol=1e-12)


@pytest.mark.parametrize("name", ["fused", "softmax(-1) @ v", "einsum"])
@pytest.mark.parametrize(
    ("constant", "shares"),
    [("q", (0, 0.5, 0.5)), ("k", (0.5, 0, 0.5)), ("v", (0.5, 0.5, 0)), ("qk", (0, 0, 1.0)), ("qv", (0, 1.0, 0))],
)
def test_constant_factors_take_no_share(name: str, constant: str, shares: tuple[float, ...]) -> None:
    """A learned query, for example: what is no signal leaves its share to the other factor."""
    given = dict(zip("qkv", signals(), strict=True))
    back = torch.randn(N, HEADS, L, D + 1, dtype=torch.float64)
    free = [letter for letter in "qkv" if letter not in constant]

    def attend(*x: Tensor) -> Tensor:
        parts = {**given, **dict(zip(free, x, strict=True))}
        return BY_HAND[name](parts["q"], parts["k"], parts["v"])

    inputs = [given[letter] for letter in free]
    found = pulled(attend, *inputs, rules=attn_lrp(), cotangent=back)[1]
    plain = pulled(attend, *inputs, rules=gradient(), cotangent=back)[1]
    wanted = [share for letter, share in zip("qkv", shares, strict=True) if letter in free]
    for got, full, share in zip(found, plain, wanted, strict=True):
        assert torch.allclose(got, full * share, atol=1e-12)


@pytest.mark.parametrize("rules", [attn_lrp(), cp_lrp()], ids=lambda rules: rules.name)
@pytest.mark.parametrize("need_weights", [False, True])
def test_multihead_attention_is_spelled_out(rules: Any, need_weights: bool) -> None:
    layer = drawn(nn.MultiheadAttention(6, 2, batch_first=True))
    x, back = torch.randn(2, 4, 6, dtype=torch.float64), torch.randn(2, 4, 6, dtype=torch.float64)
    value, (got,) = pulled(lambda x: layer(x, x, x, need_weights=need_weights)[0], x, rules=rules, cotangent=back)
    weight, bias = layer.in_proj_weight, layer.in_proj_bias

    def by_hand(x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (2, 3)).transpose(1, 2) for part in F.linear(x, weight, bias).chunk(3, -1))
        return layer.out_proj(BY_HAND["softmax(-1) @ v"](q, k, v).transpose(1, 2).flatten(2))

    assert torch.allclose(value, by_hand(x), atol=1e-12)
    assert torch.allclose(got, pull(by_hand, x, rules, back), atol=1e-12)
    assert not torch.allclose(got, pull(by_hand, x, gradient(), back), atol=1e-3)


# name -> (function, its value at 0, which is bias)
ACTIVATIONS: dict[str, tuple[Callable[[Tensor], Tensor], float]] = {
    "gelu": (F.gelu, 0.0),
    "gelu tanh": (lambda z: F.gelu(z, approximate="tanh"), 0.0),
    "silu": (F.silu, 0.0),
    "silu by hand": (lambda z: z * torch.sigmoid(z), 0.0),
    "tanh": (torch.tanh, 0.0),
    "hardswish": (F.hardswish, 0.0),
    "elu": (F.elu, 0.0),
    "sigmoid": (torch.sigmoid, 0.5),
    "softplus": (F.softplus, math.log(2)),
    "power": (lambda z: z**3, 0.0),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_pass_their_relevance_on(name: str) -> None:
    function, bias = ACTIVATIONS[name]
    z = torch.cat((torch.randn(20), torch.tensor([1e-9, -1e-9, 30.0, -30.0]))).double()
    back = torch.randn_like(z)
    got = pull(function, z, attn_lrp(), back)
    assert torch.allclose(z * got, (function(z) - bias) * back, atol=1e-12)
    at_zero = pull(function, torch.zeros(1, dtype=torch.float64), attn_lrp(), torch.ones(1, dtype=torch.float64))
    limit = (function(torch.tensor(1e-6).double()) - bias) / 1e-6
    assert at_zero.item() == pytest.approx(float(limit), abs=1e-5)


def test_gelu_written_by_hand_in_a_module_is_one_activation() -> None:
    activations = pytest.importorskip("transformers").activations
    z, back = torch.randn(2, 30, dtype=torch.float64)
    for module, value in (
        (activations.NewGELUActivation(), F.gelu(z, approximate="tanh")),
        (activations.QuickGELUActivation(), z * torch.sigmoid(1.702 * z)),
    ):
        assert torch.allclose(z * pull(module, z, attn_lrp(), back), value * back, atol=1e-12)


def swiglu(z: Tensor) -> Tensor:
    a, b = z.chunk(2, -1)
    return F.silu(a) * b


def test_gated_products_give_half_to_each_factor() -> None:
    z, back = torch.randn(3, 8, dtype=torch.float64), torch.randn(3, 4, dtype=torch.float64)
    a, b = z.chunk(2, -1)
    on_a, on_b = (z * pull(swiglu, z, attn_lrp(), back)).chunk(2, -1)
    assert torch.allclose(on_a, swiglu(z) * back / 2, atol=1e-12)
    assert torch.allclose(on_b, swiglu(z) * back / 2, atol=1e-12)
    for gated in (lambda z: F.glu(z), lambda z: z.chunk(2, -1)[0] * z.chunk(2, -1)[1].sigmoid()):
        on_a, on_b = (z * pull(gated, z, attn_lrp(), back)).chunk(2, -1)
        assert torch.allclose(on_a, F.glu(z) * back / 2, atol=1e-12)
        assert torch.allclose(on_b, a * (b.sigmoid() - 0.5) * back / 2, atol=1e-12)
        found = attribute(Spelled(gated), z, 1, rules=attn_lrp(), readout="value", bias=True)
        assert found.residual.abs().max() < 1e-12
    at_zero = pull(F.glu, torch.tensor([[2.0, 0.0]]).double(), attn_lrp(), torch.ones(1, 1, dtype=torch.float64))
    assert at_zero.tolist() == [[0.25, 0.25]]


def test_constants_scale_and_denominators_are_held() -> None:
    x, back = torch.randn(3, 6, dtype=torch.float64), torch.randn(3, 6, dtype=torch.float64)
    scale = nn.Parameter(torch.randn(6, dtype=torch.float64))
    assert torch.allclose(pull(lambda x: x * scale, x, attn_lrp(), back), back * scale)
    held = pull(lambda x: x / x.abs().sum(-1, keepdim=True), x, attn_lrp(), back)
    assert torch.allclose(held, back / x.abs().sum(-1, keepdim=True), atol=1e-14)
    assert torch.allclose(
        pull(lambda x: F.normalize(x, dim=-1), x, attn_lrp(), back), back / x.norm(dim=-1, keepdim=True), atol=1e-14
    )


def test_pooling_and_output_probabilities_are_differentiated() -> None:
    x, back = torch.randn(1, 2, 4, 4, dtype=torch.float64), torch.randn(1, 2, 2, 2, dtype=torch.float64)
    pool = nn.MaxPool2d(2)
    assert torch.equal(pull(pool, x, attn_lrp(), back), pull(pool, x, gradient(), back))
    z, back = torch.randn(2, 3, 5, dtype=torch.float64)
    for function in (lambda z: z.softmax(-1), lambda z: z.log_softmax(-1)):
        for rules in (attn_lrp(), cp_lrp()):
            assert torch.allclose(pull(function, z, rules, back), pull(function, z, gradient(), back), atol=1e-14)


def by_moments(z: Tensor) -> Tensor:
    return (z - z.mean(-1, keepdim=True)) / torch.sqrt(z.var(-1, correction=0, keepdim=True) + 1e-5)


def by_powers(z: Tensor) -> Tensor:
    centred = z - z.mean(-1, keepdim=True)
    return centred * torch.rsqrt(centred.pow(2).mean(-1, keepdim=True) + 1e-5)


def test_the_deviation_is_held_and_the_mean_stays_in_the_graph() -> None:
    norm = drawn(nn.LayerNorm(6))
    z, back = torch.randn(2, 5, 6, dtype=torch.float64) + 1, torch.randn(2, 5, 6, dtype=torch.float64)
    s = (z.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
    centring = torch.eye(6, dtype=torch.float64) - 1 / 6
    value, (got,) = pulled(norm, z, rules=attn_lrp(), cotangent=back)
    assert torch.equal(value, norm(z))
    assert torch.allclose(got, (back * norm.weight / s) @ centring, atol=1e-12)
    assert not torch.allclose(got, pull(norm, z, pullback(), back), atol=1e-3)
    plain = pull(nn.LayerNorm(6).double(), z, attn_lrp(), back)
    for by_hand in (by_moments, by_powers):
        assert torch.allclose(pull(by_hand, z, attn_lrp(), back), plain, atol=1e-12)


IMAGE = (2, 6, 4, 5)
# name -> (module, number of groups whose statistics are taken; 0: constants)
NORMS: dict[str, tuple[nn.Module, int]] = {
    "group": (nn.GroupNorm(3, 6), 3),
    "group of one": (nn.GroupNorm(1, 6), 1),
    "instance": (nn.InstanceNorm2d(6, affine=True), 6),
    "instance, tracked": (nn.InstanceNorm2d(6, affine=True, track_running_stats=True), 0),
    "batch": (nn.BatchNorm2d(6), 0),
}


@pytest.mark.parametrize("name", NORMS)
def test_the_mean_is_that_of_the_statistics(name: str) -> None:
    module, groups = NORMS[name]
    module = drawn(module)
    for buffer in (b for b in module.buffers() if b.is_floating_point()):
        nn.init.uniform_(buffer, 0.5, 1.5)
    z, back = torch.randn(IMAGE, dtype=torch.float64) + 1, torch.randn(IMAGE, dtype=torch.float64)
    got = pull(module, z, attn_lrp(), back)
    passed = back * module.weight[:, None, None]
    if groups:
        grouped = z.reshape(2, groups, -1)
        s = (grouped.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
        passed = passed.reshape(2, groups, -1) / s
        expected = (passed - passed.mean(-1, keepdim=True)).reshape(IMAGE)
    else:
        expected = passed / (module.running_var[:, None, None] + 1e-5).sqrt()
    assert torch.allclose(got, expected, atol=1e-12)
    model = Spelled(lambda x: module(x).flatten(1).sum(1, keepdim=True), module)
    assert attribute(model, z, 0, rules=attn_lrp(), readout="value", bias=True).residual.abs().max() < 1e-9


def test_rms_norm_is_scaled() -> None:
    norm = drawn(nn.RMSNorm(6, eps=1e-3))
    z, back = torch.randn(2, 6, dtype=torch.float64)[None], torch.randn(1, 2, 6, dtype=torch.float64)
    s = (z.square().mean(-1, keepdim=True) + 1e-3).sqrt()
    assert torch.allclose(pull(norm, z, attn_lrp(), back), back * norm.weight / s, atol=1e-12)


def test_linear_layers_and_convolutions_take_a_rule_of_their_own() -> None:
    class Tripled:
        label = "tripled"

        def __call__(self, call: Any) -> Any:
            return call.adjoint(lambda z, y, cotangent: 3 * torch.ones_like(z))

    x = torch.randn(1, 2, 5, 5, dtype=torch.float64)
    for module, setting in ((nn.Conv2d(2, 3, 2), "conv"), (nn.Linear(5, 4), "linear")):
        got = pull(module.double(), x, attn_lrp(**{setting: Tripled()}))
        assert torch.equal(got, torch.full_like(x, 3.0))
        assert torch.equal(pull(module, x, cp_lrp(**{setting: Tripled()})), got)
        assert torch.allclose(pull(module, x, attn_lrp()), pull(module, x, gradient()))


def test_a_gamma_rule_goes_with_shared_attention() -> None:
    block = drawn(Block())
    x, back = torch.randn(1, 5, 8, dtype=torch.float64), torch.randn(1, 5, 8, dtype=torch.float64)
    plain = pull(block, x, attn_lrp(), back)
    assert relative(x * pull(block, x, attn_lrp(linear=GammaRule(1e-9)), back), x * plain) < 1e-6
    value, (got,) = pulled(block, x, rules=attn_lrp(linear=GammaRule(0.25)), cotangent=back)
    assert torch.equal(value, block(x))
    assert relative(x * got, x * plain) > 1e-2


def test_what_no_rule_answers_for_is_named() -> None:
    with pytest.raises(UncoveredOperationError, match="exp"):
        pull(torch.exp, torch.randn(3, dtype=torch.float64), attn_lrp())


@pytest.mark.parametrize("by_hand", [False, True])
@pytest.mark.parametrize("rules", [attn_lrp(), cp_lrp()], ids=lambda rules: rules.name)
def test_an_explanation_can_be_differentiated(rules: Any, by_hand: bool) -> None:
    block = drawn(Block(by_hand=by_hand))
    model = Spelled(lambda x: block(x).mean(1), block)
    x, along = torch.randn(1, 3, 8, dtype=torch.float64), torch.randn(1, 3, 8, dtype=torch.float64)

    def explanation(x: Tensor, create_graph: bool = False) -> Tensor:
        found = attribute(model, x, 1, rules=rules, readout="value", create_graph=create_graph)
        return (found.value * along).sum()

    leaf = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(explanation(leaf, create_graph=True), leaf)
    step = 1e-5 * along
    difference = (explanation(x + step) - explanation(x - step)) / 2e-5
    assert float((slope * along).sum()) == pytest.approx(float(difference), rel=1e-5)


def test_nothing_is_computed_twice_and_values_are_those_of_the_model() -> None:
    block = drawn(Block())
    x = torch.randn(2, 5, 8, dtype=torch.float64, requires_grad=True)
    with running(block, attn_lrp()) as run:
        y = block(x)
    assert torch.equal(y, block(x))
    assert run.coverage.uncovered == ()
    assert {row.operation: row.rule for row in run.coverage if row.rule != "exact"} == {
        "layer_norm": "held deviation",
        "attention": "shared attention",
        "gelu": "gate",
    }
