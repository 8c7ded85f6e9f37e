"""Do two decompositions find the same modes? By class, as CODEC's section 10.3 does, and mode by mode."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from backlight.contributions.evidence import CORRELATED, check_whole
from backlight.decompositions.matching import match
from backlight.decompositions.matching import unit as _unit
from backlight.errors import InputError
from backlight.shapes import Bool, Float, Int

DRAWS = 20


@dataclass(frozen=True)
class Stability:
    """What two decompositions of the same channels share, and what it is by chance.

    Attributes:
        by_class: for each class, Pearson's r over channels of its summed modes in both (section 10.3).
        by_class_chance: the mean after one of the two has its channels shuffled.
        by_class_others: the mean of a class's modes with those of the classes apart from it: what is stable in general,
            such as channels that are large in every mode. The mean of `by_class` must be above it.
        first, second, cosine: modes matched one to one (alive ones; the assignment with the largest sum of cosines).
        cosine_chance: the mean cosine of the best assignment after shuffling channels.
    """

    by_class: Float[Tensor, "M"]
    by_class_chance: float
    by_class_others: float
    first: Int[Tensor, "pairs"]
    second: Int[Tensor, "pairs"]
    cosine: Float[Tensor, "pairs"]
    cosine_chance: float

    def summary(self) -> dict[str, float | int]:
        """Means."""
        return {
            "classes": len(self.by_class),
            "mean_class_r": float(self.by_class.mean()),
            "mean_class_r_chance": self.by_class_chance,
            "mean_class_r_other_classes": self.by_class_others,
            "pairs": len(self.cosine),
            "mean_cosine": float(self.cosine.mean()),
            "mean_cosine_chance": self.cosine_chance,
        }


def class_atoms(
    modes: Float[Tensor, "K C"], r: Float[Tensor, "K M"], threshold: float = CORRELATED
) -> Float[Tensor, "M C"]:
    """For each class the sum of all modes with r > threshold; where there is none, its best mode alone."""
    chosen = r > threshold
    best = torch.zeros_like(chosen).scatter_(0, r.argmax(0, keepdim=True), True)
    return torch.where(chosen.any(0), chosen, best).T.to(modes.dtype) @ modes


def stability(
    first: Float[Tensor, "K C"],
    first_r: Float[Tensor, "K M"],
    second: Float[Tensor, "L D"],
    second_r: Float[Tensor, "L P"],
    *,
    apart: Bool[Tensor, "M M"] | None = None,
    threshold: float = CORRELATED,
    draws: int = DRAWS,
    seed: int = 0,
) -> Stability:
    """Compare alive modes `[K, C]` by their correlations with the same M classes, and by their channels.

    `apart`: which classes have nothing in common (concepts may); None: all of them.

    Raises:
        InputError: other numbers of channels or classes; no modes; draws or a seed below 0.
    """
    check_whole(draws=draws, seed=seed)
    _same_channels(first, second)
    if not len(first) or not len(second):
        raise InputError("a decomposition without alive modes is as stable as nothing")
    if first_r.shape[1] != second_r.shape[1]:
        raise InputError(
            f"correlations with {first_r.shape[1]} and {second_r.shape[1]} classes: expected the same ones"
        )
    a, b = first.double().cpu(), second.double().cpu()
    ours, theirs = class_atoms(a, first_r, threshold), class_atoms(b, second_r, threshold)
    every = _unit(ours - ours.mean(1, keepdim=True)) @ _unit(theirs - theirs.mean(1, keepdim=True)).T
    others = ~torch.eye(len(every), dtype=torch.bool)
    others = others if apart is None else others & apart
    by_chance, matched_by_chance = [], []
    draw = np.random.default_rng(seed)
    for _ in range(draws):
        shuffle = torch.from_numpy(draw.permutation(a.shape[1]))
        by_chance.append(float(_pearson(ours, theirs[:, shuffle]).mean()))
        matched_by_chance.append(float(match(a, b[:, shuffle])[2].mean()))
    return Stability(
        every.diagonal(),
        float(np.mean(by_chance)) if draws else float("nan"),
        float(every[others].mean()) if bool(others.any()) else float("nan"),
        *match(a, b),
        float(np.mean(matched_by_chance)) if draws else float("nan"),
    )


def _pearson(a: Tensor, b: Tensor) -> Float[Tensor, "M"]:
    return (_unit(a - a.mean(1, keepdim=True)) * _unit(b - b.mean(1, keepdim=True))).sum(1)


def _same_channels(first: Tensor, second: Tensor) -> None:
    if first.shape[1] != second.shape[1]:
        raise InputError(f"modes over {first.shape[1]} and {second.shape[1]} channels cannot be compared")
