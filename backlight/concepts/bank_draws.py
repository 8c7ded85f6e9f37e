"""Which positions of an image are taken: in proportion to their relevance, uniformly, or all."""

from __future__ import annotations

import numpy as np

from backlight.errors import InputError, UnknownNameError
from backlight.evaluation.identity import sample_seed
from backlight.shapes import Float, Int

SAMPLINGS = ("relevance", "uniform", "all")
CLASS_TOKENS = ("drop", "draw", "keep")
CLASS_TOKEN, NOTHING = -1, -2  # in the place of a position's number


def check_sampling(sampling: str, per_image: int, class_token: str) -> None:
    """Raise `UnknownNameError` or `InputError` for settings that there are not."""
    if sampling not in SAMPLINGS:
        raise UnknownNameError("sampling of a bank", sampling, SAMPLINGS)
    if class_token not in CLASS_TOKENS:
        raise UnknownNameError("class_token of a bank", class_token, CLASS_TOKENS)
    if per_image < 1:
        raise InputError(f"per_image must be at least 1, got {per_image}")


def draw(weights: Float[np.ndarray, "P"], count: int, seed: int, name: str, replacement: bool) -> Int[np.ndarray, "k"]:
    """Numbers of positions, drawn in proportion to weights >= 0; none where all are 0.

    With replacement, `count` independent draws, in their order. Without, positions one after the other from those that
    are left, at most as many as have a weight: the order of exponential clocks E_i / w_i (Efraimidis and Spirakis
    2006). The draws depend on `seed` and `name` (of image and site) alone, and on the weights.
    """
    generator = np.random.default_rng(sample_seed(seed, name))
    weights = weights.astype(np.float64)
    total = weights.sum()
    if not total > 0:
        return np.zeros(0, dtype=np.int64)
    if replacement:
        cumulative = np.cumsum(weights)
        last = int(np.flatnonzero(weights)[-1])
        found = np.searchsorted(cumulative, generator.random(count) * cumulative[-1], side="right")
        return np.minimum(found, last).astype(np.int64)
    clocks = generator.standard_exponential(len(weights))
    with np.errstate(divide="ignore"):
        times = np.where(weights > 0, clocks / weights, np.inf)
    wanted = min(count, int((weights > 0).sum()))
    return np.argsort(times, kind="stable")[:wanted].astype(np.int64)
