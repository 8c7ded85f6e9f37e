"""Directional derivatives: closed forms, both modes against each other and against the whole Jacobian."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from backlight.contributions.directional import MODES, directional_derivative
from backlight.errors import InputError, SiteError, UnknownNameError

BOTH = pytest.mark.parametrize("mode", ["forward", "double_backward"])


class Mixed(nn.Module):
    """Convolution, in-place ReLU on a captured tensor, attention, a shared layer, and a part without gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, padding=1)
        self.act = nn.ReLU(inplace=True)
        self.attn = nn.MultiheadAttention(4, 2, batch_first=True)
        self.norm = nn.LayerNorm(4)
        self.twice = nn.Linear(4, 4)

    def forward(self, x: Tensor, shift: Tensor | None = None) -> Tensor:
        h = self.act(self.conv(x if shift is None else x + shift))
        t = h.flatten(2).transpose(1, 2)
        with torch.no_grad():
            scale = t.abs().amax()
        t = self.norm(t / scale + self.attn(t, t, t)[0])
        return self.twice(torch.tanh(self.twice(t))).mean(1)


@pytest.fixture
def mixed() -> Mixed:
    return Mixed().double().eval()


def jacobian_product(model: nn.Module, x: Tensor, v: Tensor, read: Any) -> Tensor:
    """The literal one: a backward pass for every unit."""
    x = x.clone().requires_grad_()
    h = read(model, x)
    flat = [torch.autograd.grad(unit, x, retain_graph=True)[0] for unit in h.flatten()]
    return torch.stack([(row * v).sum() for row in flat]).reshape(h.shape)


@BOTH
def test_every_site_as_by_the_whole_jacobian(mixed: Mixed, mode: str) -> None:
    x, v = torch.randn(2, 2, 3, 3).double(), torch.randn(2, 2, 3, 3).double()
    found = directional_derivative(mixed, x, v, ["conv", "norm", "twice#1", "input"], mode=mode)

    def attended(m: Mixed, x: Tensor) -> Tensor:
        t = m.act(m.conv(x)).flatten(2).transpose(1, 2)
        return m.norm(t / t.abs().amax().detach() + m.attn(t, t, t)[0])

    assert torch.allclose(found["conv"], jacobian_product(mixed, x, v, lambda m, x: m.conv(x)), atol=1e-12)
    assert torch.allclose(found["norm"], jacobian_product(mixed, x, v, attended), atol=1e-12)
    assert torch.equal(found["input"], v)
    assert found["twice#1"].shape == (2, 9, 4)


def test_both_modes_agree(mixed: Mixed) -> None:
    x, v, shift = (torch.randn(2, 2, 3, 3).double() for _ in range(3))
    sites = ("conv", "act", "attn:input", "attn", "norm", "twice#0")
    one, other, either = (
        directional_derivative(mixed, x, v, sites, mode=mode, additional_forward_args=(shift,))
        for mode in ("forward", "double_backward", "auto")
    )
    for site in sites:
        assert torch.allclose(one[site], other[site], atol=1e-12), site
        assert torch.equal(one[site], either[site])
    assert one["norm"].abs().max() > 0.01


class _Cube(torch.autograd.Function):
    """An operation without a formula for forward mode."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:  # type: ignore[override]
        return 3 * ctx.saved_tensors[0] ** 2 * g


class Cube(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return _Cube.apply(x)


def test_auto_transposes_where_there_is_no_formula() -> None:
    model = nn.Sequential(nn.Linear(3, 3), Cube(), nn.Linear(3, 2)).double()
    x, v = torch.randn(4, 3).double(), torch.randn(4, 3).double()
    found = directional_derivative(model, x, v, "1")["1"]
    expected = 3 * model[0](x) ** 2 * (v @ model[0].weight.T)
    assert torch.allclose(found, expected.detach(), atol=1e-12)
    with pytest.raises((NotImplementedError, RuntimeError)):
        directional_derivative(model, x, v, "1", mode="forward")


def test_inputs_of_integers_have_no_direction() -> None:
    class Embedded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.linear = nn.Embedding(5, 3), nn.Linear(3, 3)

        def forward(self, x: Tensor, words: Tensor) -> Tensor:
            return self.linear(x * self.table(words))

    model = Embedded().double()
    x, v, words = torch.randn(2, 3).double(), torch.randn(2, 3).double(), torch.tensor([1, 4])
    for mode in MODES:
        found = directional_derivative(model, (x, words), (v, torch.zeros_like(words)), "linear", mode=mode)
        expected = (v * model.table(words)) @ model.linear.weight.T
        assert torch.allclose(found["linear"], expected.detach(), atol=1e-12)
    with pytest.raises(InputError, match="integers"):
        directional_derivative(model, words, words, "linear")


@BOTH
def test_errors_and_no_trace(mixed: Mixed, mode: str) -> None:
    x = torch.randn(1, 2, 3, 3).double()
    before = x.clone()
    with pytest.raises(UnknownNameError, match="conv"):
        directional_derivative(mixed, x, x, "cnov", mode=mode)
    with pytest.raises(SiteError, match="twice#0"):
        directional_derivative(mixed, x, x, "twice", mode=mode)
    with pytest.raises(InputError, match="directions"):
        directional_derivative(mixed, x, x[:, :1], "conv", mode=mode)
    directional_derivative(mixed, x, torch.randn_like(x), "conv", mode=mode)
    assert torch.equal(x, before)
    assert not x.requires_grad
    for module in mixed.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
    assert all(p.grad is None and p.requires_grad for p in mixed.parameters())
    assert torch.is_grad_enabled()


def test_unknown_mode(mixed: Mixed) -> None:
    with pytest.raises(UnknownNameError, match="double_backward"):
        directional_derivative(mixed, torch.zeros(1, 2, 3, 3).double(), torch.zeros(1, 2, 3, 3), "conv", mode="doubl")
