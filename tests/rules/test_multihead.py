"""nn.MultiheadAttention and nn.TransformerEncoderLayer: the module's own value, and the value branch with B frozen."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from probes import pulled
from torch import Tensor, nn

from backlight.engine import RuleSet, attribute, running
from backlight.rules import pullback, soft_pullback

N, L, S, E, H = 2, 5, 7, 6, 2

# options of the module, options of the call, whether keys and values are other tensors than the queries
CASES: dict[str, tuple[dict[str, Any], dict[str, Any], bool]] = {
    "plain": ({}, {}, False),
    "no bias": ({"bias": False}, {}, False),
    "keys of their own": ({}, {}, True),
    "other sizes": ({"kdim": 4, "vdim": 3}, {}, True),
    "learned token": ({"add_bias_kv": True}, {}, True),
    "zero token": ({"add_zero_attn": True}, {}, False),
    "both tokens": ({"add_bias_kv": True, "add_zero_attn": True}, {}, True),
    "boolean mask": ({}, {"attn_mask": "bool"}, True),
    "float mask": ({}, {"attn_mask": "float"}, True),
    "mask of every head": ({}, {"attn_mask": "heads"}, True),
    "padding": ({}, {"key_padding_mask": "bool"}, True),
    "float padding": ({}, {"key_padding_mask": "float"}, True),
    "both masks": ({}, {"attn_mask": "float", "key_padding_mask": "float"}, True),
    "masks and tokens": (
        {"add_bias_kv": True, "add_zero_attn": True},
        {"attn_mask": "bool", "key_padding_mask": "bool"},
        True,
    ),
    "causal": ({}, {"attn_mask": "causal", "is_causal": True}, False),
    "every head's weights": ({}, {"average_attn_weights": False}, False),
}


def masks(call: dict[str, Any], batched: bool, sources: int) -> dict[str, Any]:
    """The masks that a case names."""
    made = dict(call)
    generator = torch.Generator().manual_seed(3)
    kind = call.get("attn_mask")
    if kind == "causal":
        made["attn_mask"] = torch.ones(L, L, dtype=torch.bool).triu(1)
    elif kind:
        lead = ((N if batched else 1) * H,) if kind == "heads" else ()
        made["attn_mask"] = torch.randn(*lead, L, sources, dtype=torch.float64, generator=generator)
        if kind == "bool":
            made["attn_mask"] = made["attn_mask"] > 0.5
    kind = call.get("key_padding_mask")
    if kind:
        padding = torch.zeros((N, sources) if batched else (sources,), dtype=torch.bool)
        padding[..., -2:] = True
        made["key_padding_mask"] = (
            padding if kind == "bool" else torch.zeros(padding.shape).double().masked_fill(padding, -math.inf)
        )
    return made


def inputs(module: nn.MultiheadAttention, batch_first: bool, batched: bool, other: bool) -> tuple[Tensor, ...]:
    def tokens(length: int, size: int) -> Tensor:
        shape = (length, size) if not batched else (N, length, size) if batch_first else (length, N, size)
        return torch.randn(shape, dtype=torch.float64)

    query = tokens(L, E)
    return (query, tokens(S, module.kdim), tokens(S, module.vdim)) if other else (query,)


class Attend(nn.Module):
    """A call of the module with its options."""

    def __init__(self, attention: nn.MultiheadAttention, **call: Any) -> None:
        super().__init__()
        self.attention, self.call = attention, call

    def forward(self, *x: Tensor) -> Tensor:
        return self.attention(*(x if len(x) == 3 else x * 3), **self.call)[0]


def heads(x: Tensor) -> Tensor:
    """`[N, T, E]` -> `[N, H, T, E / H]`."""
    return x.unflatten(-1, (H, E // H)).transpose(1, 2)


def by_hand(module: nn.MultiheadAttention, tau: float, call: dict[str, Any], x: tuple[Tensor, ...]) -> Tensor:
    """The layer on `[N, T, E]`, with q, k and B = softmax(logits / tau) frozen."""
    query, key, value = x if len(x) == 3 else x * 3
    if module.in_proj_weight is not None:
        w_q, w_k, w_v = module.in_proj_weight.chunk(3)
    else:
        w_q, w_k, w_v = module.q_proj_weight, module.k_proj_weight, module.v_proj_weight
    b_q, b_k, b_v = (0, 0, 0) if module.in_proj_bias is None else module.in_proj_bias.chunk(3)
    q, k, v = query @ w_q.T + b_q, key @ w_k.T + b_k, value @ w_v.T + b_v
    extra = 0
    if module.bias_k is not None:
        k, v = (torch.cat((t, b.expand(len(t), 1, E)), 1) for t, b in ((k, module.bias_k), (v, module.bias_v)))
        extra += 1
    if module.add_zero_attn:
        k, v = (torch.cat((t, torch.zeros(len(t), 1, E, dtype=t.dtype)), 1) for t in (k, v))
        extra += 1
    logits = heads(q) @ heads(k).mT / math.sqrt(E // H)
    for name in ("attn_mask", "key_padding_mask"):
        mask = call.get(name)
        if mask is not None:
            mask = torch.zeros(mask.shape).double().masked_fill(mask, -math.inf) if mask.dtype == torch.bool else mask
            mask = nn.functional.pad(mask, (0, extra))
            if name == "key_padding_mask":
                mask = mask[:, None, None]
            elif mask.ndim == 3:
                mask = mask.unflatten(0, (-1, H))
            logits = logits + mask
    out = (logits / tau).softmax(-1).detach() @ heads(v)
    return module.out_proj(out.transpose(1, 2).flatten(2))


def module_of(settings: dict[str, Any], batch_first: bool) -> nn.MultiheadAttention:
    module = nn.MultiheadAttention(E, H, batch_first=batch_first, **settings).double().eval()
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.7)
    return module.requires_grad_(False)  # as in a run: torch multiplies by a weight that needs gradients in other steps


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("layout", ["batch first", "sequence first", "unbatched"])
@pytest.mark.parametrize("name", CASES)
def test_only_the_value_branch_is_differentiated(name: str, layout: str, need_weights: bool) -> None:
    settings, call, other = CASES[name]
    batch_first, batched = layout == "batch first", layout != "unbatched"
    module = module_of(settings, batch_first)
    call = {**masks(call, batched, S if other else L), "need_weights": need_weights}
    x = inputs(module, batch_first, batched, other)
    attend = Attend(module, **call)
    back = torch.randn_like(attend(*x))
    expected_value = attend(*(t.clone().requires_grad_() for t in x))

    def first(t: Tensor) -> Tensor:  # [N, T, E], whatever the layout
        return t[None] if not batched else t if batch_first else t.transpose(0, 1)

    for tau in (1.0, 2.0):
        value, got = pulled(attend, *x, rules=soft_pullback({"attention": tau}), cotangent=back)
        assert torch.equal(value, expected_value)
        leaves = tuple(t.clone().requires_grad_() for t in x)
        unbatched_call = {
            key: mask[None] if key == "key_padding_mask" and not batched else mask for key, mask in call.items()
        }
        out = by_hand(module, tau, unbatched_call, tuple(first(t) for t in leaves))
        expected = torch.autograd.grad(out, leaves, first(back), allow_unused=True, materialize_grads=True)
        if tau == 1:
            assert torch.allclose(out, first(value), atol=1e-12)
        for ours, theirs in zip(got, expected, strict=True):
            assert torch.allclose(ours, theirs, atol=1e-12)


def test_a_weight_that_needs_gradients_moves_the_value_by_a_rounding_at_most() -> None:
    module = module_of({}, True).requires_grad_()
    x = torch.randn(N, L, E, dtype=torch.float64)
    value, _ = pulled(Attend(module), x, rules=pullback())
    assert torch.allclose(value, Attend(module)(x), rtol=1e-13, atol=1e-14)


def test_the_weights_that_are_returned_are_the_module_s_own() -> None:
    module = module_of({}, True)
    x = torch.randn(N, L, E, dtype=torch.float64)
    for average in (True, False):
        with torch.enable_grad(), running(module, pullback()):
            leaf = x.clone().requires_grad_()
            _, weights = module(leaf, leaf, leaf, average_attn_weights=average)
        assert weights.shape == ((N, L, L) if average else (N, H, L, L))
        _, expected = module(x, x, x, average_attn_weights=average)
        assert torch.allclose(weights, expected, atol=1e-14)


class ReferenceLayer(nn.Module):
    """The encoder layer with its attention replaced by the frozen value branch, on its own weights."""

    def __init__(self, layer: nn.TransformerEncoderLayer) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        layer = self.layer

        def attend(z):
            return by_hand(layer.self_attn, 1.0, {}, (z,))

        def feed(z):
            return layer.linear2(layer.activation(layer.linear1(z)))

        if layer.norm_first:
            x = x + attend(layer.norm1(x))
            return x + feed(layer.norm2(x))
        x = layer.norm1(x + attend(x))
        return layer.norm2(x + feed(x))


@pytest.mark.parametrize("rules", [pullback(), soft_pullback("paper")], ids=lambda r: r.name)
@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("batch_first", [True, False])
def test_an_encoder_layer_is_its_parts(rules: RuleSet, activation: str, norm_first: bool, batch_first: bool) -> None:
    layer = nn.TransformerEncoderLayer(
        E, H, 8, activation=activation, norm_first=norm_first, batch_first=batch_first, dropout=0.3
    )
    layer = layer.double().eval().requires_grad_(False)
    x = torch.randn(N, L, E, dtype=torch.float64)
    back = torch.randn_like(x)
    turn = (lambda t: t) if batch_first else (lambda t: t.transpose(0, 1))
    value, (got,) = pulled(layer, turn(x).contiguous(), rules=rules, cotangent=turn(back))
    _, (expected,) = pulled(ReferenceLayer(copy.deepcopy(layer)), x, rules=rules, cotangent=back)
    assert torch.allclose(turn(got), expected, atol=1e-12)
    with torch.enable_grad():  # the path without the fused kernel
        assert torch.equal(value, layer(turn(x).contiguous().requires_grad_()).detach())


@pytest.mark.parametrize("nested", [True, False])
def test_an_encoder_is_explained_although_it_has_a_fused_path(nested: bool) -> None:
    layer = nn.TransformerEncoderLayer(E, H, 8, batch_first=True)
    model = nn.Sequential(
        nn.TransformerEncoder(layer, 2, enable_nested_tensor=nested), nn.Flatten(), nn.Linear(L * E, 3)
    )
    model = model.double().eval()
    x = torch.randn(N, L, E, dtype=torch.float64)
    found = attribute(model, x, 1, rules=pullback(), bias=True)
    assert found.residual.abs().max() < 1e-10
    assert torch.allclose(found.scores, model(x)[:, 1], atol=1e-12)
    assert found.coverage.calls("softmax") + found.coverage.calls("attention") == 2 * N
