"""Random draws of samples: each sample has a seed, so that its draws depend on no other sample, device or batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor

from backlight.errors import InputError
from backlight.shapes import Float

Seed = int | Sequence[int] | np.ndarray | Tensor


def whole(seed: Any) -> int | list[int]:
    """One seed, or one a sample, as whole numbers of Python.

    Raises:
        InputError: anything else.
    """
    given = seed.tolist() if isinstance(seed, (Tensor, np.ndarray)) else seed
    many = isinstance(given, Sequence) and not isinstance(given, str)
    found = []
    for one in given if many else [given]:
        if not isinstance(one, Integral) or isinstance(one, bool) or not -(2**63) <= int(one) < 2**63:
            raise InputError(f"a seed is a whole number of 64 bits, or a sequence of one for each sample, got {seed!r}")
        found.append(int(one))
    return found if many else found[0]


def generators(seed: Seed, samples: int) -> list[torch.Generator]:
    """One generator a sample, on the CPU. An int gives every sample the same draws; a sequence, each its own.

    Raises:
        InputError: a number of seeds that is not the number of samples, or no whole numbers.
    """
    own = whole(seed)
    seeds = own if isinstance(own, list) else [own] * samples
    if len(seeds) != samples:
        raise InputError(f"{len(seeds)} seeds for {samples} samples")
    return [torch.Generator().manual_seed(one) for one in seeds]


def further(seed: Seed, number: int) -> Seed:
    """The seeds of the stream of draws with this number; number 0 is `seed` itself."""
    step, own = 1_000_003 * number, whole(seed)
    return [one + step for one in own] if isinstance(own, list) else own + step


def drawn(seed: Seed, samples: int, draw: Callable[[torch.Generator], Tensor], like: Tensor) -> Tensor:
    """`draw(generator)` of each sample, `[N, *shape]`, on the device of `like`; floating point draws in its type.

    Where all samples have one seed, there is one draw, which they share: read it only.
    """
    found = torch.stack([draw(one) for one in generators(seed, samples if isinstance(whole(seed), list) else 1)])
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
