"""A network whose latent fires at one patch because of another, and dictionaries that are written by hand."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from backlight.decompositions import ReLUSAE, TopKSAE

SIDE = 5  # patches along a side


class Attention(nn.Module):
    """Askers (channel 0) attend to tokens with a key (channel 1), and write their content (channel 2) to channel 3."""

    def forward(self, x: Tensor) -> Tensor:
        logits = 30 * x[..., 0:1] @ x[..., 1:2].mT
        read = logits.softmax(-1) @ x[..., 2:3]
        return x + torch.cat((torch.zeros_like(x[..., :3]), read), -1)


class Embedding(nn.Module):
    """A patch is one pixel; a fourth channel is empty."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((x.flatten(2).mT, x.new_zeros(len(x), x.shape[2] * x.shape[3], 1)), -1)


class Routed(nn.Module):
    """No class token, no position embedding: one attention, of which everything is known."""

    def __init__(self) -> None:
        super().__init__()
        self.patch_embed, self.norm_pre = Embedding(), nn.Identity()
        self.blocks = nn.ModuleList([Attention()])
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm_pre(self.patch_embed(x) * self.scale)
        for block in self.blocks:
            x = block(x)
        return x.mean(1)


def routed_image(asker: tuple[int, int], driver: tuple[int, int]) -> Tensor:
    """`[1, 3, 5, 5]`: little content everywhere, much at the driver, which has the key that the asker asks for."""
    image = torch.full((1, 3, SIDE, SIDE), 0.01, dtype=torch.float64)
    image[0, 0, asker[0], asker[1]] = 1.0
    image[0, 1:, driver[0], driver[1]] = 1.0
    return image


def dictionary_of(encoder: Tensor, bias: Tensor | None = None, k: int | None = None) -> Any:
    """An SAE with these encoder rows `[K, C]`: ReLU, or the k largest."""
    made = ReLUSAE(n_modes=len(encoder)) if k is None else TopKSAE(n_modes=len(encoder), k=k)
    made.state = {
        "encoder": encoder,
        "bias": encoder.new_zeros(len(encoder)) if bias is None else bias,
        "modes": nn.functional.normalize(encoder),
        "offset": encoder.new_zeros(encoder.shape[1]),
    }
    return made


def drawn_dictionary(channels: int, n_modes: int = 6, k: int | None = None, bias: float = 0.0, seed: int = 3) -> Any:
    """The same with drawn rows, in float64."""
    generator = torch.Generator().manual_seed(seed)
    encoder = torch.randn(n_modes, channels, dtype=torch.float64, generator=generator)
    return dictionary_of(encoder, torch.full((n_modes,), bias, dtype=torch.float64), k)
