"""Max-pooling against explicit loops over windows, over every rank and option."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from probes import pull, pulled
from torch import Tensor, nn
from torch.nn import functional as F

from backlight.engine import RuleSet
from backlight.rules import excitation_pullback, pullback, soft_pullback

POOLS: dict[int, Any] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
ADAPTIVE: dict[int, Any] = {1: F.adaptive_max_pool1d, 2: F.adaptive_max_pool2d, 3: F.adaptive_max_pool3d}
Window = list[tuple[int, ...]]


def regular(sizes: list[int], outputs: list[int], kernel: Any, stride: Any, padding: Any, dilation: Any) -> Any:
    """(output position, the input positions in its window), without the padding."""
    for out in itertools.product(*map(range, outputs)):
        window = []
        for offset in itertools.product(*map(range, kernel)):
            at = tuple(o * s - p + k * d for o, s, p, k, d in zip(out, stride, padding, offset, dilation, strict=True))
            if all(0 <= a < n for a, n in zip(at, sizes, strict=True)):
                window.append(at)
        yield out, window


def adaptive(sizes: list[int], outputs: list[int]) -> Iterator[tuple[tuple[int, ...], Window]]:
    for out in itertools.product(*map(range, outputs)):
        edges = [(o * n // m, math.ceil((o + 1) * n / m)) for o, n, m in zip(out, sizes, outputs, strict=True)]
        yield out, list(itertools.product(*(range(a, b) for a, b in edges)))


def routed(z: Tensor, cotangent: Tensor, windows: Any, tau: float, excited: bool = False) -> Tensor:
    """Equation 14, window by window: delta_z[i] = sum over windows of softmax(z / tau)[i] delta_y."""
    result = torch.zeros_like(z)
    windows = list(windows)
    for lead in itertools.product(*(range(n) for n in z.shape[:2])):
        for out, window in windows:
            values = torch.stack([z[(*lead, *at)] for at in window])
            p = (values / tau).softmax(0)
            if excited:
                p = p * (1 + (values - (p * values).sum()) / tau)
            for at, share in zip(window, p, strict=True):
                result[(*lead, *at)] += share * cotangent[(*lead, *out)]
    return result


def soft(tau: float) -> RuleSet:
    return soft_pullback({"max_pool": tau})


@st.composite
def options(draw: Any) -> dict[str, Any]:
    rank = draw(st.integers(1, 3))

    def each(low: int, high: int) -> list[int]:
        return [draw(st.integers(low, high)) for _ in range(rank)]

    kernel = each(1, 3 if rank == 3 else 5)
    dilation = each(1, 2)
    return {
        "rank": rank,
        "kernel": kernel,
        "stride": each(1, 3),
        "padding": [draw(st.integers(0, k // 2)) for k in kernel],
        "dilation": dilation,
        "sizes": [draw(st.integers((k - 1) * d + 1, (k - 1) * d + 4)) for k, d in zip(kernel, dilation, strict=True)],
        "ceil": draw(st.booleans()),
        "tau": draw(st.sampled_from([0.05, 0.3, 2.0])),
        "seed": draw(st.integers(0, 1000)),
    }


WIDE = {
    "rank": 1,
    "kernel": [5],
    "stride": [1],
    "padding": [2],
    "dilation": [1],
    "sizes": [7],
    "ceil": False,
    "tau": 0.3,
}


@given(options())
@example({**WIDE, "seed": 0})
@example({**WIDE, "dilation": [2], "sizes": [9], "seed": 1})
@settings(max_examples=60, deadline=None)
def test_soft_routing_is_the_sum_over_windows(o: dict[str, Any]) -> None:
    generator = torch.Generator().manual_seed(o["seed"])
    z = torch.randn(1, 2, *o["sizes"], dtype=torch.float64, generator=generator)

    def pool(z: Tensor) -> Tensor:
        keys = ("kernel", "stride", "padding", "dilation")
        return POOLS[o["rank"]](z, *(tuple(o[key]) for key in keys), ceil_mode=o["ceil"])

    y = pool(z)
    back = torch.randn(y.shape, dtype=torch.float64, generator=generator)
    windows = list(regular(o["sizes"], list(y.shape[2:]), o["kernel"], o["stride"], o["padding"], o["dilation"]))
    value, (got,) = pulled(pool, z, rules=soft(o["tau"]), cotangent=back)
    assert torch.equal(value, y)
    assert torch.allclose(got, routed(z, back, windows, o["tau"]), atol=1e-12)
    assert got.sum().item() == pytest.approx(back.sum().item(), abs=1e-10)  # nothing is lost, nothing is made
    _, (excited,) = pulled(pool, z, rules=excitation_pullback(o["tau"]), cotangent=back)
    assert torch.allclose(excited, routed(z, back, windows, o["tau"], excited=True), atol=1e-10)


@given(
    st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=3),
    st.sampled_from([0.05, 0.3, 2.0]),
    st.integers(0, 1000),
)
@settings(max_examples=40, deadline=None)
def test_adaptive_pooling_is_the_sum_over_windows(pairs: list[tuple[int, int]], tau: float, seed: int) -> None:
    outputs, sizes = [m for m, _ in pairs], [m + extra for m, extra in pairs]
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(2, 1, *sizes, dtype=torch.float64, generator=generator)

    def pool(z):
        return ADAPTIVE[len(sizes)](z, tuple(outputs))

    back = torch.randn(pool(z).shape, dtype=torch.float64, generator=generator)
    value, (got,) = pulled(pool, z, rules=soft(tau), cotangent=back)
    assert torch.equal(value, pool(z))
    assert torch.allclose(got, routed(z, back, adaptive(sizes, outputs), tau), atol=1e-12)
    assert got.sum().item() == pytest.approx(back.sum().item(), abs=1e-10)
    _, (excited,) = pulled(pool, z, rules=excitation_pullback(tau), cotangent=back)
    assert torch.allclose(excited, routed(z, back, adaptive(sizes, outputs), tau, excited=True), atol=1e-10)


def test_the_weights_of_a_window_have_the_reference_values() -> None:
    z = torch.tensor([[[[0.1, 0.2], [0.3, 0.4]]]], dtype=torch.float64)
    got = pull(nn.MaxPool2d(2), z, soft_pullback("paper"))
    assert got.flatten().tolist() == pytest.approx([0.141610, 0.197633, 0.275819, 0.384937], abs=1e-6)


def test_padding_takes_no_share() -> None:
    """Ours: 4.0. The reference pads with zeros and loses cotangent: 3.586 (docs/numbers-not-matched.md)."""
    z = (torch.arange(16, dtype=torch.float64) / 10).reshape(1, 1, 4, 4)
    got = pull(nn.MaxPool2d(3, 2, 1), z, soft_pullback("paper"))
    assert got.sum().item() == pytest.approx(4.0, abs=1e-12)
    zero_padded = F.pad(z, (1, 1, 1, 1)).unfold(2, 3, 2).unfold(3, 3, 2).reshape(4, 9)
    inside = F.pad(torch.ones_like(z), (1, 1, 1, 1)).unfold(2, 3, 2).unfold(3, 3, 2).reshape(4, 9)
    assert ((zero_padded / 0.3).softmax(1) * inside).sum().item() == pytest.approx(3.586174, abs=1e-6)


@pytest.mark.parametrize("level", [0.0, -2.5, 7.0])
def test_uniform_maps_keep_their_cotangent(level: float) -> None:
    z = torch.full((1, 1, 9, 9), level, dtype=torch.float64)
    assert pull(nn.MaxPool2d(3, 2, 1), z, soft_pullback("paper")).sum().item() == pytest.approx(25.0, abs=1e-10)


def test_limits_are_the_gradient_and_average_pooling() -> None:
    z = torch.randperm(2 * 36).double().reshape(1, 2, 6, 6)
    back = torch.randn(1, 2, 3, 3, dtype=torch.float64)
    hard = pull(nn.MaxPool2d(2), z, pullback(), back)
    assert torch.allclose(pull(nn.MaxPool2d(2), z, soft(1e-4), back), hard, atol=1e-12)
    assert torch.equal(pull(nn.MaxPool2d(2), z, soft(0.0), back), hard)
    average = pull(nn.AvgPool2d(2), z, pullback(), back)
    assert torch.allclose(pull(nn.MaxPool2d(2), z, soft(1e9), back), average, atol=1e-7)


def test_ties_share_equally_at_temperature_zero() -> None:
    z = torch.tensor([[[1.0, 1.0, 0.0, 0.5]]], dtype=torch.float64)
    for rules in (soft(0.0), excitation_pullback(0.0)):
        assert pull(nn.MaxPool1d(4), z, rules).flatten().tolist() == [0.5, 0.5, 0.0, 0.0]


@pytest.mark.parametrize("tau", [0.0, 1e-12, 0.3, 1e6])
def test_extremes_stay_finite(tau: float) -> None:
    z = torch.tensor([[[1e4, -1e4, 0.0, 1e-30, -1e4, -1e4]]])
    for rules in (soft(tau), excitation_pullback(tau)):
        got = pull(nn.MaxPool1d(3, 1, 1), z, rules)
        assert torch.isfinite(got).all()
        if rules.name == "soft_pullback":
            assert got.sum().item() == pytest.approx(6.0, rel=1e-5)


@pytest.mark.parametrize("low", [-math.inf, math.inf])
def test_infinite_entries_leave_the_value_alone(low: float) -> None:
    z = torch.tensor([[[low, 1.0, 2.0, 0.5]]], dtype=torch.float64)
    value, _ = pulled(nn.MaxPool1d(2), z, rules=soft_pullback("paper"))
    assert torch.equal(value, F.max_pool1d(z, 2))
    if low < 0:
        got = pull(nn.MaxPool1d(2), z, soft_pullback("paper"))
        assert got[0, 0, :2].tolist() == [0.0, 1.0]


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_spellings_of_a_pool_agree(rank: int) -> None:
    sizes = (5,) * rank
    z = torch.randn(2, 3, *sizes, dtype=torch.float64)
    module = {1: nn.MaxPool1d, 2: nn.MaxPool2d, 3: nn.MaxPool3d}[rank]
    adaptive_module = {1: nn.AdaptiveMaxPool1d, 2: nn.AdaptiveMaxPool2d, 3: nn.AdaptiveMaxPool3d}[rank]
    expected = pull(lambda z: POOLS[rank](z, 3, 2, 1), z, soft_pullback("paper"))
    several = [
        lambda z: POOLS[rank](z, kernel_size=(3,) * rank, stride=[2] * rank, padding=1),
        lambda z: POOLS[rank](z, 3, 2, 1, 1, False, True)[0],
        lambda z: POOLS[rank](input=z, kernel_size=3, stride=2, padding=1, return_indices=True)[0],
        lambda z: getattr(F, f"max_pool{rank}d_with_indices")(z, 3, 2, 1)[0],
        lambda z: getattr(torch, f"max_pool{rank}d")(z, 3, 2, 1),
        module(3, 2, 1),
        module(3, 2, 1, return_indices=True),
    ]
    for spelling in several:
        assert torch.allclose(pull(spelling, z, soft_pullback("paper")), expected, atol=1e-14)
    default_stride = pull(lambda z: POOLS[rank](z, 2), z, soft_pullback("paper"))
    assert torch.equal(pull(module(2), z, soft_pullback("paper")), default_stride)
    to_two = pull(lambda z: ADAPTIVE[rank](z, 2), z, soft_pullback("paper"))
    for spelling in (adaptive_module(2), adaptive_module(2, return_indices=True)):
        assert torch.allclose(pull(spelling, z, soft_pullback("paper")), to_two, atol=1e-14)


def test_adaptive_pooling_keeps_an_axis_of_size_none() -> None:
    z = torch.randn(1, 2, 5, 6, dtype=torch.float64)
    got = pull(nn.AdaptiveMaxPool2d((None, 2)), z, soft_pullback("paper"))
    assert torch.allclose(got, pull(nn.MaxPool2d((1, 3)), z, soft_pullback("paper")), atol=1e-14)


def test_indices_are_the_pool_s_own_and_unpooling_follows_them() -> None:
    z = torch.randn(1, 1, 4, 4, dtype=torch.float64)

    def encode(z: Tensor) -> Tensor:
        y, indices = F.max_pool2d(z, 2, return_indices=True)
        return y * (indices % 2)

    value, _ = pulled(encode, z, rules=soft_pullback("paper"))
    assert torch.equal(value, encode(z))


@pytest.mark.parametrize("setting", ["paper", "relative"])
def test_unbatched_maps_are_pooled_too(setting: str) -> None:
    z = torch.randn(2, 4, 4, dtype=torch.float64)
    rules = soft_pullback(setting)
    if setting == "paper":
        assert torch.allclose(pull(nn.MaxPool2d(2), z, rules), pull(nn.MaxPool2d(2), z[None], rules)[0], atol=1e-14)
    assert pull(nn.MaxPool2d(2), z, rules).sum().item() == pytest.approx(8.0)
