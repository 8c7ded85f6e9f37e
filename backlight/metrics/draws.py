"""Random draws of samples: each sample has a seed, so that its draws depend on no other sample, device or batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from backlight.errors import InputError
from backlight.shapes import Float

Seed = int | Sequence[int]


def generators(seed: Seed, samples: int) -> list[torch.Generator]:
    """One generator a sample, on the CPU. An int gives every sample the same draws; a sequence, each its own.

    Raises:
        InputError: a number of seeds that is not the number of samples.
    """
    seeds = [seed] * samples if isinstance(seed, int) else [int(one) for one in seed]
    if len(seeds) != samples:
        raise InputError(f"{len(seeds)} seeds for {samples} samples")
    return [torch.Generator().manual_seed(one) for one in seeds]


def drawn(
    seed: Seed, samples: int, draw: Callable[[torch.Generator], Tensor], like: Tensor
) -> Float[Tensor, "N *shape"]:
    """`draw(generator)` of each sample, stacked, on the device and of the floating point type of `like`."""
    return torch.stack([draw(generator) for generator in generators(seed, samples)]).to(like)


def uniform(
    seed: Seed, shape: Sequence[int], low: float, high: float, like: Float[Tensor, "N *S"]
) -> Float[Tensor, "N *shape"]:
    """U(low, high) draws for each sample of `like`; drawn in single precision whatever the type."""
    return drawn(seed, len(like), lambda g: torch.rand(tuple(shape), generator=g) * (high - low) + low, like)


def normal(seed: Seed, shape: Sequence[int], stdev: float, like: Float[Tensor, "N *S"]) -> Float[Tensor, "N *shape"]:
    """N(0, stdev^2) draws for each sample of `like`; drawn in single precision whatever the type."""
    return drawn(seed, len(like), lambda g: torch.randn(tuple(shape), generator=g) * stdev, like)
