"""A study of control: decompositions and labelled images in, curves of every direction out."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from backlight.contributions.control import ACTIONS, ChannelEdit, site_means, site_values
from backlight.contributions.control_curves import FRACTIONS, ControlCurves, Design, Told, control_curves
from backlight.contributions.control_directions import directions_of
from backlight.contributions.control_outcomes import channel_count
from backlight.contributions.control_trials import IMAGES, TRIALS, Trial, every_concept, paper_trials
from backlight.data.classes import ClassNames
from backlight.data.hierarchy import Concept
from backlight.displayed import Displayed
from backlight.errors import InputError, UnknownNameError
from backlight.evaluation.identity import model_hash
from backlight.evaluation.samples import Samples
from backlight.shapes import Bool, Int
from backlight.store.marks import content, read_marks
from backlight.store.record import MARKS

if TYPE_CHECKING:
    from backlight.contributions.decomposed import Decomposed

PRESETS = ("paired", "paper")
LEAST = 5  # images of a class, to choose its channels and to measure them
MEANS, DONORS = 256, 64  # reference images


@dataclass(frozen=True)
class Split:
    """Which images choose channels, and which are measured.

    - `measured [n]`: of the samples; `used`: rows that may choose, by the folder of a decomposition;
    - `how`: "held out": what is measured was neither fitted nor used to choose; "halves": it was fitted, for nothing
      was held out, but not used to choose; "none": the same images for both.
    """

    measured: Bool[np.ndarray, "n"]
    used: Mapping[str, np.ndarray]
    how: str


def split(decomposed: Sequence[Decomposed], names: Sequence[str], held_out: bool = True, seed: int = 0) -> Split:
    """Measure what no decomposition was fitted to; where all was fitted, a random half. `held_out=False`: no split."""
    if not held_out:
        every = {str(one.folder): np.ones(len(one.store.names), dtype=bool) for one in decomposed}
        return Split(np.ones(len(names), dtype=bool), every, "none")
    fitted = {
        name for one in decomposed for name, out in zip(one.store.names, one.held_out.tolist(), strict=True) if not out
    }
    measured, how = np.array([name not in fitted for name in names]), "held out"
    if not measured.any():
        chosen = np.random.default_rng(seed).permutation(len(names))[: len(names) // 2]
        measured, how = np.isin(np.arange(len(names)), chosen), "halves"
    apart = {name for name, one in zip(names, measured.tolist(), strict=True) if one}
    used = {str(one.folder): np.array([name not in apart for name in one.store.names]) for one in decomposed}
    return Split(measured, used, how)


def known_names(samples: Samples, decomposed: Sequence[Decomposed]) -> list[str]:
    """The samples' names; of one that no store has under its name, that of the store's sample with the same content.

    Else pictures that were fitted under another folder's names would be taken for others.
    """
    known: dict[str, str] = {}
    for folder in {one.store.folder for one in decomposed}:
        for mark in read_marks(folder / MARKS).values():
            known |= {found: name for name, found in zip(mark.names, mark.contents, strict=False) if found}
    there = {name for one in decomposed for name in one.store.names}
    return [name if name in there else known.get(content(samples, name), name) for name in samples.names]


def labels_of(samples: Samples, decomposed: Sequence[Decomposed]) -> Int[np.ndarray, "n"]:
    """The samples' classes, from the stores where they have them, else from the samples; -1 where there is none."""
    known: dict[str, int] = {}
    for store in {str(one.store.folder): one.store for one in decomposed}.values():
        known |= {name: int(label) for name, label in zip(store.names, store.labels, strict=True) if label >= 0}
    targets = getattr(samples, "targets", {})
    found = []
    for name in samples.names:
        label = known.get(name, targets.get(name))
        label = samples.load(name).target if label is None and name not in targets else label
        found.append(-1 if label is None else int(label))
    return np.array(found, dtype=np.int64)


def class_concepts(
    labels: Int[np.ndarray, "n"], parts: Split, decomposed: Sequence[Decomposed], classes: ClassNames, least: int
) -> list[Concept]:
    """Every class with at least `least` images to measure, and as many to choose its channels in every store.

    Raises:
        InputError: fewer than two such classes.
    """
    counts = [_counts(labels[parts.measured])]
    counts += [_counts(one.store.labels[parts.used[str(one.folder)]]) for one in decomposed]
    found = [
        Concept((classes.name(label),), (label,))
        for label in sorted(counts[0])
        if all(count.get(label, 0) >= least for count in counts)
    ]
    if len(found) < 2:
        most = max(counts[0].values(), default=0)
        raise InputError(
            f"{len(found)} classes have {least} images to choose channels and {least} to measure (the largest has "
            f"{most} to measure): give more images, concepts of several classes, or a smaller number"
        )
    return found


@dataclass(frozen=True, repr=False)
class ControlStudy(Displayed):
    """What `control_study` prepared: `design` and `split`; `measure` runs it, `edits` are what it does."""

    model: nn.Module
    samples: Samples
    labels: Int[np.ndarray, "n"]
    design: Design
    split: Split
    prefix: str
    fill: str
    values: Mapping[str, Tensor]
    reference: Sequence[int]
    layouts: Mapping[str, Any]
    seed: int
    batch_size: int
    settings: Mapping[str, Any]

    def measure(
        self, out: str | os.PathLike[str] | None = None, progress: Callable[[Told], None] = lambda told: None
    ) -> ControlCurves:
        """All curves. `out`: a folder, where the same study goes on after a stop or a kill (see `control_curves`)."""
        return control_curves(
            self.model,
            self.samples,
            self.labels,
            self.design,
            prefix=self.prefix,
            fill=self.fill,
            values=self.values,
            reference=self.reference,
            seed=self.seed,
            batch_size=self.batch_size,
            layouts=self.layouts,
            out=out,
            settings=self.settings,
            progress=progress,
        )

    def edits(
        self, concept: int = 0, fraction: float = 0.1, action: str = "ablate", direction: int = 0, place: int = 0
    ) -> dict[str, ChannelEdit]:
        """What is done to the network at one point of the curves, for `control`, `controlled` and `save_program`."""
        found = {}
        for site in self.design.places[place]:
            order = self.design.directions[direction].orders[site][concept][0]
            channels = order[: channel_count(len(order), fraction)]
            values, layout = self.values.get(site), self.layouts.get(site)
            found[site] = ChannelEdit(channels, action, self.fill, values, layout, seed=self.seed)
        return found


def control_study(
    decomposed: Sequence[Decomposed],
    model: nn.Module,
    samples: Samples,
    *,
    concepts: Sequence[Concept] | None = None,
    classes: ClassNames | None = None,
    prefix: str = "",
    together: bool = False,
    preset: str = "paired",
    actions: Sequence[str] = ACTIONS,
    fill: str = "zero",
    fractions: Sequence[float] = FRACTIONS,
    trials: int | None = None,
    images: int | None = None,
    off_images: int | None = None,
    held_out: bool = True,
    above: float | None = None,
    random: int = 3,
    least: int = LEAST,
    seed: int = 0,
    batch_size: int = 64,
) -> ControlStudy:
    """Prepare to control classes or concepts by the channels of their modes, and by all that modes have to beat.

    Channels are chosen on other images than those that are measured, where there are some (`split`).

    Args:
        decomposed: of one or several sites; of contributions, activations, or both, with their stores.
        model: takes what `samples` give, in evaluation mode. prefix: of the sites' addresses in it ("network.").
        concepts: what is controlled; None: every class with `least` images to choose by and to measure.
        together: edit all sites at once, not one after another.
        preset: "paired": each concept once, all its images, all of other classes; "paper": 20 trials of 10 images of
            a class and 10 of one other.
        fill: what removed channels hold; means and donors are of images that are not measured, where there are some.
        trials: at most so many concepts, or the paper's number of trials. images, off_images: the most of each.
        above: sum all modes with a larger r (the paper's .2 for super-classes); None: the best mode.
        random: draws of random channels.

    Raises:
        InputError: too few images, another network than was decomposed, settings out of range.
    """
    if preset not in PRESETS:
        raise UnknownNameError("preset", preset, PRESETS)
    if not decomposed:
        raise InputError("there is no decomposition to control by")
    about: dict[str, Any] = {"networks": _networks(decomposed, model, prefix), "preset": preset, "above": above}
    about |= {"random": random, "decomposed": [dict(one.identity) for one in decomposed]}
    labels, parts = labels_of(samples, decomposed), split(decomposed, known_names(samples, decomposed), held_out, seed)
    chosen = list(concepts) if concepts else class_concepts(labels, parts, decomposed, classes or ClassNames(), least)
    directions = directions_of(decomposed, chosen, parts.used, above=above, random=random, seed=seed)
    among = np.flatnonzero(parts.measured).tolist()
    made: list[Trial] = (
        paper_trials(labels, chosen, among, trials=trials or TRIALS, images=images or IMAGES, seed=seed)
        if preset == "paper"
        else every_concept(labels, chosen, among, images=images, off_images=off_images, seed=seed)[:trials]
    )
    sites = list(directions[0].orders)
    design = Design(chosen, directions, made, [sites] if together else [[s] for s in sites], actions, fractions)
    layouts = _layouts(decomposed)
    addresses = {site: layouts.get(site) for site in sites}
    reference, values = _fill(model, samples, parts.measured, addresses, prefix, fill, seed, batch_size)
    about |= {"split": parts.how}
    made_of = (model, samples, labels, design, parts, prefix, fill, values, reference, layouts, seed, batch_size)
    return ControlStudy(*made_of, settings=about)


def _fill(
    model: nn.Module,
    samples: Samples,
    measured: np.ndarray,
    sites: Mapping[str, Any],
    prefix: str,
    fill: str,
    seed: int,
    batch_size: int,
) -> tuple[list[int], dict[str, Tensor]]:
    """Reference images, of those that are not measured where there are some, and what they give at the sites."""
    if fill not in ("mean", "resample"):
        return [], {}
    free = np.flatnonzero(~measured) if not measured.all() else np.arange(len(measured))
    most = MEANS if fill == "mean" else DONORS
    reference = sorted(np.random.default_rng(seed).permutation(free)[:most].tolist())
    addresses = {prefix + site: layout for site, layout in sites.items()}
    batches = _batches(model, samples, reference, batch_size)
    found = (site_means if fill == "mean" else site_values)(model, batches, addresses)
    return reference, {site: found[prefix + site] for site in sites}


def _batches(model: nn.Module, samples: Samples, places: Sequence[int], size: int) -> Iterator[Tensor]:
    parameter = next(model.parameters(), torch.zeros(()))
    for start in range(0, len(places), size):
        loaded = [samples.load(samples.names[place]).inputs for place in places[start : start + size]]
        yield torch.stack(loaded).to(parameter.device, parameter.dtype)


def _networks(decomposed: Sequence[Decomposed], model: nn.Module, prefix: str) -> list[str]:
    """The names of the networks that were decomposed. Raises `InputError` where the model's weights are others."""
    own, names = model_hash(model.get_submodule(prefix.removesuffix("."))), []
    for one in decomposed:
        known = one.store.identity.get("model", {})
        if known.get("parameters", own) != own:
            raise InputError(
                f"{known.get('name')!r} was decomposed in {str(one.folder)!r}; the model has other weights"
            )
        names.append(str(known.get("name", "")))
    return sorted(set(names))


def _layouts(decomposed: Sequence[Decomposed]) -> dict[str, Any]:
    """Where the stores were told the layouts of sites."""
    found: dict[str, Any] = {}
    for one in decomposed:
        given = one.store.identity.get("reduction", {}).get("layouts", {})
        found |= {site: layout for site, layout in given.items() if site == one.site}
    return found


def _counts(labels: np.ndarray) -> dict[int, int]:
    found, counts = np.unique(labels[labels >= 0], return_counts=True)
    return dict(zip(found.tolist(), counts.tolist(), strict=True))
