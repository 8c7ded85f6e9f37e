"""Explanations can be differentiated: create_graph=True against finite differences, in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from backlight.engine import RuleSet, attribute
from backlight.methods import method
from backlight.rules import excitation_pullback, gradient, pullback, soft_pullback


class Attend(nn.Module):
    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.q, self.k, self.v, self.fused = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4), fused

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.q(x), self.k(x), self.v(x)
        if self.fused:
            return nn.functional.scaled_dot_product_attention(q, k, v)
        return (q @ k.mT / 2).softmax(-1) @ v


NETS: dict[str, Callable[[], nn.Module]] = {
    "gelu": lambda: nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 3)),
    "silu": lambda: nn.Sequential(nn.Linear(4, 6), nn.SiLU(), nn.Linear(6, 3)),
    "mish, softplus, tanh": lambda: nn.Sequential(
        nn.Linear(4, 6), nn.Mish(), nn.Softplus(), nn.Tanh(), nn.Linear(6, 3)
    ),
    "relu": lambda: nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)),
    "elu, leaky": lambda: nn.Sequential(nn.Linear(4, 6), nn.ELU(), nn.LeakyReLU(0.1), nn.Linear(6, 3)),
    "layer norm": lambda: nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.GELU(), nn.Linear(6, 3)),
    "group norm": lambda: nn.Sequential(nn.Linear(4, 6), nn.GroupNorm(2, 6), nn.GELU(), nn.Linear(6, 3)),
    "max-pool": lambda: nn.Sequential(
        nn.Linear(4, 8), nn.Unflatten(1, (2, 4)), nn.MaxPool1d(3, 1, 1), nn.Flatten(), nn.Linear(8, 3)
    ),
    "glu": lambda: nn.Sequential(nn.Linear(4, 8), nn.GLU(), nn.Linear(4, 3)),
    "attention": lambda: nn.Sequential(Attend(False), nn.Flatten(), nn.Linear(12, 3)),
    "multihead": lambda: nn.TransformerEncoderLayer(4, 2, 8, activation="gelu", batch_first=True),
}
# name, rules, whether the map is differentiable there (hard gates and hard routes are not)
RULES: dict[str, Callable[[], RuleSet]] = {
    "soft": soft_pullback,
    "hot": lambda: soft_pullback(0.8),
    "excitation": excitation_pullback,
    "pullback": pullback,
    "gradient": gradient,
}


@pytest.mark.parametrize("rules", RULES)
@pytest.mark.parametrize("name", NETS)
def test_the_derivative_of_an_explanation_is_its_difference_quotient(name: str, rules: str) -> None:
    if rules in ("pullback", "gradient") and name in ("relu", "max-pool", "elu, leaky"):
        pytest.skip("a step in the input: no derivative to compare")
    if (name, rules) == ("multihead", "gradient"):
        pytest.skip("torch has no second derivative of its fused attention on the CPU")
    model = NETS[name]().double().eval()
    tokens = name in ("attention", "multihead")
    x = torch.randn(*((1, 3, 4) if tokens else (1, 4)), dtype=torch.float64)
    weight = torch.randn_like(x)
    target = (lambda y: y.flatten(1)[:, :3].sum(1)) if tokens else 1

    def score(x: Tensor, graph: bool = False) -> Tensor:
        return (attribute(model, x, target, rules=RULES[rules](), create_graph=graph).value * weight).sum()

    leaf = x.clone().requires_grad_()
    (got,) = torch.autograd.grad(score(leaf, True), leaf)
    direction, h = torch.randn_like(x), 1e-5
    quotient = (score(x + h * direction) - score(x - h * direction)) / (2 * h)
    assert (got * direction).sum().item() == pytest.approx(quotient.item(), rel=1e-5, abs=1e-8)
    assert got.abs().max() > 1e-6 or quotient.abs() < 1e-9


@pytest.mark.parametrize("graph", [True, False])
def test_a_graph_is_kept_only_where_it_was_asked_for(graph: bool) -> None:
    model = NETS["gelu"]().double()
    leaf = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    found = method("SoftPullback")(model).attribute(leaf, 1, create_graph=graph)
    assert found.requires_grad == graph
    assert leaf.grad is None
