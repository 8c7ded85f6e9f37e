"""Are attention heads specialised? Their sparsity, against that of heads of channels drawn at random."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from backlight.contributions.reduction import grouped
from backlight.contributions.statistics import LEVEL, OFFSET, Median, hoyer
from backlight.errors import InputError
from backlight.shapes import Float

DRAWS = 20


@dataclass(frozen=True)
class HeadSparsity:
    """Hoyer's sparsity over heads, an image each.

    - `learned`: of the network's heads; `random`: of heads of random channels, its mean over the draws;
    - `difference`: learned - random, image by image; above 0 where heads are specialised;
    - `deviation`: of the median over images, between the draws.
    """

    heads: int
    draws: int
    learned: Median
    random: Median
    difference: Median
    deviation: float


class HeadTally:
    """Head sparsities as the rows come. The draws are the same for all images, and decided by the seed.

    Raises:
        InputError: channels that are no multiple of the heads, fewer than two heads, or no draw.
    """

    def __init__(self, channels: int, heads: int, seed: int, draws: int = DRAWS, offset: float = OFFSET) -> None:
        if heads < 2 or channels % heads or draws < 1:
            raise InputError(f"{heads} heads of {channels} channels, {draws} draws: heads divide the channels, >= 2")
        draw = np.random.default_rng(seed)
        self.heads, self.offset = heads, offset
        self._orders = [torch.from_numpy(draw.permutation(channels)) for _ in range(draws)]
        self._learned: list[Tensor] = []
        self._random: list[Tensor] = []

    def add(self, rows: Float[Tensor, "n C"]) -> None:
        wide = rows.double()
        self._learned.append(hoyer(grouped(wide, self.heads), self.offset))
        drawn = [hoyer(grouped(wide[:, order], self.heads), self.offset) for order in self._orders]
        self._random.append(torch.stack(drawn, 1))

    def found(self, level: float = LEVEL) -> HeadSparsity:
        learned, random = torch.cat(self._learned).numpy(), torch.cat(self._random).numpy()
        mean = random.mean(1)
        medians = [one.median for one in map(Median.of, random.T) if one.median is not None]
        return HeadSparsity(
            self.heads,
            random.shape[1],
            Median.of(learned, level),
            Median.of(mean, level),
            Median.of(learned - mean, level),
            float(np.std(medians, ddof=1)) if len(medians) > 1 else 0.0,
        )
