"""Normalisation with its statistics held, against y = gamma (z - mu) / s + beta written out."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from probes import Spelled, pull, pulled
from torch import Tensor, nn
from torch.nn import functional as F

from backlight.engine import attribute
from backlight.errors import ModelError
from backlight.rules import gradient, pullback, soft_pullback


def random_affine(module: nn.Module) -> nn.Module:
    """The module in float64 and evaluation mode, its parameters and running statistics drawn at random."""
    module = module.double().eval()
    for tensor in (*module.parameters(), *(b for b in module.buffers() if b.is_floating_point())):
        nn.init.uniform_(tensor, 0.5, 1.5)
    return module


def moments(z: Tensor, axes: tuple[int, ...], eps: float = 1e-5) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation, biased."""
    mean = z.mean(axes, keepdim=True)
    return mean, ((z - mean).square().mean(axes, keepdim=True) + eps).sqrt()


def grouped(z: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    g = z.reshape(len(z), groups, -1)
    mean, s = moments(g, (2,))
    return tuple(v.expand_as(g).reshape_as(z) for v in (mean, s))  # type: ignore[return-value]


def channels(parameter: Tensor, z: Tensor) -> Tensor:
    return parameter.reshape(-1, *(1,) * (z.ndim - 2))


IMAGE, TOKENS, FLAT = (2, 6, 4, 5), (2, 5, 6), (3, 6)

# name -> (module, shape of z, z -> (mean, s), whether gamma lies on the channel axis)
NORMS: dict[str, tuple[nn.Module, tuple[int, ...], Callable[[Tensor], tuple[Tensor, Tensor]], bool]] = {
    "layer": (nn.LayerNorm(6), TOKENS, lambda z: moments(z, (-1,)), False),
    "layer, two axes": (nn.LayerNorm((4, 5)), IMAGE, lambda z: moments(z, (-2, -1)), False),
    "layer, flat": (nn.LayerNorm(6, eps=0.3), FLAT, lambda z: moments(z, (-1,), 0.3), False),
    "layer, no bias": (nn.LayerNorm(6, bias=False), TOKENS, lambda z: moments(z, (-1,)), False),
    "layer, plain": (nn.LayerNorm(6, elementwise_affine=False), TOKENS, lambda z: moments(z, (-1,)), False),
    "group": (nn.GroupNorm(3, 6), IMAGE, lambda z: grouped(z, 3), True),
    "group of one": (nn.GroupNorm(1, 6), IMAGE, lambda z: grouped(z, 1), True),
    "group, flat": (nn.GroupNorm(2, 6, affine=False), FLAT, lambda z: grouped(z, 2), True),
    "instance": (nn.InstanceNorm2d(6), IMAGE, lambda z: moments(z, (2, 3)), True),
    "instance, affine": (nn.InstanceNorm2d(6, affine=True), IMAGE, lambda z: moments(z, (2, 3)), True),
    "instance, 1d": (nn.InstanceNorm1d(5, affine=True), TOKENS, lambda z: moments(z, (2,)), True),
}
RUNNING: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "instance, tracked": (nn.InstanceNorm2d(6, affine=True, track_running_stats=True), IMAGE),
    "batch": (nn.BatchNorm2d(6), IMAGE),
    "batch, 1d": (nn.BatchNorm1d(6), FLAT),
    "batch, plain": (nn.BatchNorm2d(6, affine=False), IMAGE),
}
RULES = {"pullback": pullback, "soft": soft_pullback}


@pytest.mark.parametrize("rules", RULES)
@pytest.mark.parametrize("name", NORMS)
def test_statistics_are_held_also_the_mean(name: str, rules: str) -> None:
    module, shape, statistics, on_channels = NORMS[name]
    module = random_affine(module)
    z, back = 2 * torch.randn(shape, dtype=torch.float64) + 1, torch.randn(shape, dtype=torch.float64)
    value, (got,) = pulled(module, z, rules=RULES[rules](), cotangent=back)
    _, s = statistics(z)
    gamma = getattr(module, "weight", None)
    gamma = 1.0 if gamma is None else channels(gamma, z) if on_channels else gamma
    assert torch.equal(value, module(z))
    assert torch.allclose(got, gamma * back / s, atol=1e-12)
    assert not torch.allclose(got, pull(module, z, gradient(), back), atol=1e-3)


@pytest.mark.parametrize("name", NORMS)
def test_the_share_of_the_bias_is_beta_less_gamma_mu_over_s(name: str) -> None:
    module, shape, statistics, on_channels = NORMS[name]
    module = random_affine(module)
    z = 2 * torch.randn(shape, dtype=torch.float64) + 1
    mean, s = statistics(z)
    place = (lambda p: channels(p, z)) if on_channels else (lambda p: p)
    gamma, beta = (getattr(module, key, None) for key in ("weight", "bias"))
    constant = -mean / s * (1.0 if gamma is None else place(gamma)) + (0.0 if beta is None else place(beta))
    found = attribute(
        Spelled(lambda x: module(x).flatten(1).sum(1, keepdim=True), module), z, 0, rules=pullback(), bias=True
    )
    assert torch.allclose(found.bias, constant.expand_as(z).flatten(1).sum(1), atol=1e-9)
    assert found.residual.abs().max() < 1e-9


@pytest.mark.parametrize("rules", RULES)
@pytest.mark.parametrize("name", RUNNING)
def test_running_statistics_are_constants(name: str, rules: str) -> None:
    module, shape = RUNNING[name]
    module = random_affine(module)
    z, back = torch.randn(shape, dtype=torch.float64), torch.randn(shape, dtype=torch.float64)
    value, (got,) = pulled(module, z, rules=RULES[rules](), cotangent=back)
    assert torch.equal(value, module(z))
    gamma = 1.0 if module.weight is None else channels(module.weight, z)
    assert torch.allclose(got, gamma * back / channels(module.running_var + 1e-5, z).sqrt(), atol=1e-12)
    assert torch.allclose(got, pull(module, z, gradient(), back), atol=1e-12)
    model = Spelled(lambda x: module(x).flatten(1).sum(1, keepdim=True), module)
    assert attribute(model, z, 0, rules=pullback(), bias=True).residual.abs().max() < 1e-10


def test_layer_norm_has_the_reference_value() -> None:
    z = torch.tensor([[1.0, 2.0, 3.0, 4.0]], dtype=torch.float64)
    got = pull(nn.LayerNorm(4).double(), z, soft_pullback("paper"), torch.tensor([[1.0, 0, 0, 0]], dtype=torch.float64))
    assert got.flatten().tolist() == pytest.approx([0.894424, 0, 0, 0], abs=1e-6)


@pytest.mark.parametrize(
    "module",
    [nn.BatchNorm2d(6), nn.BatchNorm2d(6, track_running_stats=False).eval()],
    ids=["training", "without running statistics"],
)
def test_a_batch_norm_of_the_batch_is_refused(module: nn.Module) -> None:
    with pytest.raises(ModelError, match=r"eval\(\)"):
        pull(module.double(), torch.randn(IMAGE, dtype=torch.float64), pullback())


@pytest.mark.parametrize("shape", [TOKENS, FLAT])
@pytest.mark.parametrize("eps", [None, 1e-3])
def test_rms_norm_has_its_root_mean_square_held(shape: tuple[int, ...], eps: float | None) -> None:
    module = random_affine(nn.RMSNorm(6, eps=eps))
    z, back = torch.randn(shape, dtype=torch.float64), torch.randn(shape, dtype=torch.float64)
    value, (got,) = pulled(module, z, rules=soft_pullback("paper"), cotangent=back)
    s = (z.square().mean(-1, keepdim=True) + (torch.finfo(z.dtype).eps if eps is None else eps)).sqrt()
    assert torch.equal(value, module(z))
    assert torch.allclose(got, module.weight * back / s, atol=1e-12)


def mean(z: Tensor) -> Tensor:
    return z.mean(-1, keepdim=True)


def variance(z: Tensor) -> Tensor:
    return z.var(-1, keepdim=True, correction=0) + 1e-5


def power(z: Tensor) -> Tensor:
    return (z - mean(z)).pow(2).mean(-1, keepdim=True) + 1e-5


# layer normalisation over the last axis in the ways networks write it
BY_HAND: dict[str, Callable[[Tensor], Tensor]] = {
    "power, sqrt": lambda z: (z - mean(z)) / power(z).sqrt(),
    "power, rsqrt": lambda z: (z - mean(z)) * torch.rsqrt(power(z)),
    "functions": lambda z: torch.div(z.sub(mean(z)), torch.sqrt((z - mean(z)).square().mean(-1, keepdim=True) + 1e-5)),
    "reciprocal": lambda z: (z - mean(z)) * (1 / torch.sqrt(power(z))),
    "variance, sqrt": lambda z: (z - mean(z)) / torch.sqrt(variance(z)),
    "variance, rsqrt": lambda z: (z - mean(z)).mul(torch.rsqrt(variance(z))),
    "variance, **": lambda z: (z - mean(z)) / variance(z) ** 0.5,
    "variance, pow": lambda z: torch.sub(z, mean(z)) * variance(z).pow(-0.5),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_layer_norm_written_by_hand_is_layer_norm(name: str) -> None:
    z, back = torch.randn(TOKENS, dtype=torch.float64), torch.randn(TOKENS, dtype=torch.float64)
    value, (got,) = pulled(BY_HAND[name], z, rules=pullback(), cotangent=back)
    assert torch.equal(value, BY_HAND[name](z))
    assert torch.allclose(got, pull(nn.LayerNorm(6).double(), z, pullback(), back), atol=1e-12)


RMS: list[Callable[[Tensor], Tensor]] = [
    lambda z: z * torch.rsqrt(z.pow(2).mean(-1, keepdim=True) + 1e-6),
    lambda z: z / torch.sqrt((z * z).mean(-1, keepdim=True) + 1e-6),
    lambda z: z / (z.square().mean(-1, keepdim=True) + 1e-6) ** 0.5,
]


@pytest.mark.parametrize("number", range(len(RMS)))
def test_rms_norm_written_by_hand_has_its_root_held(number: int) -> None:
    z, back = torch.randn(TOKENS, dtype=torch.float64), torch.randn(TOKENS, dtype=torch.float64)
    s = (z.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    assert torch.allclose(pull(RMS[number], z, pullback(), back), back / s, atol=1e-12)


@pytest.mark.parametrize(("p", "axis", "eps"), [(2.0, 1, 1e-12), (1.0, -1, 1e-12), (2.0, -1, 3.0)])
def test_normalize_holds_the_norm(p: float, axis: int, eps: float) -> None:
    z, back = torch.randn(TOKENS, dtype=torch.float64), torch.randn(TOKENS, dtype=torch.float64)
    value, (got,) = pulled(lambda z: F.normalize(z, p, axis, eps), z, rules=pullback(), cotangent=back)
    norm = z.abs().pow(p).sum(axis, keepdim=True).pow(1 / p).clamp(min=eps)
    assert torch.equal(value, F.normalize(z, p, axis, eps))
    assert torch.allclose(got, back / norm, atol=1e-12)


def test_a_division_by_a_norm_holds_it() -> None:
    z, back = torch.randn(TOKENS, dtype=torch.float64), torch.randn(TOKENS, dtype=torch.float64)
    got, *_ = pulled(lambda z: z / z.norm(dim=-1, keepdim=True), z, rules=pullback(), cotangent=back, strict=False)[1]
    assert torch.allclose(got, back / z.norm(dim=-1, keepdim=True), atol=1e-12)


@pytest.mark.parametrize("shape", [(2, 6, 4, 5), (2, 6, 7)])
@pytest.mark.parametrize("size", [2, 3, 5])
def test_local_response_normalisation_holds_its_denominator(shape: tuple[int, ...], size: int) -> None:
    module = nn.LocalResponseNorm(size, alpha=0.5, beta=0.6, k=1.5)
    z, back = torch.randn(shape, dtype=torch.float64), torch.randn(shape, dtype=torch.float64)
    value, (got,) = pulled(module, z, rules=pullback(), cotangent=back)
    assert torch.equal(value, module(z))
    assert torch.allclose(got, back * module(z) / z, atol=1e-10)


def test_statistics_of_half_precision_are_taken_in_float32() -> None:
    z = (200 * torch.randn(2, 64)).to(torch.float16)  # squares overflow in float16
    got = pull(nn.LayerNorm(64).half(), z, pullback())
    expected = pull(nn.LayerNorm(64), z.float(), pullback())
    assert torch.allclose(got.float(), expected, rtol=2e-3)
