"""Concepts above classes: named sets of class indices, ordered as in WordNet or in a file of one's own."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from backlight.data.classes import ClassNames
from backlight.errors import InputError, UnknownNameError
from backlight.shapes import Bool, Int

IMAGENET = "imagenet_hierarchy.json"


@dataclass(frozen=True)
class Concept:
    """A set of classes. `names`: all of one set, the most specific first (the others are the links of a chain)."""

    names: tuple[str, ...]
    indices: tuple[int, ...]

    @property
    def name(self) -> str:
        return self.names[0]


class Hierarchy:
    """Concepts, the largest first, none of them twice: names of equal sets are one concept that has them all.

    Built from `members`: for each name, the names of concepts and the indices of classes right below it; a concept may
    lie below several. Sets are closed upwards, so a concept's set holds those of all below it.

    Raises:
        InputError: concepts that lie below themselves, or without classes.
    """

    def __init__(self, members: Mapping[str, Sequence[str | int]]) -> None:
        sets, depths = _closed(members)
        by_set: dict[frozenset[int], list[str]] = {}
        for name, found in sets.items():
            by_set.setdefault(found, []).append(name)
        self.concepts: tuple[Concept, ...] = tuple(
            Concept(tuple(sorted(names, key=lambda name: (-depths[name], name))), tuple(sorted(found)))
            for found, names in sorted(by_set.items(), key=lambda item: (-len(item[0]), sorted(item[0])))
        )
        self._place = {name: place for place, one in enumerate(self.concepts) for name in one.names}
        self._above: list[set[int]] = [set() for _ in self.concepts]
        self._below: list[set[int]] = [set() for _ in self.concepts]
        for name, below in members.items():
            for child in (self._place[one] for one in below if isinstance(one, str)):
                if child != self._place[name]:
                    self._below[self._place[name]].add(child)
                    self._above[child].add(self._place[name])

    @classmethod
    def imagenet(cls) -> Hierarchy:
        """WordNet 3.0 above ImageNet's 1000 classes: all paths of hypernyms, in NLTK's names ("dog.n.01")."""
        return _imagenet()

    @classmethod
    def from_json(cls, path: str | os.PathLike[str], classes: ClassNames | None = None) -> Hierarchy:
        """From a file {concept: members}: a list of class indices, class names and other concepts' names, or a tree.

        `{"pet": ["dog", "tabby"], "dog": [151, 152]}` and `{"pet": {"dog": [151, 152], "cat": ["tabby"]}}` both work; a
        name that is a concept of the file stands for it, others are classes'.

        Raises:
            InputError: a file that cannot be read or holds something else.
            UnknownNameError: a name that is neither a concept nor a class.
        """
        try:
            found = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f"cannot read a hierarchy from {str(path)!r}: {str(error).splitlines()[0]}") from None
        if not isinstance(found, dict) or not found:
            raise InputError(f"expected an object concept to members in {str(path)!r}, got {type(found).__name__}")
        members: dict[str, list[Any]] = {}
        _flatten(found, members)
        return cls(_resolved(members, ClassNames() if classes is None else classes))

    @classmethod
    def of(cls, given: Hierarchy | str | os.PathLike[str], classes: ClassNames | None = None) -> Hierarchy:
        """A hierarchy, "imagenet", or a JSON file."""
        if isinstance(given, Hierarchy):
            return given
        return cls.imagenet() if given == "imagenet" else cls.from_json(given, classes)

    def __len__(self) -> int:
        return len(self.concepts)

    def concept(self, name: str) -> Concept:
        """By any of its names, with or without WordNet's ".n.01" where that is the only or the first sense.

        Raises:
            UnknownNameError: no concept is called so; close matches are listed.
        """
        return self.concepts[self._find(name)]

    def indices(self, name: str) -> tuple[int, ...]:
        """The classes of a concept, ascending. Raises `UnknownNameError`."""
        return self.concept(name).indices

    def parents(self, name: str) -> tuple[Concept, ...]:
        """The concepts right above. Raises `UnknownNameError`."""
        return tuple(self.concepts[place] for place in sorted(self._above[self._find(name)]))

    def children(self, name: str) -> tuple[Concept, ...]:
        """The concepts right below. Raises `UnknownNameError`."""
        return tuple(self.concepts[place] for place in sorted(self._below[self._find(name)]))

    def masks(self, labels: Int[Tensor, "n"] | Int[np.ndarray, "n"] | Sequence[int]) -> Bool[Tensor, "n M"]:
        """Does sample i belong to concept m? Labels of no concept, and -1 for no label, belong to none."""
        given = torch.as_tensor(np.asarray(labels, dtype=np.int64))
        size = 1 + max(int(given.max()) if len(given) else 0, max(one.indices[-1] for one in self.concepts))
        member = torch.zeros(size, len(self), dtype=torch.bool)
        for place, one in enumerate(self.concepts):
            member[list(one.indices), place] = True
        return member[given.clamp_min(0)] & (given >= 0)[:, None]

    def _find(self, name: str) -> int:
        wanted = name.strip().lower().replace(" ", "_")
        exact = {known.lower().replace(" ", "_"): place for known, place in self._place.items()}
        senses = sorted(known for known in exact if known.rpartition(".n.")[0] == wanted)
        found = exact.get(wanted, exact[senses[0]] if senses and self._clear(senses) else None)
        if found is None:
            raise UnknownNameError("concept", name, senses or self._place)
        return found

    @staticmethod
    def _clear(senses: list[str]) -> bool:
        return len(senses) == 1 or senses[0].endswith(".n.01")


@cache
def _imagenet() -> Hierarchy:
    text = (resources.files(__package__) / IMAGENET).read_text(encoding="utf-8")
    return Hierarchy(json.loads(text))


def _closed(members: Mapping[str, Sequence[str | int]]) -> tuple[dict[str, frozenset[int]], dict[str, int]]:
    """The classes of each concept, and how far below a root it lies (the longest way)."""
    sets: dict[str, frozenset[int]] = {}
    above: dict[str, list[str]] = {name: [] for name in members}
    order: list[str] = []
    for start in members:
        way: list[tuple[str, Iterable[str]]] = [(start, _names(members[start]))] if start not in sets else []
        open_ones = {start}
        while way:
            name, rest = way[-1]
            below = next(iter(rest), None)
            if below is None:
                way.pop()
                open_ones.discard(name)
                own = frozenset(one for one in members[name] if not isinstance(one, str))
                sets[name] = own.union(*(sets[one] for one in _names(members[name])))
                order.append(name)
            elif below in open_ones:
                raise InputError(f"the concept {below!r} lies below itself")
            elif below not in members:
                raise UnknownNameError("concept", below, members)
            elif below not in sets:
                way.append((below, _names(members[below])))
                open_ones.add(below)
    empty = [name for name, found in sets.items() if not found]
    if empty or not sets:
        raise InputError(f"concepts without classes: {', '.join(empty[:8]) or 'all'}")
    for name, below_names in members.items():
        for one in _names(below_names):
            above[one].append(name)
    depths: dict[str, int] = {}
    for name in reversed(order):  # parents come first
        depths[name] = 1 + max((depths[one] for one in above[name]), default=-1)
    return sets, depths


def _names(members: Sequence[str | int]) -> Iterable[str]:
    return iter([one for one in members if isinstance(one, str)])


def _flatten(tree: Mapping[str, Any], members: dict[str, list[Any]]) -> None:
    """Trees as lists of members. A concept in two places has the members of both."""
    for name, below in tree.items():
        listed = members.setdefault(name, [])
        if isinstance(below, dict):
            listed += [one for one in below if one not in listed]
            _flatten(below, members)
        elif isinstance(below, (list, str, int)) and not isinstance(below, bool):
            listed += [below] if isinstance(below, (str, int)) else below
        else:
            raise InputError(f"the members of {name!r} are a list or an object, got {type(below).__name__}")


def _resolved(members: Mapping[str, list[Any]], classes: ClassNames) -> dict[str, list[str | int]]:
    found: dict[str, list[str | int]] = {}
    for name, listed in members.items():
        found[name] = []
        for one in listed:
            if isinstance(one, bool) or not isinstance(one, (str, int)):
                raise InputError(f"a member of {name!r} is a class index or a name, got {one!r}")
            if isinstance(one, str) and one in members and one != name:
                found[name].append(one)
            else:  # a concept that lists its own name means the class
                found[name].append(classes.index(one))
    return found
