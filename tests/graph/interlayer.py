"""Small networks with coded layers, for tests of what lies between two layers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from backlight.graph.coded import Coded, code_sites


def random_codes(
    model: nn.Module, x: Tensor, site: str, k: int, seed: int, share: float = 0.4, nonnegative: bool = False
) -> Coded:
    """A layer with random atoms, random offset and sparse random codes: much is left as residual."""
    draw = torch.Generator().manual_seed(seed)
    channels = dict(model.named_modules())[site]

    def width() -> int:
        kept: list[int] = []
        handle = channels.register_forward_hook(lambda module, args, output: kept.append(output.shape[1]))
        model(x)
        handle.remove()
        return kept[0]

    with torch.no_grad():
        c = width()
    atoms = torch.randn(k, c, generator=draw, dtype=x.dtype)
    offset = torch.randn(c, generator=draw, dtype=x.dtype) / 10

    def encode(vectors: Tensor) -> Tensor:
        codes = torch.randn(len(vectors), k, generator=draw, dtype=x.dtype)
        codes = codes * (torch.rand(len(vectors), k, generator=draw) < share)
        return codes.abs() if nonnegative else codes

    return code_sites(model, x, {site: (encode, atoms, offset)})[site]


def relu_network(bias: bool = True, activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    """conv, act, conv, act, conv (stride 2), act, flatten, linear; sites 1, 3 and 5; inputs `[N, 3, 6, 6]`."""
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(3, 6, 3, padding=1, bias=bias), activation(),
        nn.Conv2d(6, 5, 3, padding=1, bias=bias), activation(),
        nn.Conv2d(5, 7, 3, stride=2, bias=bias), activation(),
        nn.Flatten(), nn.Linear(28, 4, bias=bias),
    ]  # fmt: skip
    return nn.Sequential(*layers).double().eval()


def pictures(n: int = 2) -> Tensor:
    """`[n, 3, 6, 6]`, float64."""
    return torch.randn(n, 3, 6, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
