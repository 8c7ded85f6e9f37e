"""What the rules do to one function: its value and the cotangent that it sends back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from backlight.engine import RuleSet, running


class Spelled(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[..., Any], *modules: nn.Module) -> None:
        super().__init__()
        self.function = function
        self.modules_ = nn.ModuleList(modules)

    def forward(self, *args: Any) -> Any:
        return self.function(*args)


def pulled(
    function: Callable[..., Any], *inputs: Tensor, rules: RuleSet, cotangent: Tensor | None = None, strict: bool = True
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """(value, cotangents of the inputs) of a function under a rule set; the cotangent of the value is 1 if not given.

    Where the function gives a tuple, its first entry is meant. Inputs that play no part get zeros.
    """
    module = function if isinstance(function, nn.Module) else Spelled(function)
    leaves = [x.detach().clone().requires_grad_(x.is_floating_point()) for x in inputs]
    with torch.enable_grad():
        given = [leaf.clone() for leaf in leaves]  # which the function may write to
        with running(module, rules, strict=strict):
            y = module(*given)
    y = y[0] if isinstance(y, tuple) else y
    at = [leaf for leaf in leaves if leaf.requires_grad]
    back = torch.ones_like(y) if cotangent is None else cotangent
    return y.detach(), torch.autograd.grad(y, at, back, allow_unused=True, materialize_grads=True)


def pull(function: Callable[..., Any], z: Tensor, rules: RuleSet, cotangent: Tensor | None = None) -> Tensor:
    """The cotangent of a function's only input."""
    return pulled(function, z, rules=rules, cotangent=cotangent)[1][0]
