"""The names of a classifier's outputs."""

from __future__ import annotations

import json
import operator
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import SupportsIndex

from backlight.errors import InputError, MissingExtraError, TargetError, UnknownNameError


@dataclass(frozen=True)
class ClassNames:
    """What the outputs of a network are called, by index.

    A name may list synonyms between commas ("tench, Tinca tinca"). Without names (a network whose classes nobody
    told, or one whose outputs are features, with `unit="feature"`) indices still work and read "class 7".

    Raises:
        InputError: as many synsets as names are needed, or none.
    """

    names: tuple[str, ...] = ()
    synsets: tuple[str, ...] = ()
    unit: str = "class"

    def __post_init__(self) -> None:
        if self.synsets and len(self.synsets) != len(self.names):
            raise InputError(f"expected a synset for each of {len(self.names)} names, got {len(self.synsets)}")

    @classmethod
    def imagenet(cls, subset: str = "imagenet-1k") -> ClassNames:
        """ImageNet's names and WordNet synsets as timm ships them; `subset` is one of timm's ("imagenet-22k", ...).

        Raises:
            MissingExtraError: timm is not installed.
        """
        try:
            from timm.data.imagenet_info import ImageNetInfo
        except ModuleNotFoundError:
            raise MissingExtraError("timm", "vision") from None
        info = ImageNetInfo(subset)
        return cls(tuple(info.label_descriptions()), tuple(info.label_names()))

    @classmethod
    def generic(cls, count: int) -> ClassNames:
        """`count` classes called "class 0", "class 1", ..."""
        return cls(tuple(f"class {index}" for index in range(count)))

    @classmethod
    def from_id2label(cls, id2label: Mapping[int | str, str]) -> ClassNames:
        """From the `config.id2label` of a Hugging Face model; its placeholders LABEL_7 become "class 7"."""
        labels = {int(index): str(label) for index, label in id2label.items()}
        count = max(labels, default=-1) + 1
        given = (labels.get(index, f"LABEL_{index}") for index in range(count))
        return cls(tuple(f"class {i}" if label == f"LABEL_{i}" else label for i, label in enumerate(given)))

    @classmethod
    def of(cls, classes: ClassNames | Sequence[str] | str | os.PathLike[str]) -> ClassNames:
        """From names, "imagenet", or a file: JSON (a list, or an object index to name) or one name a line.

        Raises:
            InputError: a file that does not exist, or does not hold names.
        """
        if isinstance(classes, ClassNames):
            return classes
        if isinstance(classes, str) and classes in ("imagenet", "imagenet-1k"):
            return cls.imagenet()
        if isinstance(classes, (str, os.PathLike)):
            return cls._from_file(Path(classes))
        return cls(tuple(str(name) for name in classes))

    @classmethod
    def _from_file(cls, path: Path) -> ClassNames:
        try:
            text = path.read_text(encoding="utf-8")
            if path.suffix.lower() != ".json":
                return cls(tuple(line.strip() for line in text.splitlines() if line.strip()))
            entries = json.loads(text)
            if isinstance(entries, dict):
                return cls.from_id2label(entries)
            if isinstance(entries, list) and all(isinstance(entry, str) for entry in entries):
                return cls(tuple(entries))
        except (OSError, ValueError) as error:
            raise InputError(f"cannot read class names from {str(path)!r}: {str(error).splitlines()[0]}") from None
        raise InputError(f"expected a list of names or an object index to name in {str(path)!r}")

    def __len__(self) -> int:
        return len(self.names)

    def synonyms(self, index: SupportsIndex) -> tuple[str, ...]:
        """All names of a class: ("tench", "Tinca tinca"). Raises `TargetError` for an index out of range."""
        position = self._checked(index)
        if not self.names:
            return (f"{self.unit} {position}",)
        return tuple(part.strip() for part in self.names[position].split(",") if part.strip())

    def name(self, index: SupportsIndex) -> str:
        """The first name of a class: "tench". Raises `TargetError` for an index out of range."""
        return next(iter(self.synonyms(index)), f"{self.unit} {operator.index(index)}")

    def synset(self, index: SupportsIndex) -> str:
        """The WordNet synset of a class, "n01440764", or "" where none is known. Raises `TargetError`."""
        position = self._checked(index)
        return self.synsets[position] if self.synsets else ""

    def index(self, query: str | SupportsIndex) -> int:
        """The index of a class given by index, synset, name or synonym; case and outer blanks do not matter.

        `index("tiger cat") == index("n02123159") == index(282) == index("282")`. A name goes before a number, so
        classes that are called by digits are found by name.

        Raises:
            UnknownNameError: no class has the name; close matches are listed.
            TargetError: several classes have the name (ImageNet has two cranes), or the index is out of range.
        """
        if not isinstance(query, str):
            return self._checked(query)
        wanted = query.strip().lower()
        for found in (self._with_synset(wanted), self._named(wanted)):
            if len(found) > 1:
                listed = ", ".join(f"{index} ({self.names[index]})" for index in found)
                raise TargetError(f"the class name {query!r} is ambiguous: {listed}; give an index or a synset")
            if found:
                return found[0]
        if wanted.removeprefix("-").isdecimal():
            return self._checked(int(wanted))
        every = (name for index in range(len(self)) for name in self.synonyms(index))
        raise UnknownNameError(self.unit, query, every, "" if self.names else f"give the index of the {self.unit}")

    def _with_synset(self, wanted: str) -> list[int]:
        return [index for index, synset in enumerate(self.synsets) if synset.lower() == wanted]

    def _named(self, wanted: str) -> list[int]:
        if "," in wanted:  # all synonyms at once, as `names` spells them
            return [index for index, name in enumerate(self.names) if name.lower() == wanted]
        return [i for i in range(len(self)) if wanted in (name.lower() for name in self.synonyms(i))]

    def _checked(self, index: SupportsIndex) -> int:
        try:
            position = operator.index(index)
        except TypeError:
            raise TargetError(f"expected a {self.unit} index or name, got {type(index).__name__}") from None
        if position < 0 or (self.names and position >= len(self.names)):
            last = f"to {len(self.names) - 1}" if self.names else "and up"
            raise TargetError(f"the {self.unit} index {position} is out of range: expected 0 {last}")
        return position
