"""Trials: a class or concept that is controlled, its images, and the images of others that should not change."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from backlight.data.hierarchy import Concept
from backlight.errors import InputError
from backlight.evaluation.identity import sample_seed
from backlight.shapes import Int

TRIALS, IMAGES = 20, 10  # of the paper


@dataclass(frozen=True)
class Trial:
    """`concept`: its place in the list of concepts; `target`, `off`: places of samples, which never coincide."""

    concept: int
    target: tuple[int, ...]
    off: tuple[int, ...]


def every_concept(
    labels: Int[np.ndarray, "n"],
    concepts: Sequence[Concept],
    among: Collection[int] | None = None,
    *,
    images: int | None = None,
    off_images: int | None = None,
    seed: int = 0,
) -> list[Trial]:
    """A trial for each concept: all its images, and all labelled images of others.

    Args:
        labels: of the samples, -1 where there is none. among: places of the samples that may be measured.
        images, off_images: the most of each; drawn by `seed` and, for others, shared by all concepts as far as can be.

    Raises:
        InputError: a concept without images, or without images of others.
    """
    allowed = _allowed(labels, among)
    order = np.random.default_rng(seed).permutation(allowed)
    found = []
    for place, concept in enumerate(concepts):
        inside = np.isin(labels[order], concept.indices)
        target, off = order[inside][:images], order[~inside][:off_images]
        if not len(target) or not len(off):
            raise InputError(f"{len(target)} images of {concept.name!r} and {len(off)} of others to measure: need both")
        found.append(Trial(place, tuple(sorted(target.tolist())), tuple(sorted(off.tolist()))))
    return found


def paper_trials(
    labels: Int[np.ndarray, "n"],
    concepts: Sequence[Concept],
    among: Collection[int] | None = None,
    *,
    trials: int = TRIALS,
    images: int = IMAGES,
    seed: int = 0,
) -> list[Trial]:
    """The paper's: a target and one other concept, drawn at random with replacement, and some images of each.

    Target and other never overlap (the reference lets them coincide). Every trial's draw depends on its number alone.

    Raises:
        InputError: a concept without images, or no two concepts that do not overlap.
    """
    allowed = _allowed(labels, among)
    places = [allowed[np.isin(labels[allowed], concept.indices)] for concept in concepts]
    for concept, found in zip(concepts, places, strict=True):
        if not len(found):
            raise InputError(f"no images of {concept.name!r} to measure")
    sets = [set(concept.indices) for concept in concepts]
    others = [[two for two in range(len(sets)) if not sets[one] & sets[two]] for one in range(len(sets))]
    if not any(others):
        raise InputError(f"{len(concepts)} concepts, no two of which are disjoint: the paper's trials need two")
    fit = [one for one in range(len(sets)) if others[one]]
    made = []
    for number in range(trials):
        draw = np.random.default_rng(sample_seed(seed, f"trial {number}"))
        target = int(draw.choice(fit))
        off = int(draw.choice(others[target]))
        picked = [draw.permutation(places[one])[:images] for one in (target, off)]
        made.append(Trial(target, *(tuple(sorted(int(place) for place in one)) for one in picked)))
    return made


def _allowed(labels: np.ndarray, among: Collection[int] | None) -> np.ndarray:
    places = np.arange(len(labels)) if among is None else np.array(sorted(among), dtype=np.int64)
    return places[labels[places] >= 0]
