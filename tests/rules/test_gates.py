"""Gates in closed form: a(z) = a(0) + z G(z), soft gates, limits. Numbers: Semantic Pullbacks, appendix A."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from probes import Spelled, pull, pulled
from torch import Tensor, nn
from torch.nn import functional as F

from backlight.engine import RuleSet, attribute
from backlight.errors import ModelError, UncoveredOperationError
from backlight.rules import Relative, deconvnet, excitation_pullback, gradient, guided, pullback, soft_pullback
from backlight.rules.gates import ACTIVATIONS

Z = [-2.0, -1.0, -0.6, -0.3, 0.0, 0.3, 0.6, 1.0, 2.0]
SELU = (1.6732632423543772, 1.0507009873554805)
SLOPES = torch.tensor([0.1, 0.4, -0.2], dtype=torch.float64)


def phi(u: Tensor) -> Tensor:
    """The normal cumulative distribution function, entry by entry, from the standard library."""
    return u.clone().apply_(lambda v: 0.5 * math.erfc(-v / math.sqrt(2)))


def exponential(alpha: float, scale: float, rate: float) -> Callable[[Tensor], Tensor]:
    """The negative branch of an ELU over z, alpha * rate from 0 on."""
    return lambda z: torch.where(
        z < 0, scale * alpha * torch.expm1(z * rate) / torch.where(z < 0, z, -1.0), scale * alpha * rate
    )


def per_channel(z: Tensor) -> Tensor:
    return SLOPES.reshape(1, 3, 1).expand_as(z)


def low(value: float) -> Callable[[Tensor], Tensor]:
    return lambda z: torch.full_like(z, value)


# name -> (activation, gates of the upper and of the lower branch, each continued by its limit at 0)
SWITCHES: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "relu": (F.relu, low(1.0), low(0.0)),
    "relu6": (F.relu6, lambda z: torch.where(z > 6, 6 / z, 1.0), low(0.0)),
    "leaky_relu": (lambda z: F.leaky_relu(z, 0.2), low(1.0), low(0.2)),
    "prelu": (lambda z: F.prelu(z, SLOPES), low(1.0), per_channel),
    "rrelu": (lambda z: F.rrelu(z, 0.1, 0.3), low(1.0), low(0.2)),
    "elu": (lambda z: F.elu(z, 0.7), low(1.0), exponential(0.7, 1.0, 1.0)),
    "celu": (lambda z: F.celu(z, 0.7), low(1.0), exponential(0.7, 1.0, 1 / 0.7)),
    "selu": (F.selu, low(SELU[1]), exponential(*SELU, 1.0)),
    "threshold": (lambda z: F.threshold(z, 0.0, 0.0), low(1.0), low(0.0)),
}
# name -> (activation, which temperature, gate)
SMOOTH: dict[str, tuple[Callable[[Tensor], Tensor], str, Callable[[Tensor], Tensor]]] = {
    "silu": (F.silu, "silu", torch.sigmoid),
    "gelu": (F.gelu, "gelu", phi),
    "gelu tanh": (
        lambda z: F.gelu(z, approximate="tanh"),
        "gelu",
        lambda z: (1 + torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3))) / 2,
    ),
    "hardswish": (F.hardswish, "silu", lambda z: (z / 6 + 0.5).clamp(0, 1)),
    "mish": (F.mish, "silu", lambda z: torch.tanh(torch.log1p(torch.exp(z)))),
    "softplus": (
        lambda z: F.softplus(z, beta=2.0),
        "silu",
        lambda z: torch.where(z == 0, 0.5, (torch.log1p(torch.exp(2 * z)) - math.log(2)) / (2 * z)),
    ),
}
SATURATING: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "hardsigmoid": F.hardsigmoid,
    "hardtanh": F.hardtanh,
    "hardtanh off centre": lambda z: F.hardtanh(z, 0.5, 1.5),
    "clamp": lambda z: z.clamp(-0.4, 0.9),
    "clamp_max": lambda z: z.clamp_max(0.7),
    "clamp above 0": lambda z: z.clamp(min=0.4),
    "softsign": F.softsign,
    "logsigmoid": F.logsigmoid,
    "tanhshrink": F.tanhshrink,
    "hardshrink": lambda z: F.hardshrink(z, 0.8),
    "softshrink": lambda z: F.softshrink(z, 0.8),
}
ALL: dict[str, Callable[[Tensor], Tensor]] = {
    **{name: entry[0] for name, entry in SWITCHES.items()},
    **{name: entry[0] for name, entry in SMOOTH.items()},
    **SATURATING,
}
RULES: dict[str, Callable[[], RuleSet]] = {
    "pullback": pullback,
    "soft": lambda: soft_pullback("paper"),
    "relative": lambda: soft_pullback("relative"),
    "excitation": excitation_pullback,
    "guided": guided,
    "deconvnet": deconvnet,
}


def points(count: int = 40) -> Tensor:
    """`[2, 3, count]` pre-activations, zeros and kinks among them."""
    z = 3 * torch.randn(2, 3, count, dtype=torch.float64)
    z[0, 0, :9] = torch.tensor(Z, dtype=torch.float64)
    z[1, 1, :4] = torch.tensor([-3.0, 3.0, 6.0, 7.0], dtype=torch.float64)
    return z


def temperature(**given: float | Relative) -> RuleSet:
    return soft_pullback(given)


def test_every_activation_of_the_rules_is_tested_here() -> None:
    tested = {name.split()[0] for name in ALL} | {"quick_gelu"}
    assert tested >= set(ACTIVATIONS)


@pytest.mark.parametrize(
    ("function", "setting", "expected"),
    [
        (F.relu, 0.6, [0.000429, 0.047790, 0.158655, 0.308538, 0.5, 0.691462, 0.841345, 0.952210, 0.999571]),
        (F.silu, 1.6, [0.222700, 0.348645, 0.407333, 0.453262, 0.5, 0.546738, 0.592667, 0.651355, 0.777300]),
        (F.gelu, 1.0, [0.022750, 0.158655, 0.274253, 0.382089, 0.5, 0.617911, 0.725747, 0.841345, 0.977250]),
    ],
)
def test_soft_gates_have_the_reference_values(function: Any, setting: float, expected: list[float]) -> None:
    z = torch.tensor([Z], dtype=torch.float64)
    name = function.__name__
    for rules in (soft_pullback("paper"), temperature(**{name: setting})):
        assert pull(function, z, rules)[0].tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("rules", RULES)
def test_values_are_bit_exact(name: str, rules: str) -> None:
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        z = points().to(dtype)
        function = ALL[name]
        if name == "prelu":
            function = partial(F.prelu, weight=SLOPES.to(dtype))
        y, _ = pulled(function, z, rules=RULES[rules]())
        assert torch.equal(y, function(z))


@pytest.mark.parametrize("name", ALL)
def test_the_gate_times_the_input_is_the_activation_less_its_value_at_zero(name: str) -> None:
    z = points()
    gate = pull(ALL[name], z, pullback())
    expected = ALL[name](z) - ALL[name](torch.zeros_like(z))
    assert torch.allclose(gate * z, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ALL)
def test_the_value_at_zero_is_the_share_of_the_bias(name: str) -> None:
    z = points()
    model = Spelled(lambda x: ALL[name](x).flatten(1).sum(1, keepdim=True))
    result = attribute(model, z, 0, rules=pullback(), bias=True)
    at_zero = ALL[name](torch.zeros_like(z)).flatten(1).sum(1)
    assert torch.allclose(result.bias, at_zero, atol=1e-9)
    assert result.residual.abs().max() < 1e-9


@pytest.mark.parametrize("name", SWITCHES)
@pytest.mark.parametrize("tau", [0.05, 0.6, 3.0])
def test_a_soft_switch_averages_its_branches(name: str, tau: float) -> None:
    z = points()
    function, upper, lower = SWITCHES[name]
    weight = phi(z / tau)
    expected = weight * upper(z) + (1 - weight) * lower(z)
    assert torch.allclose(pull(function, z, temperature(relu=tau)), expected, atol=1e-12)


@pytest.mark.parametrize("name", SWITCHES)
def test_an_excited_switch_averages_its_branches_logistically(name: str) -> None:
    z = points()
    function, upper, lower = SWITCHES[name]
    weight = torch.sigmoid(z / 0.3)
    expected = weight * upper(z) + (1 - weight) * lower(z)
    assert torch.allclose(pull(function, z, excitation_pullback()), expected, atol=1e-12)


@pytest.mark.parametrize("name", SMOOTH)
@pytest.mark.parametrize("tau", [0.4, 1.0, 1.6])
def test_a_smooth_gate_is_stretched(name: str, tau: float) -> None:
    z = points()
    function, scale, gate = SMOOTH[name]
    assert torch.allclose(pull(function, z, temperature(**{scale: tau})), gate(z / tau), atol=1e-9)


@pytest.mark.parametrize("name", SMOOTH)
def test_temperature_one_is_the_adjoint_of_a_smooth_gate(name: str) -> None:
    function, scale, _ = SMOOTH[name]
    z = points()
    assert torch.allclose(pull(function, z, temperature(**{scale: 1.0})), pull(function, z, pullback()), atol=1e-12)


@pytest.mark.parametrize("name", SATURATING)
def test_saturating_activations_are_not_softened(name: str) -> None:
    z = points()
    assert torch.equal(pull(SATURATING[name], z, soft_pullback(5.0)), pull(SATURATING[name], z, pullback()))


@pytest.mark.parametrize("name", [*SWITCHES, *SMOOTH])
def test_at_temperature_zero_gates_are_steps_with_their_own_value_at_zero(name: str) -> None:
    z = points()
    function = ALL[name]
    at_zero = SMOOTH[name][2](torch.zeros(1, dtype=z.dtype)).item() if name in SMOOTH else 0.5
    step = torch.heaviside(z, torch.full((), at_zero, dtype=z.dtype))
    upper, lower = SWITCHES[name][1:] if name in SWITCHES else (low(1.0), low(0.0))
    got = pull(function, z, soft_pullback(0.0))
    assert torch.allclose(got, step * upper(z) + (1 - step) * lower(z), atol=1e-12)
    near = pull(function, z, soft_pullback(1e-9))
    if name != "softplus":  # its gate reaches the step like 1 / z
        assert torch.allclose(near[z != 0], got[z != 0], atol=1e-6)


@pytest.mark.parametrize("name", ["relu", "leaky_relu", "elu", "prelu"])
def test_a_small_temperature_gives_the_hard_gate_and_a_large_one_the_mean_of_both_branches(name: str) -> None:
    z = points()
    function, upper, lower = SWITCHES[name]
    away = z.abs() > 1e-3
    assert torch.allclose(pull(function, z, soft_pullback(1e-6))[away], pull(function, z, pullback())[away], atol=1e-9)
    assert torch.allclose(pull(function, z, soft_pullback(1e9)), (upper(z) + lower(z)) / 2, atol=1e-6)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("tau", [0.0, 1e-12, 0.6, 1e6])
def test_cotangents_are_finite_at_zero_and_at_extremes(name: str, tau: float) -> None:
    values = [0.0, -0.0, 1e-30, -1e-30, 1e4, -1e4, 6.0, 3.0, -3.0]
    z = torch.tensor(values, dtype=torch.float64).repeat(3, 1)[None]
    for dtype in (torch.float64, torch.float32):
        function = ALL[name] if name != "prelu" else partial(F.prelu, weight=SLOPES.to(dtype))
        for rules in (soft_pullback(tau), pullback(), excitation_pullback(tau)):
            assert torch.isfinite(pull(function, z.to(dtype), rules)).all()


def test_a_relative_temperature_is_the_spread_of_the_pre_activations() -> None:
    z = points()
    tau = torch.stack([sample.std(correction=0) for sample in z]).reshape(2, 1, 1)
    for c in (0.5, 1.5):
        assert torch.allclose(pull(F.relu, z, temperature(relu=Relative(c))), phi(z / (c * tau)), atol=1e-6)
    channels = z.std(1, correction=0, keepdim=True)  # of tokens [N, T, D], the last axis is the channels
    assert torch.allclose(pull(F.relu, z, temperature(relu=Relative(1.0, "channel"))), phi(z / channels), atol=1e-6)


def test_by_default_switches_are_relative_and_smooth_gates_are_the_paper_s() -> None:
    z = points()
    for function in (F.relu, F.leaky_relu):
        expected = pull(function, z, temperature(relu=Relative(1.0)))
        for rules in (soft_pullback("relative"), soft_pullback()):
            assert torch.equal(pull(function, z, rules), expected)
    for function in (F.silu, F.gelu):
        assert torch.equal(pull(function, z, soft_pullback()), pull(function, z, soft_pullback("paper")))


def test_constant_pre_activations_have_relative_temperature_zero() -> None:
    z = torch.tensor([[2.0, 2.0], [-1.0, -1.0], [0.0, 0.0]], dtype=torch.float64)
    got = pull(F.relu, z, soft_pullback("relative"))
    assert got.tolist() == [[1.0, 1.0], [0.0, 0.0], [0.5, 0.5]]


def test_guided_and_deconvnet_pass_positive_cotangents_only() -> None:
    z = points()
    back = torch.randn_like(z)
    active = (z > 0).double()
    assert torch.equal(pull(F.relu, z, guided(), back), back.clamp(min=0) * active)
    assert torch.equal(pull(F.relu, z, deconvnet(), back), back.clamp(min=0))
    slope = torch.autograd.functional.jvp(F.silu, z, torch.ones_like(z))[1]
    assert torch.allclose(pull(F.silu, z, guided(), back), back.clamp(min=0) * slope, atol=1e-12)


def test_glu_holds_its_gate() -> None:
    z = torch.randn(2, 6, 3, dtype=torch.float64)
    back = torch.randn(2, 3, 3, dtype=torch.float64)
    got = pull(lambda x: F.glu(x, dim=1), z, pullback(), back)
    expected = torch.cat((back * torch.sigmoid(z[:, 3:]), torch.zeros_like(back)), 1)
    assert torch.allclose(got, expected, atol=1e-12)


def test_squeeze_and_excitation_holds_its_gate() -> None:
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    weight = torch.randn(3, 3, dtype=torch.float64)

    def excite(x: Tensor, squash: Callable[[Tensor], Tensor]) -> Tensor:
        return x * squash(x.mean((2, 3)) @ weight)[:, :, None, None]

    for squash in (torch.sigmoid, F.hardsigmoid):
        gate = squash(x.mean((2, 3)) @ weight)[:, :, None, None].expand_as(x)
        for rules in (pullback(), soft_pullback("paper")):
            assert torch.allclose(pull(lambda x, s=squash: excite(x, s), x, rules), gate, atol=1e-12)
        assert not torch.allclose(pull(lambda x, s=squash: excite(x, s), x, gradient()), gate, atol=1e-3)


ORDER = [1, 0, 3, 2]
SCALED: dict[str, Callable[[Tensor], Tensor]] = {
    "doubled": lambda z: 2 * z.sigmoid(),
    "halved": lambda z: z.sigmoid() / 2,
    "moved": lambda z: z.sigmoid()[:, ORDER],
}


@pytest.mark.parametrize("name", SCALED)
def test_a_gate_that_is_scaled_or_moved_is_held_as_it_is(name: str) -> None:
    z = torch.randn(3, 4, dtype=torch.float64)
    assert torch.allclose(pull(lambda z: SCALED[name](z) * z, z, pullback()), SCALED[name](z), atol=1e-12)


def test_a_random_leak_is_refused() -> None:
    with pytest.raises(ModelError, match="RReLU"):
        pull(nn.RReLU(0.1, 0.5).train(), torch.randn(2, 9, dtype=torch.float64), pullback())


def test_a_softplus_that_turns_linear_has_the_gate_of_what_it_is() -> None:
    z = torch.randn(2, 9, dtype=torch.float64)
    value, (gate,) = pulled(lambda z: F.softplus(z, 1.0, 1.0), z, rules=pullback())
    assert torch.allclose(gate * z, value - math.log(2), atol=1e-12)


def test_a_threshold_elsewhere_has_no_rule() -> None:
    with pytest.raises(UncoveredOperationError, match="threshold"):
        pull(nn.Threshold(0.5, 0.1), points(), pullback())


@pytest.mark.parametrize("gate", [torch.sigmoid, F.hardsigmoid])
def test_counting_biases_does_not_change_how_a_gate_is_held(gate: Callable[[Tensor], Tensor]) -> None:
    """A squeeze-and-excitation: the gate's a(0) = 1/2 is bias, and the gate stays one where that is counted."""
    squeeze = nn.Conv2d(2, 2, 1).double()
    model = Spelled(lambda x: (x * gate(squeeze(x.mean((2, 3), keepdim=True)))).flatten(1), squeeze)
    x = torch.randn(2, 2, 3, 3, dtype=torch.float64)
    found = attribute(model, x, 1, rules=pullback(), readout="value", bias=True)
    assert torch.equal(found.value, attribute(model, x, 1, rules=pullback(), readout="value").value)
    assert found.residual.abs().max() < 1e-12
