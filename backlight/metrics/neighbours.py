"""Noisy neighbours of samples, and the maps that an explainer makes of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from backlight.errors import InputError
from backlight.metrics.correlation import precise
from backlight.metrics.draws import Seed, generators, whole
from backlight.metrics.explainers import Explainer, as_explainer, decided, explained
from backlight.metrics.maps import finite, stacked
from backlight.metrics.scorer import BATCH_SIZE
from backlight.shapes import Float, Int

Noise = Callable[[tuple[int, ...], torch.Generator], Tensor]


def uniform_noise(radius: float) -> Noise:
    """U(-radius, radius) in every entry; in single precision."""
    return lambda shape, generator: (torch.rand(shape, generator=generator) * 2 - 1) * radius


def normal_noise(stdev: float) -> Noise:
    """N(0, stdev^2) in every entry; in single precision."""
    return lambda shape, generator: torch.randn(shape, generator=generator) * stdev


@dataclass(frozen=True)
class Neighbours:
    """`draws` noisy versions of each sample: x + n with n from `noise`.

    `fresh`: a method that draws gets other draws for each neighbour, so that its own sampling noise counts. Otherwise
    it keeps its seed, and only the input moves.

    Raises:
        InputError: no draws.
    """

    noise: Noise
    draws: int
    fresh: bool
    seed: Seed = 0
    batch_size: int = BATCH_SIZE

    def __post_init__(self) -> None:
        if self.draws < 1:
            raise InputError(f"needs at least 1 draw, got {self.draws}")

    def largest(
        self,
        explain: Any,
        inputs: Float[Tensor, "N C *space"],
        target: Any,
        attributions: Tensor | None,
        change: Callable[[Tensor, Tensor, Tensor], Tensor],
    ) -> Float[Tensor, "N"]:
        """The largest `change(phi(x), phi(x + n), n)` over the neighbours; all three `[b, P]`, in double precision.

        `attributions`: phi(x), where it is known. NaN where a change is not defined. No more than a batch of neighbours
        exists at a time.
        """
        explainer, target, x = as_explainer(explain), decided(target, len(inputs)), inputs.detach()
        maps = explained(explainer, x, target, self.batch_size) if attributions is None else attributions
        stacked(maps, x)  # refuses what does not fit
        kept = precise(maps).flatten(1)
        worst = torch.full((len(x),), -torch.inf, dtype=torch.float64)
        for made_by, rows, versions in self.batches(explainer, x):
            found = precise(made_by(versions, target.rows(rows))).flatten(1)
            at = rows.to(kept.device)
            moved = change(kept[at], found, precise(versions).flatten(1) - precise(x[at.to(x.device)]).flatten(1))
            moved = torch.where(finite(found, 1) & finite(kept[at], 1), moved, torch.nan)
            for row, one in zip(rows.tolist(), moved.cpu(), strict=True):
                worst[row] = torch.maximum(worst[row], one)  # NaN stays
        return worst

    def batches(
        self, explainer: Explainer, x: Float[Tensor, "N C *space"]
    ) -> Iterator[tuple[Explainer, Int[Tensor, "b"], Float[Tensor, "b C *space_"]]]:
        """(explainer, rows, neighbours of these rows): each sample `draws` times, whole batches where seeds allow."""
        sources = generators(self.seed, len(x))
        random = self.fresh and explainer.reseeded(0) is not explainer
        for made_by, rows in self._reseeded(explainer, len(x)) if random else self._mixed(explainer, len(x)):
            noise = [self.noise(tuple(x.shape[1:]), sources[row]) for row in rows.tolist()]
            versions = x[rows.to(x.device)] + torch.stack(noise).to(x)
            if versions.ndim == 4:  # convolutions without the copies of their layout
                versions = versions.contiguous(memory_format=torch.channels_last)
            yield made_by, rows, versions

    def _mixed(self, explainer: Explainer, samples: int) -> Iterator[tuple[Explainer, Tensor]]:
        """All draws of all samples, draw by draw."""
        for flat in torch.arange(samples * self.draws).split(self.batch_size):
            yield explainer, flat % samples

    def _reseeded(self, explainer: Explainer, samples: int) -> Iterator[tuple[Explainer, Tensor]]:
        """The explainer's seed comes from the draw's number and the sample's seed: samples of equal seeds share it."""
        own = whole(self.seed)
        seeds = own if isinstance(own, list) else [own] * samples
        for number in range(self.draws):
            for own in dict.fromkeys(seeds):
                made_by = explainer.reseeded((1_000_003 * (own + 1) + number) % 2**31)
                rows = torch.tensor([row for row, one in enumerate(seeds) if one == own])
                for piece in rows.split(self.batch_size):
                    yield made_by, piece
