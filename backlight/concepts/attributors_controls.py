"""What attributors of latents are compared with: the naive ranking by activation, and a random order."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from backlight.concepts.attributors import LatentAttributor, LatentScores
from backlight.concepts.latent_units import LatentTask, activations
from backlight.engine.evaluation import Cost
from backlight.methods.token_fields import TokenScores


@dataclass(kw_only=True)
class ActivationRanking(LatentAttributor):
    """z_k at each patch token: the latent is taken to look where it fires. What CAFE is compared with."""

    source: ClassVar[str] = "iERF paper, section 3: naive ranking"
    formula: ClassVar[str] = "z_k(p)"

    def _explain(self, task: LatentTask, pixels: bool) -> LatentScores:
        wanted, place = task.latents.unique(return_inverse=True)
        every = activations(task.model, task.site, task.dictionary, task.images, wanted)
        rows = torch.arange(len(task), device=place.device) if len(task.images) > 1 else torch.zeros_like(place)
        maps, prefix = every.patches[rows, place], every.prefix[rows, place]
        whole = every.values[rows, :, place]
        z = whole.sum(1) if task.tokens is None else whole.gather(1, task.tokens[:, None])[:, 0]
        return LatentScores(
            TokenScores(maps.abs(), maps), z, TokenScores(prefix.abs(), prefix), cost=Cost(forwards=len(task.images))
        )


@dataclass(kw_only=True)
class Random(LatentAttributor):
    """Uniform numbers: the control. Drawn anew for each image, latent and token, the same every time."""

    source: ClassVar[str] = "control"
    formula: ClassVar[str] = "U(0, 1)"
    passes: ClassVar[str] = "0"

    seed: int = 0

    def _explain(self, task: LatentTask, pixels: bool) -> LatentScores:
        drawn = torch.stack([self._draw(task.part(row)) for row in torch.arange(len(task)).split(1)])
        drawn = drawn.to(task.images)
        return LatentScores(TokenScores(drawn, drawn), drawn.new_full((len(task),), torch.nan))

    def _draw(self, task: LatentTask) -> Tensor:
        content = zlib.crc32(task.images[0].detach().cpu().contiguous().float().numpy().tobytes())
        token = -1 if task.tokens is None else int(task.tokens[0])
        mixed = zlib.crc32(repr((self.seed, content, int(task.latents[0]), token)).encode())
        return torch.rand(task.grid, generator=torch.Generator().manual_seed(mixed))
