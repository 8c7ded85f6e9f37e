"""Which samples belong to which class, or concept: the masks that modes are correlated with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from backlight.data.classes import ClassNames
from backlight.data.hierarchy import Hierarchy
from backlight.errors import InputError, UnknownNameError
from backlight.shapes import Bool, Int

IMAGES = 10  # fewer say too little about a correlation


@dataclass(frozen=True)
class Concepts:
    """Named masks over samples, each with at least `min_images` samples inside, and labelled ones outside.

    Attributes:
        names: of each mask; `also`: other names of the same samples (a chain of WordNet, or classes without samples
            that would tell two concepts apart).
        classes: the class indices of each.
        masks: `[n, M]`.
        left_out: the number of samples of those with too few inside, or too few outside, by name.
    """

    names: tuple[str, ...]
    also: tuple[tuple[str, ...], ...]
    classes: tuple[tuple[int, ...], ...]
    masks: Bool[Tensor, "n M"]
    left_out: dict[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.names)

    @property
    def images(self) -> list[int]:
        """How many samples each holds."""
        return [int(count) for count in self.masks.sum(0)]

    @classmethod
    def of_classes(
        cls, labels: Int[np.ndarray, "n"] | Sequence[int], names: ClassNames | None = None, min_images: int = IMAGES
    ) -> Concepts:
        """A mask for each class among the labels (-1: none, which is not known to be outside).

        Raises:
            InputError: no sample has a label.
        """
        given = checked_labels(labels)
        found = [int(one) for one in np.unique(given) if one >= 0]
        known = names or ClassNames()
        titles: list[tuple[str, ...]] = [(known.name(one),) for one in found]
        repeated = {title for title in titles if titles.count(title) > 1}  # ImageNet has two cranes
        titles = [
            (f"{title[0]} ({one})",) if title in repeated else title for title, one in zip(titles, found, strict=True)
        ]
        masks = torch.from_numpy(given)[:, None] == torch.tensor(found)
        return cls._enough(titles, [(one,) for one in found], masks, given >= 0, min_images)

    @classmethod
    def of_hierarchy(
        cls, labels: Int[np.ndarray, "n"] | Sequence[int], hierarchy: Hierarchy, min_images: int = IMAGES
    ) -> Concepts:
        """A mask for each concept with samples; concepts of the same samples are one, called by the smallest."""
        given = checked_labels(labels)
        masks = hierarchy.masks(given)
        order = list(range(len(hierarchy)))[::-1]  # small concepts first
        _, groups = np.unique(np.packbits(masks[:, order].numpy(), axis=0), axis=1, return_inverse=True)
        same: dict[int, list[int]] = {}
        for place, group in zip(order, groups.reshape(-1), strict=True):
            if bool(masks[:, place].any()):
                same.setdefault(int(group), []).append(place)
        first = sorted(same.values(), key=lambda places: places[0])
        titles = [tuple(name for one in places for name in hierarchy.concepts[one].names) for places in first]
        classes = [hierarchy.concepts[places[0]].indices for places in first]
        return cls._enough(titles, classes, masks[:, [places[0] for places in first]], given >= 0, min_images)

    @classmethod
    def _enough(
        cls,
        titles: list[tuple[str, ...]],
        classes: list[tuple[int, ...]],
        masks: Tensor,
        labelled: np.ndarray,
        min_images: int,
    ) -> Concepts:
        if min_images < 1:
            raise InputError(f"min_images must be at least 1, got {min_images}")
        inside = masks.sum(0)
        enough = ((inside >= min_images) & (int(labelled.sum()) - inside >= min_images)).tolist()
        kept = [place for place, one in enumerate(enough) if one]
        left = {titles[place][0]: int(inside[place]) for place, one in enumerate(enough) if not one}
        names = tuple(titles[place][0] for place in kept)
        also = tuple(titles[place][1:] for place in kept)
        return cls(names, also, tuple(classes[place] for place in kept), masks[:, kept], left)

    def index(self, name: str) -> int:
        """The mask called so, by any of its names. Raises `UnknownNameError`, also for one with too few samples."""
        places = {one.lower(): place for place, title in enumerate(self.names) for one in (title, *self.also[place])}
        if name.lower() not in places:
            few = {one.lower(): count for one, count in self.left_out.items()}.get(name.lower())
            hint = "" if few is None else f"it has {few} samples, too few inside or outside"
            raise UnknownNameError("class or concept", name, places, hint)
        return places[name.lower()]


def checked_labels(labels: Int[np.ndarray, "n"] | Sequence[int]) -> np.ndarray:
    """Labels as int64. Raises `InputError` where no sample has one."""
    given = np.asarray(labels, dtype=np.int64)
    if given.ndim != 1 or not (given >= 0).any():
        raise InputError("no sample has a label: correlate with predictions (by='prediction') or give labelled samples")
    return given
