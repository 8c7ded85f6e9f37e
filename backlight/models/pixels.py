"""Networks that take pictures in [-1, 1]: the input space of the pullback papers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from backlight.shapes import Float


class PixelModel(nn.Module):
    """x in [-1, 1] -> (x + 1) / 2 -> (. - mean) / std -> `network`.

    Attributions, step lengths and noise levels are then in the same units for every network. The network is held, not
    copied or changed; its outputs come back as they are. `Preprocessing.paper()` makes such inputs from pictures.

    Shapes: `[N, 3, H, W]` in, the network's outputs out.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(tuple(mean)).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(tuple(std)).view(3, 1, 1), persistent=False)
        self.training = network.training  # not train(): that would write to the network's modules
        parameter = next(network.parameters(), None)
        if parameter is not None:
            self.mean, self.std = self.mean.to(parameter.device), self.std.to(parameter.device)

    def forward(self, x: Float[Tensor, "N 3 H W"]) -> Any:
        unit = (x + 1) / 2
        return self.network((unit - self.mean.to(x)) / self.std.to(x))
