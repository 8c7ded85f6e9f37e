"""Networks and slow literal references for contributions: plain hooks, plain autograd, every point kept."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv, self.norm, self.act = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(True)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.norm(self.conv(x)) + x)


class Residual(nn.Module):
    """Everything passes through stem, blocks.0, blocks.1 and fc:input; blocks.0.conv is passed by."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.blocks, self.fc = nn.Conv2d(2, 4, 3, 2, 1), nn.Sequential(Block(4), Block(4)), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.blocks(F.gelu(self.stem(x))).mean((2, 3)))


CUTS = ("stem", "blocks.0", "blocks.1", "fc:input")
SITES = (*CUTS, "blocks.0.conv", "blocks.1.act", "input")


def residual_network() -> Residual:
    torch.manual_seed(3)
    model = Residual().double().eval()
    for block in model.blocks:
        block.norm.running_mean.normal_()
        block.norm.running_var.uniform_(0.5, 2)
    return model


def images(n: int = 3) -> Tensor:
    return torch.randn(n, 2, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(5))


def read(
    model: nn.Module,
    x: Tensor,
    site: str,
    target: Callable[[Tensor], Tensor],
    replaced: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """(scores, activations, gradients) at one site, by plain hooks; `replaced` is put in its place."""
    x = x.clone().requires_grad_()
    held: list[Tensor] = [x] if site == "input" else []
    name, _, side = site.partition(":")
    if site == "input" and replaced is not None:
        held[0] = x = replaced.clone().requires_grad_()

    def swap(value: Tensor) -> Tensor:
        if replaced is not None:
            value = replaced.clone().requires_grad_()
        held.append(value)
        return value.clone()  # the network may write to it

    handles = []
    if site != "input":
        module = model.get_submodule(name)
        if side == "input":
            handles.append(module.register_forward_pre_hook(lambda m, args: (swap(args[0]),)))
        else:
            handles.append(module.register_forward_hook(lambda m, args, out: swap(out)))
    try:
        scores = target(model(x))
    finally:
        for handle in handles:
            handle.remove()
    (gradient,) = torch.autograd.grad(scores.sum(), held[0], allow_unused=True, materialize_grads=True)
    return scores.detach(), held[0].detach(), gradient


def hidden_path_reference(
    model: nn.Module, x: Tensor, x_0: Tensor, site: str, target: Callable, nodes: list[float], weights: list[float]
) -> Tensor:
    """Equation 12, as a weighted sum over nodes."""
    h, h_0 = read(model, x, site, target)[1], read(model, x_0, site, target)[1]
    total = torch.zeros_like(h)
    for node, weight in zip(nodes, weights, strict=True):
        total += weight * read(model, x, site, target, replaced=h_0 + node * (h - h_0))[2]
    return (h - h_0) * total


def input_path_reference(
    model: nn.Module, x: Tensor, x_0: Tensor, site: str, target: Callable, n_steps: int, rule: str, spacing: float
) -> Tensor:
    """The reference's trapezoid, or equation 21, with every point kept."""
    points = [read(model, x_0 + (i / n_steps) ** spacing * (x - x_0), site, target) for i in range(n_steps + 1)]
    h, g = (torch.stack([point[k] for point in points]) for k in (1, 2))
    mean = {"trapezoid": (g[1:] + g[:-1]) / 2, "riemann_left": g[:-1], "riemann_right": g[1:]}[rule]
    return (mean * (h[1:] - h[:-1])).sum(0)
