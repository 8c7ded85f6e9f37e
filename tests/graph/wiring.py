"""A network whose concepts are known: two textures and a shape make a class.

Layer `textures` holds four detected patterns and two that are there for nothing, each along a direction of a random
rotation; layer `parts` makes `A and B` of the two textures where both are near, `outline` of the shape, `dust` of the
clutter, and is `plain` everywhere, again rotated; class 0 is made of `A and B` and `outline`, class 1 of `dust`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from backlight.graph.coded import Coded, code_sites

TEXTURES = ("A", "B", "shape", "clutter", "light", "shade")  # the last two lead nowhere
PARTS = ("A and B", "outline", "dust", "plain")  # the last needs nothing
WIRING = frozenset({("A", "A and B"), ("B", "A and B"), ("shape", "outline"), ("clutter", "dust")})
CLASSES = frozenset({("A and B", 0), ("outline", 0), ("dust", 1)})


def rotation(size: int, seed: int) -> Tensor:
    """A random orthogonal matrix; concept q is its column q."""
    draw = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(size, size, generator=draw, dtype=torch.float64))[0]


def wired() -> nn.Sequential:
    """The network; sites `textures` `[N, 6, 9, 9]` and `parts` `[N, 4, 9, 9]`."""
    first, second = rotation(6, 1), rotation(4, 2)
    detect, turn, join, turned = (
        nn.Conv2d(6, 6, 1, bias=False), nn.Conv2d(6, 6, 1, bias=False),
        nn.Conv2d(6, 4, 3, padding=1), nn.Conv2d(4, 4, 1, bias=False),
    )  # fmt: skip
    classes = nn.Linear(4, 2, bias=False)
    kernel = torch.zeros(4, 6, 3, 3, dtype=torch.float64)
    kernel[0, 0] = kernel[0, 1] = 0.2
    kernel[1, 2] = kernel[2, 3] = 0.4
    model = nn.Sequential()
    for name, module in (
        ("detect", detect), ("on", nn.ReLU()), ("textures", turn), ("join", join), ("there", nn.ReLU()),
        ("parts", turned), ("pool", nn.AdaptiveAvgPool2d(1)), ("flat", nn.Flatten()), ("classes", classes),
    ):  # fmt: skip
        model.add_module(name, module)
    model.double().eval()
    with torch.no_grad():
        detect.weight.copy_(torch.eye(6)[:, :, None, None])
        turn.weight.copy_(first[:, :, None, None])
        join.weight.copy_(torch.einsum("ohij,ch->ocij", kernel, first))
        join.bias.copy_(torch.tensor([-0.5, -0.3, -0.3, 0.5]))
        turned.weight.copy_(second[:, :, None, None])
        classes.weight.copy_(torch.tensor([[1.0, 1, 0, 0], [0, 0, 1, 0]]).double() @ second.T)
    return model


def scenes(n: int = 3) -> Tensor:
    """`[n, 6, 9, 9]`: patches of the textures side by side, a shape and clutter elsewhere, light and shade anywhere."""
    draw = torch.Generator().manual_seed(5)
    found = torch.randn(n, 6, 9, 9, generator=draw, dtype=torch.float64).clamp(min=0) * 0.2
    strength = 1 + 0.3 * torch.rand(n, 6, 1, 1, generator=draw, dtype=torch.float64)
    for channel, (rows, columns) in enumerate(((slice(0, 4), slice(0, 3)), (slice(0, 4), slice(2, 5)),
                                               (slice(5, 9), slice(0, 4)), (slice(5, 9), slice(5, 9)))):  # fmt: skip
        found[:, channel, rows, columns] += strength[:, channel]
    found[:, 4:] += 0.8 * torch.rand(n, 2, 9, 9, generator=draw, dtype=torch.float64)
    return found


def layers(model: nn.Sequential, x: Tensor) -> dict[str, Coded]:
    """Both layers, coded exactly."""
    first, second = rotation(6, 1), rotation(4, 2)
    return code_sites(
        model, x, {"textures": (lambda v: v @ first, first.T, None), "parts": (lambda v: v @ second, second.T, None)}
    )
