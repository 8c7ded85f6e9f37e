"""Classes and sets of classes that modes and concepts go with, as lists are searched by."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from backlight.data import ClassNames
from backlight.data.hierarchy import Hierarchy
from backlight.errors import InputError, MissingExtraError
from backlight.shapes import Float

LEAST = (10, 5, 3, 2)  # images a class needs, tried in turn
WORDNET = re.compile(r"\.[nvars]\.\d\d$")  # of "dog.n.01"


@dataclass(frozen=True, eq=False, kw_only=True)
class Correlates:
    """What modes or concepts go with: `r` `[K, M]`, by the `names` of classes and of sets of classes."""

    names: tuple[str, ...]
    r: Float[Tensor, "K M"]
    note: str

    def classes_of(self, k: int, count: int = 3) -> list[tuple[str, float]]:
        """The classes that one goes with the most, and r > 0."""
        best = self.r[k].argsort(descending=True, stable=True)[:count].tolist()
        return [(self.names[one].partition(",")[0], float(self.r[k, one])) for one in best if self.r[k, one] > 0]

    def told_classes(self, k: int, count: int = 3) -> str:
        """The same in words."""
        return ", ".join(f"{name} {r:.2f}" for name, r in self.classes_of(k, count)) or "–"


def imagenet_above(classes: ClassNames) -> Hierarchy | None:
    """WordNet above ImageNet's classes; None of other classes."""
    try:
        return Hierarchy.imagenet() if classes.names == ClassNames.imagenet().names else None
    except MissingExtraError:
        return None


def joined_names(
    levels: Iterable[tuple[Sequence[str], Float[Tensor, "K _"]]],
) -> tuple[tuple[str, ...], Float[Tensor, "K M"]]:
    """The names of several levels and their columns of r; a name that comes twice is the first level's.

    WordNet's names go without their numbers: "dog" of "dog.n.01".
    """
    columns: dict[str, Tensor] = {}
    for names, r in levels:
        for place, name in enumerate(names):
            columns.setdefault(WORDNET.sub("", name).replace("_", " "), r[:, place])
    return tuple(columns), torch.stack(list(columns.values()), 1)


def places_of(names: Sequence[str], search: str) -> list[int]:
    """The places of names that hold the words. Raises `InputError` where there are none."""
    wanted = search.strip().lower()
    places = [place for place, name in enumerate(names) if wanted in name.lower()]
    if not places:
        known = f"the first of its classes: {', '.join(names[:6])}" if names else "it knows no classes"
        raise InputError(f"nothing was correlated with a class called {search.strip()!r}; {known}")
    return places


def correlation_note(by: str, least: int, pictures: int) -> str:
    """What the numbers beside classes are, and how far they can be trusted."""
    of = "classes" if by == "label" else "predictions"
    note = f"r is the correlation with {of}, and with sets of them, of at least {least} of {pictures} pictures."
    return note + (" With so few pictures a class, large ones are to be had by chance." if least < LEAST[0] else "")
