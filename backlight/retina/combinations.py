"""Which modes are on together, and at which frames to look at them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from backlight.errors import InputError
from backlight.shapes import Bool, Float

ACTIVE = 0.01  # a loading above it is on, as in CODEC's reference


@dataclass(frozen=True)
class Combination:
    """Modes that are on together, and no others, in `frames`: numbers of windows, in their order."""

    modes: tuple[int, ...]
    frames: tuple[int, ...]


def combinations(
    loadings: Float[Tensor, "n K"],
    *,
    threshold: float = ACTIVE,
    sizes: tuple[int, int] = (1, 4),
    top: int = 20,
    where: Bool[Tensor, "n"] | None = None,
) -> list[Combination]:
    """The exact sets of modes with a loading above `threshold`, the most frequent first; ties by their modes.

    Args:
        sizes: the fewest and the most modes of a set.
        top: sets that are returned.
        where: frames that count (a cell that fires); None: all.

    Raises:
        InputError: sizes in the wrong order, or another number of frames.
    """
    if not 0 <= sizes[0] <= sizes[1] or top < 1:
        raise InputError(f"sizes are (fewest, most), top is at least 1: got {sizes} and {top}")
    if where is not None and len(where) != len(loadings):
        raise InputError(f"{len(where)} frames are chosen from, {len(loadings)} have loadings")
    on = loadings > threshold
    counts = on.sum(1)
    taken = (counts >= sizes[0]) & (counts <= sizes[1])
    if where is not None:
        taken &= where.to(taken.device)
    frames = taken.nonzero().flatten()
    sets: dict[tuple[int, ...], list[int]] = {}
    for frame in frames.tolist():
        sets.setdefault(tuple(on[frame].nonzero().flatten().tolist()), []).append(frame)
    ordered = sorted(sets.items(), key=lambda one: (-len(one[1]), one[0]))
    return [Combination(modes, tuple(found)) for modes, found in ordered[:top]]


def examples(
    combination: Combination, loadings: Float[Tensor, "n K"], most: int = 6, apart: int = 40
) -> tuple[int, ...]:
    """Frames of a combination, the strongest first, each at least `apart` frames from those before it.

    Strength is the sum of the loadings. Fewer than `most` where the frames lie close together.
    """
    total = loadings[list(combination.frames)].double().sum(1)
    order = torch.argsort(total, descending=True, stable=True).tolist()
    chosen: list[int] = []
    for place in order:
        frame = combination.frames[place]
        if all(abs(frame - other) >= apart for other in chosen):
            chosen.append(frame)
        if len(chosen) == most:
            break
    return tuple(chosen)
