"""In-place calls, aliases, views and re-used modules are explained as the same network out of place."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from probes import Spelled, pulled
from torch import Tensor, nn
from torch.nn import functional as F

from backlight.engine import attribute
from backlight.rules import deconvnet, gradient, guided, pullback, soft_pullback

RULES = {
    "gradient": gradient(),
    "guided": guided(),
    "deconvnet": deconvnet(),
    "pullback": pullback(),
    "soft": soft_pullback("paper"),
    "relative": soft_pullback("relative"),
}
Function = Callable[[Tensor], Tensor]
W = torch.randn(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(5))


def lin(x: Tensor) -> Tensor:
    return F.linear(x, W)


def in_place(action: Callable[[Tensor], object]) -> Function:
    """lin(x), an action on it, and a use of it after the action."""

    def run(x: Tensor) -> Tensor:
        z = lin(x)
        action(z)
        return lin(z)

    return run


def used_before_and_after(x: Tensor) -> Tensor:
    z = lin(x)
    before = 2 * z
    z.relu_()
    return before + 3 * z


def used_before_and_after_plain(x: Tensor) -> Tensor:
    z = lin(x)
    return 2 * z + 3 * F.relu(z)


def view_then_base(x: Tensor) -> Tensor:
    z = lin(x)
    left = z[:, :3]
    z.relu_()
    return torch.cat((left, z), 1)


def view_then_base_plain(x: Tensor) -> Tensor:
    z = F.relu(lin(x))
    return torch.cat((z[:, :3], z), 1)


def base_then_view(x: Tensor) -> Tensor:
    z = lin(x)
    z[:, :3].relu_()
    return 2 * z


def base_then_view_plain(x: Tensor) -> Tensor:
    z = lin(x)
    return 2 * torch.cat((F.relu(z[:, :3]), z[:, 3:]), 1)


def reshaped(x: Tensor) -> Tensor:
    z = lin(x)
    z.view(-1).relu_()
    return lin(z)


def saved_then_added(x: Tensor) -> Tensor:
    z = lin(x)
    y = F.relu(z)
    z += y  # a soft rule needs what z was
    return lin(z)


def saved_then_added_plain(x: Tensor) -> Tensor:
    z = lin(x)
    return lin(z + F.relu(z))


def residual(x: Tensor) -> Tensor:
    z = lin(x)
    y = lin(F.relu(z))
    y += z
    y.add_(1.0).mul_(0.5).relu_()
    return y * 1


def residual_plain(x: Tensor) -> Tensor:
    z = lin(x)
    return F.relu((lin(F.relu(z)) + z + 1.0) * 0.5)


def first_on_the_input(x: Tensor) -> Tensor:
    x.relu_()
    return lin(x)


def grown(x: Tensor) -> Tensor:
    y = F.silu(lin(x))
    y += x
    return F.relu(lin(y))


def twice(x: Tensor) -> Tensor:
    z = lin(x)
    z.sub_(0.5).relu_()
    z = z - 0.5
    z.relu_()
    return lin(z)


def aliased(x: Tensor) -> Tensor:
    z = lin(x)
    same = z
    other = z.detach().clone()
    z.relu_()
    return lin(same) + other


# name -> (as written, the same function out of place)
PAIRS: dict[str, tuple[Function, Function]] = {
    "z.relu_()": (in_place(lambda z: z.relu_()), lambda x: lin(F.relu(lin(x)))),
    "F.relu(z, inplace=True)": (in_place(lambda z: F.relu(z, inplace=True)), lambda x: lin(F.relu(lin(x)))),
    "F.silu(z, inplace=True)": (in_place(lambda z: F.silu(z, inplace=True)), lambda x: lin(F.silu(lin(x)))),
    "nn.Hardswish(inplace=True)": (in_place(nn.Hardswish(inplace=True)), lambda x: lin(F.hardswish(lin(x)))),
    "z.clamp_(0)": (in_place(lambda z: z.clamp_(0)), lambda x: lin(F.relu(lin(x)))),
    "used before and after": (used_before_and_after, used_before_and_after_plain),
    "a view, then the base in place": (view_then_base, view_then_base_plain),
    "a view in place": (base_then_view, base_then_view_plain),
    "a reshape in place": (reshaped, lambda x: lin(F.relu(lin(x)))),
    "saved, then += ": (saved_then_added, saved_then_added_plain),
    "residual": (residual, residual_plain),
    "what an activation gave, then +=": (grown, lambda x: F.relu(lin(F.silu(lin(x)) + x))),
    "on the input": (first_on_the_input, lambda x: lin(F.relu(x))),
    "twice": (twice, lambda x: lin(F.relu(F.relu(lin(x) - 0.5) - 0.5))),
    "two names": (aliased, lambda x: lin(F.relu(lin(x))) + lin(x).detach()),
}


@pytest.mark.parametrize("rules", RULES)
@pytest.mark.parametrize("name", PAIRS)
def test_in_place_is_out_of_place(name: str, rules: str) -> None:
    if (name, rules) == ("a reshape in place", "relative"):
        pytest.skip("a temperature relative to the spread of a sample has no meaning where samples are not rows")
    written, plain = PAIRS[name]
    x = torch.randn(3, 6, dtype=torch.float64)
    back = torch.randn_like(plain(x))
    value, (got,) = pulled(written, x, rules=RULES[rules], cotangent=back)
    expected_value, (expected,) = pulled(plain, x, rules=RULES[rules], cotangent=back)
    assert torch.equal(value, written(x.clone()))
    assert torch.allclose(value, expected_value, atol=1e-12)
    assert torch.allclose(got, expected, atol=1e-12)


@pytest.mark.parametrize("rules", RULES)
@pytest.mark.parametrize("name", PAIRS)
def test_the_caller_s_input_is_as_it_was(name: str, rules: str) -> None:
    x = torch.randn(3, 6, dtype=torch.float64)
    before, version = x.clone(), x._version
    attribute(Spelled(PAIRS[name][0]), x, 0, rules=RULES[rules])
    assert torch.equal(x, before)
    assert x._version == version
    assert not x.requires_grad


class Shared(nn.Module):
    """One ReLU and one Linear, each used three times."""

    def __init__(self, relu: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.relu = nn.ReLU(inplace=True) if relu else None

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(3):
            x = self.linear(x)
            x = self.relu(x) if self.relu is not None else F.relu(x)
        return x


@pytest.mark.parametrize("rules", RULES)
def test_a_shared_activation_is_three_activations(rules: str) -> None:
    shared, plain = Shared(True).double(), Shared(False).double()
    plain.load_state_dict(shared.state_dict())
    x = torch.randn(2, 4, dtype=torch.float64)
    assert torch.equal(
        attribute(shared, x, 2, rules=RULES[rules]).value, attribute(plain, x, 2, rules=RULES[rules]).value
    )


@pytest.mark.parametrize("inplace", [True, False])
def test_what_a_site_holds_is_its_value_before_later_in_place_calls(inplace: bool) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=inplace), nn.Linear(4, 3)).double()
    x = torch.randn(2, 4, dtype=torch.float64)
    found = attribute(model, x, 0, rules=pullback(), sites=("0", "1"), readout="value")
    z = model[0](x).detach()
    weight = model[2].weight[0].detach()
    assert torch.allclose(found.values["0"], z * (z > 0) * weight, atol=1e-12)
    assert torch.allclose(found.values["1"], z.relu() * weight, atol=1e-12)


@pytest.mark.parametrize("rules", ["pullback", "soft", "relative"])
def test_a_write_beside_what_a_rule_keeps_does_not_change_it(rules: str) -> None:
    def assigned(x: Tensor) -> Tensor:
        z = lin(x)
        z[:, 1] = F.relu(z[:, 2])
        return lin(z)

    def plain(x: Tensor) -> Tensor:
        z = lin(x)
        return lin(torch.cat((z[:, :1], F.relu(z[:, 2])[:, None], z[:, 2:]), 1))

    x = torch.randn(3, 6, dtype=torch.float64)
    found = attribute(Spelled(assigned), x, 0, rules=RULES[rules]).value
    assert torch.allclose(found, attribute(Spelled(plain), x, 0, rules=RULES[rules]).value, atol=1e-12)


@pytest.mark.parametrize("name", ["z.relu_()", "residual", "a view in place", "saved, then += "])
def test_biases_are_counted_through_in_place_calls(name: str) -> None:
    x = torch.randn(3, 6, dtype=torch.float64)
    assert attribute(Spelled(PAIRS[name][0]), x, 1, rules=pullback(), bias=True).residual.abs().max() < 1e-10
