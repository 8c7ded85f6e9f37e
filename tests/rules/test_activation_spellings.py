"""One activation, every way to write it: the same value and cotangent; the caller's tensor is not touched."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from probes import Spelled, pull, pulled
from torch import Tensor, nn
from torch.nn import functional as F

from backlight.engine import RuleSet
from backlight.errors import UncoveredOperationError
from backlight.rules import deconvnet, excitation_pullback, guided, pullback, soft_pullback

RULES: dict[str, Callable[[], RuleSet]] = {
    "pullback": pullback,
    "soft": soft_pullback,
    "excitation": excitation_pullback,
    "guided": guided,
    "deconvnet": deconvnet,
}


def statement(function: Callable[[Tensor], Any]) -> Callable[[Tensor], Tensor]:
    """In-place on a value of the network, with what the call returns thrown away, and a use of the value after it."""

    def run(z: Tensor) -> Tensor:
        z = z * 1
        function(z)
        return z * 1

    return run


def leaky(slope: float) -> nn.PReLU:
    module = nn.PReLU().double()
    nn.init.constant_(module.weight, slope)
    return module


def zero(z: Tensor) -> Tensor:
    return torch.zeros((), dtype=z.dtype)


# the first spelling is the one the others are compared with
SPELLINGS: dict[str, list[Callable[[Tensor], Tensor]]] = {
    "relu": [
        F.relu,
        torch.relu,
        Tensor.relu,
        nn.ReLU(),
        nn.ReLU(inplace=True),
        nn.Threshold(0, 0),
        lambda z: z.clamp(min=0),
        lambda z: z.clamp_min(0),
        lambda z: torch.clip(z, 0),
        lambda z: torch.clamp(input=z, min=0.0),
        lambda z: torch.maximum(z, zero(z)),
        lambda z: z.maximum(torch.zeros_like(z)),
        statement(torch.relu_),
        statement(lambda z: z.relu_()),
        statement(lambda z: F.relu(z, inplace=True)),
        statement(lambda z: F.relu_(z)),
        statement(lambda z: z.clamp_(min=0)),
        statement(lambda z: z.clamp_min_(0)),
        statement(lambda z: F.threshold_(z, 0, 0)),
        statement(nn.ReLU(inplace=True)),
    ],
    "relu6": [
        F.relu6,
        nn.ReLU6(),
        nn.ReLU6(inplace=True),
        lambda z: z.clamp(0, 6),
        lambda z: F.hardtanh(z, 0, 6),
        statement(lambda z: F.hardtanh_(z, 0.0, 6.0)),
        statement(lambda z: z.clamp_(0, 6)),
    ],
    "leaky_relu": [
        lambda z: F.leaky_relu(z, 0.2),
        nn.LeakyReLU(0.2),
        nn.LeakyReLU(0.2, inplace=True),
        nn.RReLU(0.1, 0.3).eval(),
        statement(lambda z: F.leaky_relu_(z, 0.2)),
        lambda z: F.prelu(z, torch.full((1,), 0.2, dtype=z.dtype)),
        leaky(0.2),
    ],
    "elu": [F.elu, nn.ELU(), nn.ELU(inplace=True), nn.CELU(), F.celu, statement(lambda z: F.elu_(z))],
    "selu": [F.selu, torch.selu, nn.SELU(), nn.SELU(inplace=True), statement(torch.selu_)],
    "silu": [
        F.silu,
        nn.SiLU(),
        nn.SiLU(inplace=True),
        statement(lambda z: F.silu(z, inplace=True)),
        lambda z: z * torch.sigmoid(z),
        lambda z: z.sigmoid() * z,
        lambda z: z.mul(F.sigmoid(z)),
    ],
    "gelu": [F.gelu, nn.GELU(), torch._C._nn.gelu],
    "gelu tanh": [lambda z: F.gelu(z, approximate="tanh"), nn.GELU("tanh")],
    "hardswish": [F.hardswish, nn.Hardswish(), nn.Hardswish(inplace=True)],
    "mish": [F.mish, nn.Mish(), nn.Mish(inplace=True)],
    "softplus": [F.softplus, nn.Softplus()],
    "tanh": [torch.tanh, Tensor.tanh, nn.Tanh(), statement(lambda z: z.tanh_())],
    "sigmoid": [torch.sigmoid, F.sigmoid, nn.Sigmoid(), statement(lambda z: z.sigmoid_())],
    "hardsigmoid": [F.hardsigmoid, nn.Hardsigmoid(), nn.Hardsigmoid(inplace=True)],
    "hardtanh": [F.hardtanh, nn.Hardtanh(), lambda z: z.clamp(-1, 1), statement(lambda z: z.clamp_(-1, 1))],
    "softsign": [F.softsign, nn.Softsign()],
    "logsigmoid": [F.logsigmoid, nn.LogSigmoid()],
    "tanhshrink": [F.tanhshrink, nn.Tanhshrink()],
    "hardshrink": [F.hardshrink, nn.Hardshrink()],
    "softshrink": [F.softshrink, nn.Softshrink()],
    "glu": [F.glu, nn.GLU()],
}
CASES = [(name, number) for name, spellings in SPELLINGS.items() for number in range(1, len(spellings))]

# modules of torch.nn.modules.activation that are no gates, and where they are tested
OTHER = {
    "MultiheadAttention": "test_multihead.py",
    "Softmax": "test_attention.py",
    "Softmax2d": "a softmax over channels",
    "Softmin": "no rule: strict runs raise",
    "LogSoftmax": "no rule: strict runs raise",
}


@pytest.mark.parametrize(("name", "number"), CASES)
@pytest.mark.parametrize("rules", RULES)
def test_a_spelling_gives_the_same_value_and_cotangent(name: str, number: int, rules: str) -> None:
    if name == "silu" and number > 3 and rules in ("guided", "deconvnet"):
        pytest.skip("a product with a sigmoid is a SiLU for the adjoint rules only: elsewhere it is two activations")
    z = 3 * torch.randn(2, 3, 8, dtype=torch.float64)
    first, other = SPELLINGS[name][0], SPELLINGS[name][number]
    back = torch.randn_like(first(z))
    y, (expected,) = pulled(first, z, rules=RULES[rules](), cotangent=back)
    value, (got,) = pulled(other, z, rules=RULES[rules](), cotangent=back)
    exact = name not in ("silu", "leaky_relu", "elu")  # x * sigmoid(x), expm1 with another rate: one rounding apart
    assert torch.equal(value, y) if exact else torch.allclose(value, y, rtol=1e-14)
    assert torch.allclose(got, expected, atol=1e-12)


@pytest.mark.parametrize("name", SPELLINGS)
def test_a_written_in_place_activation_has_the_module_s_own_value(name: str) -> None:
    z = 3 * torch.randn(2, 3, 8, dtype=torch.float64)
    for spelling in SPELLINGS[name]:
        y, _ = pulled(spelling, z, rules=soft_pullback("paper"))
        assert torch.equal(y, spelling(z.clone()))


@pytest.mark.parametrize(
    "spelling",
    [
        lambda z: torch.maximum(zero(z), z),
        lambda z: torch.max(z, torch.zeros_like(z)),
        lambda z: torch.fmax(z, zero(z)),
    ],
    ids=["maximum(0, z)", "max(z, 0)", "fmax(z, 0)"],
)
def test_a_maximum_with_zeros_is_a_relu(spelling: Callable[[Tensor], Tensor]) -> None:
    z = torch.randn(2, 6, dtype=torch.float64)
    assert torch.allclose(
        pull(spelling, z, soft_pullback("paper")), pull(F.relu, z, soft_pullback("paper")), atol=1e-12
    )


def test_an_activation_in_place_may_be_the_last_thing_a_model_does() -> None:
    z = torch.randn(2, 6, dtype=torch.float64)

    def ends_in_place(z: Tensor) -> Tensor:
        z = z * 1
        F.relu(z, inplace=True)
        return z

    value, (back,) = pulled(ends_in_place, z, rules=soft_pullback("paper"))
    assert torch.equal(value, z.clamp(min=0))
    assert torch.allclose(back, pull(F.relu, z, soft_pullback("paper")))


def test_a_maximum_of_two_signals_is_routed_to_the_larger() -> None:
    a, b = torch.randn(2, 4, 5, dtype=torch.float64)
    _, (to_a, to_b) = pulled(torch.maximum, a, b, rules=soft_pullback("paper"))
    assert torch.equal(to_a, (a > b).double())
    assert torch.equal(to_b, (b > a).double())


def test_every_activation_module_of_torch_is_spelled_here() -> None:
    known = {type(spelling).__name__ for spellings in SPELLINGS.values() for spelling in spellings}
    assert set(nn.modules.activation.__all__) - known - set(OTHER) == set()


@pytest.mark.parametrize("module", [nn.Softmin(1), nn.LogSoftmax(1)], ids=["softmin", "log_softmax"])
def test_modules_without_a_rule_are_named(module: nn.Module) -> None:
    with pytest.raises(UncoveredOperationError, match=r"softmin|log_softmax"):
        pull(module, torch.randn(2, 3), pullback())


@pytest.mark.parametrize("name", ["relu", "relu6", "leaky_relu", "elu", "silu", "tanh"])
def test_the_tensor_of_the_caller_is_not_written(name: str) -> None:
    from backlight.engine import attribute

    for spelling in SPELLINGS[name]:
        x = torch.randn(2, 5, dtype=torch.float64)
        before, version = x.clone(), x._version
        attribute(Spelled(spelling), x, 0, rules=soft_pullback("paper"))
        assert torch.equal(x, before)
        assert x._version == version


class HandWrittenGELU(nn.Module):
    """The tanh form as Hugging Face writes it; the rule goes by the class name."""

    def forward(self, z: Tensor) -> Tensor:
        return 0.5 * z * (1.0 + torch.tanh((2 / torch.pi) ** 0.5 * (z + 0.044715 * torch.pow(z, 3.0))))


NewGELUActivation = type("NewGELUActivation", (HandWrittenGELU,), {})
QuickGELU = type("QuickGELU", (nn.Module,), {"forward": lambda self, z: z * torch.sigmoid(1.702 * z)})


@pytest.mark.parametrize("rules", [pullback, soft_pullback])
def test_a_gate_written_by_hand_inside_a_known_module_is_one_gate(rules: Callable[[], RuleSet]) -> None:
    z = torch.randn(2, 9, dtype=torch.float64)
    tanh_form = pull(lambda z: F.gelu(z, approximate="tanh"), z, rules())
    assert torch.allclose(pull(NewGELUActivation(), z, rules()), tanh_form, atol=1e-12)
    assert torch.allclose(pull(QuickGELU(), z, rules()), torch.sigmoid(1.702 * z), atol=1e-12)
    value, _ = pulled(NewGELUActivation(), z, rules=rules())
    assert torch.equal(value, NewGELUActivation()(z))
