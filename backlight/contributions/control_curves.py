"""Curves: accuracy on controlled classes and on others against the fraction of channels (CODEC, section 5, figure 6).

Every condition of a trial (direction, fraction, action) is measured on the same images as the network without any
edit. Curves have their end points: no channel removed is measured as the network itself, all channels removed once.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from backlight.contributions.control import ACTIONS, FILLS
from backlight.contributions.control_directions import Direction
from backlight.contributions.control_outcomes import Condition, Outcomes, donor_numbers, removed_at
from backlight.contributions.control_trials import Trial
from backlight.contributions.reduction import Layout
from backlight.data.hierarchy import Concept
from backlight.displayed import Displayed
from backlight.errors import InputError, UnknownNameError
from backlight.evaluation.identity import combined_hash, differences, model_hash, plain, tensor_hash, versions
from backlight.evaluation.journal import whole, write_text
from backlight.evaluation.samples import Samples
from backlight.shapes import Float, Int
from backlight.store.record import locked

FRACTIONS = (0.01, 0.02, 0.05, 0.10, 0.18, 0.25, 0.50, 0.80, 0.99)  # the paper's
SIDES = ("target", "off-target")
RUN, TRIALS = "run.json", "trials"


@dataclass(frozen=True, repr=False)
class ControlCurves(Displayed):
    """Accuracies, of each trial.

    Attributes:
        concepts: what each trial controls; `sizes [T, 2]`: its images on each side.
        places: sites, or several of them that are edited at once, joined by " + ".
        directions: their names; `notes[direction]`: of each trial, which modes these were.
        actions; `grid`: the fractions, with 0 and 1.
        before: `[T, 2, 2]`: trials, target and off-target, top-1 and top-5.
        after: `[T, 2, P, D, A, F, 2]`: trials, sides, places, directions, actions, grid, top-1 and top-5.
        settings: what decided the numbers.
    """

    concepts: tuple[str, ...]
    sizes: Int[np.ndarray, "T 2"]
    places: tuple[str, ...]
    directions: tuple[str, ...]
    actions: tuple[str, ...]
    grid: tuple[float, ...]
    before: Float[np.ndarray, "T 2 2"]
    after: Float[np.ndarray, "T 2 P D A F 2"]
    notes: Mapping[str, tuple[str, ...]]
    settings: dict[str, Any]


@dataclass(frozen=True)
class Design:
    """What is measured: see `control_curves`."""

    concepts: Sequence[Concept]
    directions: Sequence[Direction]
    trials: Sequence[Trial]
    places: Sequence[Sequence[str]]
    actions: Sequence[str] = ACTIONS
    fractions: Sequence[float] = FRACTIONS

    def __post_init__(self) -> None:
        for action in self.actions:
            if action not in ACTIONS:
                raise UnknownNameError("action", action, ACTIONS)
        grid = list(self.fractions)
        if grid != sorted(set(grid)) or not grid or not 0 < grid[0] <= grid[-1] < 1:
            raise InputError(f"fractions are ascending numbers between 0 and 1, got {grid}")
        names = [one.name for one in self.directions]
        if not names or len(set(names)) < len(names) or not self.trials or not self.actions or not self.places:
            raise InputError("control needs trials, sites, actions, and directions with different names")
        for direction in self.directions:
            for site in {site for place in self.places for site in place}:
                if site not in direction.orders or len(direction.orders[site]) != len(self.concepts):
                    raise InputError(f"{direction.name!r} has no channels for every concept at {site!r}")

    @property
    def grid(self) -> tuple[float, ...]:
        return (0.0, *self.fractions, 1.0)

    def conditions(self, concept: int) -> Iterator[tuple[tuple[int, int, int, int], list[Condition]]]:
        """(place, direction, action, fraction) of a concept, and the conditions of its draws."""
        counts = [range(len(part)) for part in (self.places, self.directions, self.actions, self.grid)]
        for p, d, a, f in product(*counts):
            direction, action, fraction = self.directions[d], self.actions[a], self.grid[f]
            orders = {site: direction.orders[site][concept].numpy() for site in self.places[p]}
            draws = zip(*orders.values(), strict=True)
            removed = [[removed_at(order, fraction, action) for order in draw] for draw in draws]
            lasting = fraction in (0.0, 1.0)
            yield (p, d, a, f), [Condition(dict(zip(orders, one, strict=True)), lasting) for one in removed]

    def images(self) -> int:
        """How many images go through the network: for each trial, those of both sides under each new condition."""
        total, seen = 0, set[tuple[bytes, int]]()
        for trial in self.trials:
            keys = {one.key: one.lasting for _, draws in self.conditions(trial.concept) for one in draws}
            places = (*trial.target, *trial.off)
            total += len(places) * sum(not lasting for lasting in keys.values())
            for key in (key for key, lasting in keys.items() if lasting):
                new = {(key, place) for place in places} - seen
                total, seen = total + len(new), seen | new
        return total


@dataclass(frozen=True)
class Told:
    """Progress: `done` of `total` trials; `batches` of images in the present one."""

    done: int
    total: int
    batches: int = 0


def control_curves(
    model: nn.Module,
    samples: Samples,
    labels: Int[np.ndarray, "n"],
    design: Design,
    *,
    prefix: str = "",
    fill: str = "zero",
    values: Mapping[str, Tensor] | None = None,
    reference: Sequence[int] = (),
    seed: int = 0,
    batch_size: int = 64,
    layouts: Mapping[str, Layout | str] | None = None,
    out: str | os.PathLike[str] | None = None,
    settings: Mapping[str, Any] | None = None,
    progress: Callable[[Told], None] = lambda told: None,
) -> ControlCurves:
    """Measure all trials under all conditions. Cost: one forward pass for each condition and batch of images.

    Conditions that remove the same channels are one; all and none are measured once for all trials. A condition with
    several draws counts with their mean.

    Args:
        model: takes what `samples` give, in evaluation mode. prefix: of the sites' addresses in it, such as "network.".
        labels: of the samples, as the model numbers its classes.
        fill, values: what removed channels hold, by site (see `ChannelEdit`, `site_means`, `site_values`).
        reference: for "resample", which samples the values are of, so that none is its own donor.
        seed: of the donors. layouts: of sites, where they cannot be told (see `layout_of`).
        out: a folder for finished trials: the same call goes on there after a stop or a kill.
        settings: more that decides the numbers, as plain values, such as how concepts were chosen.

    Raises:
        InputError: a network in training mode; values that are missing; a folder with other settings, or in use.
    """
    if fill not in FILLS:
        raise UnknownNameError("fill", fill, FILLS)
    sites = list(dict.fromkeys(site for place in design.places for site in place))
    given = dict(values or {})
    if fill != "zero" and set(sites) - set(given):
        raise InputError(f"fill {fill!r} needs values for {sorted(set(sites) - set(given))}")
    given = {} if fill == "zero" else given
    numbers = donor_numbers(len(labels), reference) if fill == "resample" else None
    outcomes = Outcomes(model, samples, labels, sites, prefix, fill, given, numbers, seed, batch_size, layouts or {})
    about = {"fill": fill, "seed": seed, **plain(dict(settings or {}))}
    found: list[_Measured] = []
    with _journal(out, lambda: _identity(outcomes, design, about, reference)) as journal:
        for number, trial in enumerate(design.trials):
            progress(Told(number, len(design.trials)))
            kept = journal.read(number)
            if kept is None:
                kept = _measured(outcomes, design, trial, _counting(number, len(design.trials), progress))
                journal.write(number, kept)
            found.append(kept)
    progress(Told(len(design.trials), len(design.trials)))
    names = tuple(design.concepts[trial.concept].name for trial in design.trials)
    notes = {
        one.name: tuple(one.notes[trial.concept] for trial in design.trials) for one in design.directions if one.notes
    }
    return ControlCurves(
        names,
        np.array([(len(trial.target), len(trial.off)) for trial in design.trials]),
        tuple(" + ".join(place) for place in design.places),
        tuple(one.name for one in design.directions),
        tuple(design.actions),
        design.grid,
        np.stack([one.before for one in found]),
        np.stack([one.after for one in found]),
        notes,
        about,
    )


@dataclass(frozen=True)
class _Measured:
    """One trial: `before [2, 2]`, `after [2, P, D, A, F, 2]`."""

    before: np.ndarray
    after: np.ndarray


def _measured(outcomes: Outcomes, design: Design, trial: Trial, progress: Callable[[], None]) -> _Measured:
    cells = list(design.conditions(trial.concept))
    nothing = Condition({}, lasting=True)
    conditions = [nothing, *(condition for _, draws in cells for condition in draws)]
    hits = outcomes.hits(conditions, [*trial.target, *trial.off], progress)
    cut = len(trial.target)

    def shares(key: bytes) -> np.ndarray:
        return np.stack([part.mean(0) for part in (hits[key][:cut], hits[key][cut:])])

    shape = (2, len(design.places), len(design.directions), len(design.actions), len(design.grid), 2)
    after = np.empty(shape)
    for (p, d, a, f), draws in cells:
        after[:, p, d, a, f] = np.mean([shares(condition.key) for condition in draws], 0)
    return _Measured(shares(nothing.key), after)


def _counting(number: int, total: int, progress: Callable[[Told], None]) -> Callable[[], None]:
    batches = 0

    def step() -> None:
        nonlocal batches
        batches += 1
        progress(Told(number, total, batches))

    return step


def _identity(outcomes: Outcomes, design: Design, about: Mapping[str, Any], reference: Sequence[int]) -> dict[str, Any]:
    """All that decides the numbers, as plain values."""
    orders = [tensor_hash(one.orders[site].contiguous()) for one in design.directions for site in sorted(one.orders)]
    return {
        "backlight": versions()["backlight"],
        "model": model_hash(outcomes.model),
        "data": outcomes.samples.fingerprint,
        "names": combined_hash(*outcomes.samples.names),
        "labels": combined_hash(*map(str, outcomes.labels.tolist())),
        "concepts": [asdict(concept) for concept in design.concepts],
        "trials": combined_hash(*(json.dumps(asdict(trial)) for trial in design.trials)),
        "directions": [one.name for one in design.directions],
        "orders": combined_hash(*orders),
        "places": [list(place) for place in design.places],
        "actions": list(design.actions),
        "fractions": list(design.fractions),
        "values": {site: tensor_hash(value) for site, value in sorted(outcomes.values.items())},
        "reference": combined_hash(*map(str, reference)),
        "settings": dict(about),
    }


class _Journal:
    """Finished trials on disk, a file each; without a folder, nothing."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    def _path(self, number: int) -> Path | None:
        return None if self.folder is None else self.folder / TRIALS / f"{number:06d}.npz"

    def read(self, number: int) -> _Measured | None:
        path = self._path(number)
        if path is None or not path.is_file():
            return None
        try:
            with np.load(path, allow_pickle=False) as arrays:
                return _Measured(arrays["before"], arrays["after"])
        except (OSError, ValueError, KeyError) as error:
            raise InputError(f"cannot read {str(path)!r}; remove it to measure its trial again: {error}") from None

    def write(self, number: int, one: _Measured) -> None:
        path = self._path(number)
        if path is not None:
            with whole(path) as partial, partial.open("wb") as file:
                np.savez(file, before=one.before, after=one.after)


@contextmanager
def _journal(out: str | os.PathLike[str] | None, identity: Callable[[], dict[str, Any]]) -> Iterator[_Journal]:
    if out is None:
        yield _Journal(None)
        return
    folder = Path(out)
    try:
        (folder / TRIALS).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write to {str(folder)!r}: {error.strerror}") from None
    try:
        with locked(folder / TRIALS / ".lock"):
            _check(folder, json.loads(json.dumps(identity())))
            yield _Journal(folder)
    except BlockingIOError:
        raise InputError(f"another process writes to {str(folder)!r}") from None


def _check(folder: Path, identity: dict[str, Any]) -> None:
    path = folder / RUN
    if not path.is_file():
        if any((folder / TRIALS).glob("*.npz")):
            raise InputError(f"{str(folder)!r} has trials without a {RUN}: give another folder")
        write_text(path, json.dumps(identity, indent=1, ensure_ascii=False) + "\n")
        return
    try:
        there = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {str(path)!r}: {error}") from None
    found = differences(there, identity)
    if found:
        raise InputError(
            f"{str(folder)!r} holds control curves of other settings: {'; '.join(found[:6])}"
            f"{' and more' * (len(found) > 6)}. Give another folder, or the same settings"
        )
