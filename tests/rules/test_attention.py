"""Attention: queries and keys are held; the cotangent meets B = softmax(q k^T / (sqrt(d) tau)) on its way to v."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from probes import Spelled, pull, pulled
from torch import Tensor, nn
from torch.nn import functional as F

from backlight.engine import RuleSet, attribute
from backlight.rules import gradient, pullback, soft_pullback

N, HEADS, L, S, D = 2, 4, 5, 6, 3
BOOL = torch.rand(L, S, generator=torch.Generator().manual_seed(1)) > 0.4
BOOL[:, 0] = True
FLOAT = torch.randn(L, S, dtype=torch.float64, generator=torch.Generator().manual_seed(2))

# options of F.scaled_dot_product_attention, and of the heads of key and value
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "scale": {"scale": 0.3},
    "boolean mask": {"attn_mask": BOOL},
    "float mask": {"attn_mask": FLOAT},
    "mask of every head": {"attn_mask": FLOAT.expand(N, HEADS, L, S)},
    "causal": {"is_causal": True},
    "grouped queries": {"enable_gqa": True},
    "grouped queries, causal, scale": {"enable_gqa": True, "is_causal": True, "scale": 1.7},
}


def signals(grouped: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    heads = HEADS // 2 if grouped else HEADS
    shapes = ((N, HEADS, L, D), (N, heads, S, D), (N, heads, S, D + 1))
    return tuple(2 * torch.randn(shape, dtype=torch.float64) for shape in shapes)  # type: ignore[return-value]


def weights(q: Tensor, k: Tensor, tau: float, options: dict[str, Any]) -> Tensor:
    """B, written out."""
    if options.get("enable_gqa"):
        k = k.repeat_interleave(2, 1)
    logits = q @ k.transpose(-2, -1) * options.get("scale", 1 / math.sqrt(D))
    mask = options.get("attn_mask")
    if options.get("is_causal"):
        mask = torch.ones(L, S, dtype=torch.bool).tril()
    if mask is not None:
        logits = logits.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else logits + mask
    return (logits / tau).softmax(-1)


def soft(tau: float) -> RuleSet:
    return soft_pullback({"attention": tau})


@pytest.mark.parametrize("tau", [1.0, 0.5, 3.0])
@pytest.mark.parametrize("name", OPTIONS)
def test_only_values_receive_a_cotangent_through_the_softer_weights(name: str, tau: float) -> None:
    options = OPTIONS[name]
    q, k, v = signals(bool(options.get("enable_gqa")))

    def attend(q, k, v):
        return F.scaled_dot_product_attention(q, k, v, **options)

    back = torch.randn(N, HEADS, L, D + 1, dtype=torch.float64)
    value, (to_q, to_k, to_v) = pulled(attend, q, k, v, rules=soft(tau), cotangent=back)
    expected = weights(q, k, tau, options).transpose(-2, -1) @ back
    if options.get("enable_gqa"):
        expected = expected.unflatten(1, (2, 2)).sum(2)
    assert torch.equal(value, attend(*(t.requires_grad_() for t in (q, k, v))))
    assert not to_q.any()
    assert not to_k.any()
    assert torch.allclose(to_v, expected, atol=1e-12)


def test_positions_and_keywords_are_the_same_call() -> None:
    q, k, v = signals()
    by_position = pulled(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, FLOAT), q, k, v, rules=soft(2.0))
    by_name = pulled(
        lambda q, k, v: F.scaled_dot_product_attention(query=q, key=k, value=v, attn_mask=FLOAT),
        q,
        k,
        v,
        rules=soft(2.0),
    )
    assert torch.equal(by_position[1][2], by_name[1][2])


def einsum(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    logits = torch.einsum("nhld,nhsd->nhls", q, k) / math.sqrt(D)
    return torch.einsum("nhls,nhsd->nhld", logits.softmax(-1), v)


def batched(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (t.flatten(0, 1) for t in (q, k, v))
    logits = torch.bmm(q / math.sqrt(D), k.transpose(1, 2))
    return torch.bmm(F.softmax(logits, -1), v).unflatten(0, (N, HEADS))


BY_HAND: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "softmax(-1) @ v": lambda q, k, v: (q @ k.transpose(-2, -1) / math.sqrt(D)).softmax(-1) @ v,
    "softmax(dim=3)": lambda q, k, v: torch.softmax(q @ k.transpose(-2, -1) * D**-0.5, dim=3) @ v,
    "nn.Softmax": lambda q, k, v: nn.Softmax(-1)(q @ k.mT / math.sqrt(D)).matmul(v),
    "dropout": lambda q, k, v: F.dropout((q @ k.mT / math.sqrt(D)).softmax(-1), 0.5, training=False) @ v,
    "einsum": einsum,
    "bmm": batched,
    "transposed": lambda q, k, v: (v.mT @ (k @ q.mT / math.sqrt(D)).softmax(-2)).mT,
    "of a list": lambda q, k, v: torch.einsum("nhls,nhsd->nhld", [(q @ k.mT / D**0.5).softmax(-1), v]),
    "transposed weights": lambda q, k, v: (v.mT @ (q @ k.mT / math.sqrt(D)).softmax(-1).mT).mT,
}


@pytest.mark.parametrize("tau", [1.0, 0.5, 3.0])
@pytest.mark.parametrize("name", BY_HAND)
def test_attention_written_by_hand_is_attention(name: str, tau: float) -> None:
    q, k, v = signals()
    attend = BY_HAND[name]
    back = torch.randn_like(attend(q, k, v))
    value, (to_q, to_k, to_v) = pulled(attend, q, k, v, rules=soft(tau), cotangent=back)
    expected = weights(q, k, tau, {}).transpose(-2, -1) @ back
    assert torch.equal(value, attend(q, k, v))
    assert not to_q.any()
    assert not to_k.any()
    assert torch.allclose(to_v, expected, atol=1e-12)


class Head(nn.Module):
    """Self-attention of one head with all four projections."""

    def __init__(self, size: int = 4) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(size, size) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.o(F.scaled_dot_product_attention(self.q(x), self.k(x), self.v(x)))


@pytest.mark.parametrize("tau", [1.0, 2.0])
def test_the_pullback_of_a_head_is_the_transposed_value_path(tau: float) -> None:
    head = Head().double()
    x, back = torch.randn(N, 5, 4, dtype=torch.float64), torch.randn(N, 5, 4, dtype=torch.float64)
    b = (head.q(x) @ head.k(x).mT / (2.0 * tau)).softmax(-1)
    expected = b.mT @ (back @ head.o.weight) @ head.v.weight
    assert torch.allclose(pull(head, x, soft(tau), back), expected, atol=1e-12)
    if tau == 1:
        frozen = x.clone().requires_grad_()
        (branch,) = torch.autograd.grad(head.o(b.detach() @ head.v(frozen)), frozen, back)
        assert torch.allclose(pull(head, x, pullback(), back), branch, atol=1e-12)
        assert not torch.allclose(pull(head, x, gradient(), back), branch, atol=1e-4)


def test_at_temperature_zero_the_largest_logits_share_equally() -> None:
    q = torch.tensor([[[1.0]]], dtype=torch.float64)
    k = torch.tensor([[[2.0], [2.0], [-1.0]]], dtype=torch.float64)
    v = torch.randn(1, 3, 2, dtype=torch.float64)
    for attend in (F.scaled_dot_product_attention, lambda q, k, v: (q @ k.mT).softmax(-1) @ v):
        _, (_, _, to_v) = pulled(attend, q, k, v, rules=soft(0.0))
        assert to_v[0].tolist() == [[0.5, 0.5], [0.5, 0.5], [0.0, 0.0]]


def test_weights_stay_weights_when_they_are_scaled_and_moved() -> None:
    q, k, v = signals()

    def moved(q, k, v):
        return (2 * (q @ k.mT).softmax(-1)).reshape(N * HEADS, L, S) @ v.flatten(0, 1)

    _, (to_q, to_k, to_v) = pulled(moved, q, k, v, rules=pullback())
    assert not to_q.any()
    assert not to_k.any()
    expected = 2 * (q @ k.mT).softmax(-1).mT.flatten(0, 1) @ torch.ones(N * HEADS, L, D + 1, dtype=torch.float64)
    assert torch.allclose(to_v.flatten(0, 1), expected, atol=1e-12)


def test_scaled_weights_are_softened_as_they_are_scaled() -> None:
    q, k, v = signals()

    def scaled(q, k, v):
        return (2 * (q @ k.mT).softmax(-1)) @ v

    _, (_, _, to_v) = pulled(scaled, q, k, v, rules=soft(3.0))
    expected = 2 * (q @ k.mT / 3).softmax(-1).mT @ torch.ones(N, HEADS, L, D + 1, dtype=torch.float64)
    assert torch.allclose(to_v, expected, atol=1e-12)


def test_a_softmax_at_the_output_is_differentiated() -> None:
    x = torch.randn(2, 4, dtype=torch.float64)
    got = attribute(Spelled(lambda x: x.softmax(1)), x, 1, rules=pullback()).value
    p = x.softmax(1)
    expected = p[:, 1:2] * (F.one_hot(torch.tensor([1, 1]), 4) - p)
    assert torch.allclose(got, expected, atol=1e-12)


def test_products_of_two_signals_share_the_cotangent_equally() -> None:
    a, b = torch.randn(2, 3, 4, dtype=torch.float64)
    back = torch.randn(3, 4, dtype=torch.float64)
    value, (to_a, to_b) = pulled(torch.mul, a, b, rules=pullback(), cotangent=back)
    assert torch.allclose(to_a, back * b / 2)
    assert torch.allclose(to_b, back * a / 2)
    assert torch.allclose((a * to_a + b * to_b).sum(), (value * back).sum())
    _, (square,) = pulled(lambda z: z * z, a, rules=pullback(), cotangent=back)
    assert torch.allclose(square, back * a)
    assert torch.allclose(pull(lambda z: z**2, a, pullback(), back), back * a)
    assert torch.allclose(pull(torch.square, a, pullback(), back), back * a)
