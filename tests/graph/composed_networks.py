"""Networks whose concepts, and what they are made of, are known: for tests of concept graphs."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

from backlight.graph.layers import LayerConcepts

LOW, MID = "low", "mid"


class Composed(nn.Module):
    """Input channels are the low concepts; each is turned into a direction of the layer `low`, and so on.

    `wiring` `[mid, low]` and `head` `[classes, mid]` say what is made of what. `mid` is on where the 3 x 3 sum of its
    parts is larger than `threshold`. The layer `mid` has a direction of its own, the same everywhere, that is no
    concept (`ground`): without it the cosine to a concept would be 1 as soon as it is on at all, and have no slope.
    """

    def __init__(self, wiring: Tensor, head: Tensor, threshold: float = 0.1, seed: int = 0) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(seed)
        mids, lows = wiring.shape
        self.low_atoms, turned = rotation(lows, draw), rotation(mids + 1, draw)
        self.mid_atoms, self.ground = turned[:mids], 3 * turned[mids]
        compose = nn.Conv2d(lows, mids, 3, padding=1).double()
        with torch.no_grad():
            compose.weight.copy_((wiring @ self.low_atoms)[:, :, None, None].expand(-1, -1, 3, 3))
            compose.bias.fill_(-threshold)
        self.body = nn.Sequential(
            OrderedDict(
                [
                    ("low", turning(self.low_atoms)),
                    ("compose", compose),
                    ("on", nn.ReLU()),
                    ("mid", turning(self.mid_atoms, self.ground)),
                    ("pool", nn.AdaptiveAvgPool2d(1)),
                    ("flatten", nn.Flatten()),
                ]
            )
        )
        self.head = nn.Linear(mids + 1, len(head), bias=False).double()
        with torch.no_grad():
            self.head.weight.copy_(head @ self.mid_atoms)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))

    def concepts(self, low: list[int] | None = None) -> dict[str, LayerConcepts]:
        """The exact dictionaries; `low`: of the first layer only these."""
        known = self.low_atoms if low is None else self.low_atoms[low]
        return {"body.low": exact(known), "body.mid": exact(self.mid_atoms, self.ground)}


def rotation(n: int, draw: torch.Generator) -> Tensor:
    """A random orthogonal matrix, an atom a row."""
    return torch.linalg.qr(torch.randn(n, n, generator=draw, dtype=torch.float64))[0]


def turning(atoms: Tensor, offset: Tensor | None = None) -> nn.Conv2d:
    """From codes to the vectors that they stand for, at every position."""
    layer = nn.Conv2d(len(atoms), atoms.shape[1], 1).double()
    with torch.no_grad():
        layer.weight.copy_(atoms.T[:, :, None, None])
        layer.bias.copy_(torch.zeros(atoms.shape[1]) if offset is None else offset)  # type: ignore[union-attr]
    return layer


def exact(atoms: Tensor, offset: Tensor | None = None) -> LayerConcepts:
    """A dictionary of orthonormal atoms: the codes are projections."""

    def encode(vectors: Tensor) -> Tensor:
        codes = (vectors if offset is None else vectors - offset) @ atoms.T
        return torch.where(codes.abs() > 1e-9, codes, 0.0)

    return LayerConcepts(atoms, encode, offset)


def pets() -> Composed:
    """Two textures and a shape make a class.

    Low: 0 stripes, 1 dots, 2 edges, 3 sky, 4 red. Mid: 0 fur (stripes and dots), 1 ear (edges), 2 blue (sky), 3 red.
    Classes: 0 cat (fur and ear), 1 bird (ear and blue), 2 fire truck (red).
    """
    wiring = torch.tensor([[1, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 0, 1, 0], [0, 0, 0, 0, 1]], dtype=torch.float64)
    head = torch.tensor([[1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 0, 1]], dtype=torch.float64)
    return Composed(wiring, head)


def scene(places: dict[int, tuple[int, int]], channels: int = 5, size: int = 12) -> Tensor:
    """An image `[1, C, size, size]` with concepts at places, by channel; nothing elsewhere."""
    x = torch.zeros(1, channels, size, size, dtype=torch.float64)
    for channel, (row, column) in places.items():
        x[0, channel, row : row + 2, column : column + 2] = 1.0
    return x


def cat() -> Tensor:
    """Stripes and dots side by side, an ear apart, sky in a corner; nothing red."""
    return scene({0: (1, 1), 1: (1, 3), 2: (6, 1), 3: (8, 8)})
