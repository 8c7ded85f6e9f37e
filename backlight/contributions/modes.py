"""What modes mean: their channels, samples, classes and concepts, beside those of single channels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from backlight.contributions.concepts import IMAGES, Concepts
from backlight.contributions.correlation import correlate
from backlight.contributions.evidence import Difference, Evidence, check_whole, difference, evidence, nonzero, steps
from backlight.contributions.exemplars import Exemplars, exemplars
from backlight.contributions.specificity import Specificity, coverage, specificity
from backlight.contributions.stability import Stability, stability
from backlight.data.classes import ClassNames
from backlight.data.hierarchy import Hierarchy
from backlight.decompositions.scaling import kept
from backlight.errors import InputError, UnknownNameError
from backlight.shapes import Float, Int
from backlight.store.rows import Chosen, Rows

LABELS = ("label", "prediction")
CLASSES, CONCEPTS = "classes", "concepts"


class Described(Protocol):
    """What is needed of a `Decomposed`."""

    site: str
    quantity: str
    sign: str
    loadings: Rows

    @property
    def modes(self) -> Float[Tensor, "K C"]: ...

    @property
    def store(self) -> Any: ...


def top_channels(
    mode: Float[Tensor, "C"], *, share: float | None = None, count: int | None = None
) -> Int[Tensor, "top"]:
    """The channels with a mode's largest signed entries, descending: int(C * share) of them, at least one, or `count`.

    Equal entries stay in the order of the channels.

    Raises:
        InputError: neither or both of `share` and `count`, a share outside (0, 1], a count outside 1..C.
    """
    channels = len(mode)
    if (share is None) == (count is None):
        raise InputError(f"expected a share or a count of channels, one of them, got {share=}, {count=}")
    if share is not None:
        if not 0 < share <= 1:
            raise InputError(f"expected a share of the channels in (0, 1], got {share}")
        count = max(1, int(channels * share + 1e-9))  # 100 * 0.29 is 28.999...
    assert count is not None
    if not 1 <= count <= channels:
        raise InputError(f"expected a count of channels in 1..{channels}, got {count}")
    return torch.argsort(mode, descending=True, stable=True)[:count]


@dataclass(frozen=True)
class Level:
    """Modes, and channels by quantity, against one kind of masks: classes, or concepts of a hierarchy."""

    concepts: Concepts
    modes: Evidence
    channels: dict[str, Evidence] = field(default_factory=dict)

    @cached_property
    def specificity(self) -> Specificity | None:
        """Of the modes; None where there is one mask alone."""
        return specificity(self.modes.correlation.r) if len(self.concepts) > 1 else None

    def coverage(self) -> tuple[Float[Tensor, "alive"], Float[Tensor, "M"]]:
        """As `specificity.coverage`, of the modes that are alive."""
        return coverage(self.modes.correlation.r[self.modes.alive])

    def best_modes(self, name: str, count: int = 5) -> list[tuple[int, float]]:
        """A class's or concept's modes with the largest r, and r. Raises `UnknownNameError`."""
        r = self.modes.correlation.r[:, self.concepts.index(name)]
        return [(int(mode), float(r[mode])) for mode in top_channels(r, count=min(count, len(r)))]

    def best_concepts(self, mode: int, count: int = 3) -> list[tuple[str, float]]:
        """The classes or concepts a mode has the largest r with, and r."""
        r = self.modes.correlation.r[mode]
        return [(self.concepts.names[one], float(r[one])) for one in top_channels(r, count=min(count, len(r)))]

    def differences(self) -> dict[str, dict[str, Difference]]:
        """By quantity, and "r" or "held_out": the median over modes minus the median over channels."""
        return {
            name: {kind: difference(self.modes, one, held_out=kind == "held_out") for kind in ("r", "held_out")}
            for name, one in self.channels.items()
        }


@dataclass(frozen=True)
class Modes:
    """What `describe` found.

    Attributes:
        site, quantity, sign, modes `[K, C]`: of the decomposition. names, labels: of the samples.
        counted: the samples that correlations are of: see `counted_samples`.
        exemplars: of every mode, among all samples. levels: by "classes" and "concepts", where there are enough.
        about: the class or concept that was asked for. settings: of `describe`.
        notes: what a reader must know, such as too few images of single classes.
    """

    site: str
    quantity: str
    sign: str
    modes: Float[Tensor, "K C"]
    names: list[str]
    labels: Int[np.ndarray, "n"]
    counted: int
    exemplars: Exemplars
    levels: dict[str, Level]
    classes: ClassNames
    hierarchy: Hierarchy | None
    about: str | None
    settings: dict[str, Any]
    notes: tuple[str, ...]

    @property
    def level(self) -> Level:
        """That of `about`; else concepts of the hierarchy where one was given, else classes."""
        return self.levels[self._level(self.about)]

    def channels(self, mode: int, count: int = 10) -> list[tuple[str, float]]:
        """A mode's largest signed weights, by channel; the most negative ones, where negative parts were decomposed.

        A channel is called "12"; where both signs have columns of their own, "12+" and "12-".
        """
        weights = self.modes[mode].cpu()
        order = top_channels(-weights if self.sign == "negative" else weights, count=min(count, len(weights)))
        return [(self._channel(int(one)), float(weights[one])) for one in order]

    def label(self, sample: int) -> str:
        """The name of a sample's class; "" where it has none."""
        index = int(self.labels[sample])
        return "" if index < 0 else self.classes.name(index)

    def ranked(self, name: str | None = None, count: int = 20) -> list[int]:
        """The modes of a class or concept (`about` by default) by r; of none in particular, by r on held-out samples.

        Raises:
            UnknownNameError: a class or concept that is not there, or has too few samples.
        """
        name = name or self.about
        if name is not None:
            return [mode for mode, _ in self.levels[self._level(name)].best_modes(name, count)]
        one = self.level.modes
        score = torch.where(one.alive, one.held_out, -torch.inf)
        return top_channels(score, count=min(count, len(score))).tolist()

    def against(self, other: Described, *, seed: int = 0) -> Stability:
        """How much of these modes another decomposition of the same site finds; by the masks that both have.

        Raises:
            InputError: another site or other channels, or no class or concept in common.
        """
        if other.site != self.site:
            raise InputError(f"modes of {self.site!r} cannot be compared with modes of {other.site!r}")
        labels = labels_of(other, self.settings["by"])
        counted, _ = counted_samples(other, labels)
        labels = labels[counted]
        least = self.settings["min_images"]
        theirs = (
            Concepts.of_classes(labels, self.classes, least)
            if self.hierarchy is None or self._level(self.about) == CLASSES
            else Concepts.of_hierarchy(labels, self.hierarchy, least)
        )
        ours = self.level.concepts
        common = [name for name in ours.names if name in set(theirs.names)]
        if not common:
            raise InputError("the two decompositions have no class or concept with enough samples in common")
        loadings = chosen_rows(other.loadings, counted)
        alive = nonzero(loadings)
        r = correlate(loadings, theirs.masks[:, [theirs.names.index(name) for name in common]])
        own, places = self.level.modes, [ours.names.index(name) for name in common]
        own_r = own.correlation.r[own.alive][:, places]
        sets = [set(ours.classes[place]) for place in places]
        apart = torch.tensor([[a.isdisjoint(b) for b in sets] for a in sets])
        return stability(self.modes[own.alive], own_r, other.modes.cpu()[alive], r[alive], apart=apart, seed=seed)

    def _level(self, name: str | None) -> str:
        return level_of({title: one.concepts for title, one in self.levels.items()}, name)

    def _channel(self, column: int) -> str:
        if self.sign != "concat":
            return str(column)
        half = self.modes.shape[1] // 2
        return f"{column}+" if column < half else f"{column - half}-"


def describe(
    decomposed: Described,
    *,
    hierarchy: Hierarchy | None = None,
    classes: ClassNames | None = None,
    about: str | None = None,
    by: str = "label",
    channels: bool = True,
    min_images: int = IMAGES,
    top: int = 8,
    permutations: int = 20,
    draws: int = 200,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Modes:
    """Correlate the loadings of modes with classes and concepts, and the channels they are made of beside them.

    CODEC, sections 4 and 10.2. Labels say here what modes are about. Samples without one count in no correlation; nor,
    where the modes themselves are made of labels (`ClassMeans`), do those that they are made of. `notes` say so. Rows
    are read some `5 + permutations` times for each of modes and channels, at both levels, or once if they take less
    than 1 GiB.

    Args:
        hierarchy: concepts to correlate with, besides the classes.
        classes: their names; None: those that the store knows, else indices.
        about: a class or concept whose modes are asked for. All are computed; a name that is not there is told at once.
        by: "label", or "prediction", what the network takes samples for, which needs no labels.
        channels: correlate the decomposed rows too, and where contributions were decomposed, the activations.
        min_images: classes and concepts with fewer samples inside or outside are left out: with a few samples, the
            best of many modes correlates well by chance.
        top: exemplars of a mode.
        permutations: of the masks, for the r that chance gives. draws: of a bootstrap over samples.
        progress: called with the number of steps that are done, and of all.

    Raises:
        InputError: no labels, no class or concept with enough samples, or numbers out of range.
        UnknownNameError: another `by`, or an `about` that is not there or has too few samples.
    """
    check_whole(permutations=permutations, draws=draws, seed=seed)
    labels, names = labels_of(decomposed, by), classes or class_names(decomposed)
    places, told = counted_samples(decomposed, labels)
    levels, notes = _masks(labels[places], hierarchy, names, min_images, told)
    level_of(levels, about)
    loadings = kept(decomposed.loadings)
    compared = _channels(decomposed) if channels else {}
    total = len(levels) * (1 + len(compared)) * steps(permutations)
    done = 0

    def tell() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total)

    def found(rows: Rows, concepts: Concepts) -> Evidence:
        given = {"permutations": permutations, "draws": draws, "seed": seed}
        return evidence(chosen_rows(rows, places), concepts.masks, progress=tell, **given)

    modes = {name: found(loadings, one) for name, one in levels.items()}
    beside: dict[str, dict[str, Evidence]] = {name: {} for name in levels}
    for quantity, rows in compared.items():
        own = kept(chosen_rows(rows, places))
        for name, one in levels.items():
            beside[name][quantity] = found(own, one)
    return Modes(
        site=decomposed.site,
        quantity=decomposed.quantity,
        sign=decomposed.sign,
        modes=decomposed.modes.cpu(),
        names=list(decomposed.store.names),
        labels=labels,
        counted=len(places),
        exemplars=exemplars(loadings, top),
        levels={name: Level(one, modes[name], beside[name]) for name, one in levels.items()},
        classes=names,
        hierarchy=hierarchy,
        about=about,
        settings={"by": by, "min_images": min_images, "permutations": permutations, "draws": draws, "seed": seed},
        notes=notes,
    )


def level_of(levels: Mapping[str, Concepts], name: str | None) -> str:
    """Which of the levels has a class or concept of this name; of no name, concepts before classes.

    Raises:
        UnknownNameError: no level has it.
    """
    if name is None:
        return CONCEPTS if CONCEPTS in levels else CLASSES
    errors = []
    for title, one in levels.items():
        try:
            one.index(name)
            return title
        except UnknownNameError as error:
            errors.append(error)
    raise errors[0]


def counted_samples(
    decomposed: Described, labels: Int[np.ndarray, "n"]
) -> tuple[Int[np.ndarray, "m"], tuple[str, ...]]:
    """The samples whose correlations say something, ascending; and what a reader must know of the others.

    Those that have a label; and of a decomposition that was fitted to labels, those that it held out: it correlates
    with the others' labels whatever the rows are. Where it held none out, all, which a note says.
    """
    known, notes = labels >= 0, []
    if known.any() and not known.all():
        notes.append(f"{(~known).sum()} of {len(known)} samples have no label: they count in no correlation")
    method = getattr(decomposed, "decomposition", None)
    if "labels" in getattr(method, "needs", ()):
        name, held_out = type(method).__name__, known & np.asarray(getattr(decomposed, "held_out", False))
        if held_out.any():
            known = held_out
            notes.append(f"{name} is made of labels: correlations are of the {known.sum()} samples that it held out")
        else:
            notes.append(f"{name} is made of all samples' labels: no r is held out, and chance is higher than it says")
    return np.flatnonzero(known), tuple(notes)


def chosen_rows(rows: Rows, places: Int[np.ndarray, "m"]) -> Rows:
    """Those at these places; the rows themselves where that is all of them."""
    return rows if len(places) == rows.shape[0] else Chosen(rows, places)


def labels_of(decomposed: Described, by: str) -> Int[np.ndarray, "n"]:
    """The samples' labels or predictions. Raises `UnknownNameError` for another `by`."""
    if by not in LABELS:
        raise UnknownNameError("kind of label", by, LABELS)
    return np.asarray(decomposed.store.column(by), dtype=np.int64)


def class_names(decomposed: Described) -> ClassNames:
    """The names of the network's outputs, as far as the store knows them."""
    return ClassNames(tuple(getattr(decomposed.store, "about", {}).get("classes", ())))


@dataclass(frozen=True)
class Negated:
    """Rows with the other sign: the more negative a contribution, the larger."""

    rows: Rows

    @property
    def shape(self) -> tuple[int, int]:
        return self.rows.shape

    def read(self, start: int, stop: int) -> Float[Tensor, "n C"]:
        return -self.rows.read(start, stop)


def _channels(decomposed: Described) -> dict[str, Rows]:
    store, sign = decomposed.store, decomposed.sign
    wanted = [decomposed.quantity]
    if decomposed.quantity == "contributions" and "activations" in store.quantities(decomposed.site):
        wanted.append("activations")
    found = {quantity: store.rows(decomposed.site, quantity, sign) for quantity in wanted}
    return {name: Negated(rows) if sign == "negative" else rows for name, rows in found.items()}


def _masks(
    labels: np.ndarray, hierarchy: Hierarchy | None, classes: ClassNames, min_images: int, told: tuple[str, ...]
) -> tuple[dict[str, Concepts], tuple[str, ...]]:
    given = {CLASSES: Concepts.of_classes(labels, classes, min_images)}
    if hierarchy is not None:
        given[CONCEPTS] = Concepts.of_hierarchy(labels, hierarchy, min_images)
    notes = list(told)
    for name, one in given.items():
        if one.left_out:
            most = max(one.left_out.values()) if not len(one) else 0
            largest = f"; the largest has {most}" if most else ""
            notes.append(
                f"{len(one.left_out)} of {len(one.left_out) + len(one)} {name} are left out: they have fewer than "
                f"{min_images} samples inside or outside{largest}"
            )
    levels = {name: one for name, one in given.items() if len(one)}
    if not levels:
        advice = "lower min_images" if hierarchy is not None else "give a hierarchy of concepts, or lower min_images"
        raise InputError(f"{'; '.join(notes)}: {advice}")
    return levels, tuple(notes)
