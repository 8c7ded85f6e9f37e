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
    seeds = list(seed) if isinstance(seed, Sequence) else [seed] * samples
    if len(seeds) != samples:
        raise InputError(f"{len(seeds)} seeds for {samples} samples")
    return [torch.Generator().manual_seed(int(one)) for one in seeds]


def further(seed: Seed, number: int) -> Seed:
    """The seeds of the stream of draws with this number; number 0 is `seed` itself."""
    step = 1_000_003 * number
    return [one + step for one in seed] if isinstance(seed, Sequence) else seed + step


def drawn(seed: Seed, samples: int, draw: Callable[[torch.Generator], Tensor], like: Tensor) -> Tensor:
    """`draw(generator)` of each sample, `[N, *shape]`, on the device of `like`; floating point draws in its type.

    Where all samples have one seed, there is one draw, which they share: read it only.
    """
    found = torch.stack([draw(one) for one in generators(seed, samples if isinstance(seed, Sequence) else 1)])
    found = found.to(like) if found.is_floating_point() else found.to(like.device)
    return found.expand(samples, *found.shape[1:])


def uniform(
    seed: Seed, shape: Sequence[int], low: float, high: float, like: Float[Tensor, "N *S"]
) -> Float[Tensor, "N *shape"]:
    """U(low, high) draws for each sample of `like`; drawn in single precision whatever the type."""
    return drawn(seed, len(like), lambda g: torch.rand(tuple(shape), generator=g) * (high - low) + low, like)


def normal(seed: Seed, shape: Sequence[int], stdev: float, like: Float[Tensor, "N *S"]) -> Float[Tensor, "N *shape"]:
    """N(0, stdev^2) draws for each sample of `like`; drawn in single precision whatever the type."""
    return drawn(seed, len(like), lambda g: torch.randn(tuple(shape), generator=g) * stdev, like)
