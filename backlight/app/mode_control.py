"""What the Contributions tab computes: modes of a layer, those of a picture, and what goes without one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from backlight.app.computation import Watch
from backlight.app.correlates import LEAST, Correlates, correlation_note, imagenet_above, joined_names, places_of
from backlight.app.opened import Opened, without_paths
from backlight.app.predictions import chosen_class, class_name, network_input, outputs, prediction
from backlight.contributions.control import ACTIONS, ChannelEdit, control
from backlight.contributions.decomposed import REPORT, Decomposed, open_decomposed
from backlight.contributions.map_display import map_masks, masked
from backlight.contributions.maps import contribution_maps
from backlight.contributions.mode_sets import mode_sets
from backlight.contributions.modes import CLASSES, CONCEPTS, LABELS, class_names, describe
from backlight.contributions.recipe import baseline_inputs
from backlight.contributions.recollection import loadings_of
from backlight.errors import BacklightError, InputError, UnknownNameError
from backlight.models import LoadedModel
from backlight.shapes import Float

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DRAWS = 5  # of random channels
WORDS_APART = 3  # channels that are named in a row


@dataclass(frozen=True, eq=False, kw_only=True)
class OpenModes(Correlates):
    """A decomposition, and what its modes go with."""

    decomposed: Decomposed

    @property
    def width(self) -> int:
        """The number of the layer's channels that modes weigh."""
        columns = self.decomposed.modes.shape[1]
        return columns // 2 if self.decomposed.sign == "concat" else columns

    def channels(self, mode: int, count: int) -> tuple[int, ...]:
        """A mode's largest channels, best first. Raises `InputError` for a mode or a count that there is not."""
        return mode_sets(self.decomposed, [mode], count)[0].channels


def open_modes(one: Opened) -> OpenModes:
    """A decomposition with the classes of its modes; kept for the next who asks, until the folder is written anew."""
    with without_paths():
        return _open(one.folder, (one.folder / REPORT).stat().st_mtime_ns)


@lru_cache(maxsize=8)
def _open(folder: Path, written: int) -> OpenModes:
    decomposed = open_decomposed(folder)
    above = imagenet_above(class_names(decomposed))
    settings: dict[str, Any] = {"channels": False, "permutations": 0, "draws": 0, "hierarchy": above}
    for by in LABELS:
        for least in LEAST:
            try:
                found = describe(decomposed, by=by, min_images=least, **settings)
            except BacklightError:
                continue
            levels = (found.levels[one] for one in (CLASSES, CONCEPTS) if one in found.levels)
            names, r = joined_names((one.concepts.names, one.modes.correlation.r) for one in levels)
            note = correlation_note(by, least, found.counted)
            return OpenModes(decomposed=decomposed, names=names, r=r, note=note)
    note = "No class has two pictures in the store: modes go by their channels alone."
    return OpenModes(decomposed=decomposed, names=(), r=torch.zeros(len(decomposed.modes), 0), note=note)


@dataclass(frozen=True)
class ModeRow:
    """A mode in a list: the share of samples it is on in, classes, channels, and its loading on a picture."""

    mode: int
    active: float
    classes: str
    channels: str
    r: float
    loading: float | None = None


def listed(opened: OpenModes, search: str = "", count: int = 20) -> list[ModeRow]:
    """Modes by the largest r with a class whose name holds `search`, or with any class; of no classes, by activity.

    Raises:
        InputError: no class that modes were correlated with is called so.
    """
    score = opened.decomposed.frequency.double()
    if opened.names:
        score = opened.r[:, places_of(opened.names, search)].amax(1).double()
    score = score.where(opened.decomposed.alive, -torch.inf)
    order = score.argsort(descending=True, stable=True)[:count].tolist()
    return [_row(opened, mode, float(score[mode])) for mode in order if score[mode] > -torch.inf]


def most_active(opened: OpenModes, loaded: LoadedModel, picture: Image.Image | None, count: int = 8) -> list[ModeRow]:
    """The modes with the largest loadings on a picture, those that are on. Cost: that of its contributions.

    Raises:
        BacklightError: no picture; another network than that of the modes.
    """
    with without_paths():
        loadings = loadings_of(opened.decomposed, loaded, network_input(loaded, picture))[0].cpu()
    order = loadings.abs().argsort(descending=True, stable=True)[:count].tolist()
    return [_row(opened, mode, 0.0, float(loadings[mode])) for mode in order if loadings[mode] != 0]


def _row(opened: OpenModes, mode: int, r: float, loading: float | None = None) -> ModeRow:
    channels = ", ".join(map(str, opened.channels(mode, min(WORDS_APART, opened.width))))
    active = float(opened.decomposed.frequency[mode])
    return ModeRow(mode, active, opened.told_classes(mode), channels, r, loading)


@dataclass(frozen=True, eq=False)
class Controlled:
    """Probabilities `[K]` of a picture before an edit, after it, and after the same edit of random channels (mean)."""

    loaded: LoadedModel
    action: str
    mode: int
    channels: tuple[int, ...]
    before: Float[Tensor, "K"]
    after: Float[Tensor, "K"]
    random: Float[Tensor, "K"]

    def rows(self, count: int = 5) -> list[tuple[str, float, float, float]]:
        """(class, before, after, with random channels): the five most probable before, then those after."""
        order = dict.fromkeys([*self.before.topk(count).indices.tolist(), *self.after.topk(count).indices.tolist()])
        found = (self.before, self.after, self.random)
        return [(class_name(self.loaded, k), *(float(one[k]) for one in found)) for k in order]  # type: ignore[misc]


def controlled(
    opened: OpenModes, loaded: LoadedModel, picture: Image.Image | None, mode: int, count: int, action: str,
    seed: int = 0,
) -> Controlled:  # fmt: skip
    """Set the `count` largest channels of a mode to zero ("ablate"), or all others ("preserve"): CODEC, section 5.

    Cost: two forward passes, and five with as many channels drawn at random.

    Raises:
        InputError: features have no probabilities; a mode or a count that there is not.
        UnknownNameError: another action.
    """
    if loaded.classes.unit == "feature":
        raise InputError(f"{loaded.name!r} gives features and knows no classes: choose a classifier")
    if action not in ACTIONS:
        raise UnknownNameError("action", action, ACTIONS)
    x, site = network_input(loaded, picture), f"network.{opened.decomposed.site}"
    front = loaded.pixels()
    chosen = opened.channels(mode, count)
    generator = torch.Generator().manual_seed(seed)

    def shares(channels: Sequence[int]) -> Tensor:
        with torch.no_grad(), control(front, {site: ChannelEdit(tuple(channels), action)}):
            return front(x)[0].double().softmax(0).cpu()

    drawn = [torch.randperm(opened.width, generator=generator)[:count].tolist() for _ in range(DRAWS)]
    before = outputs(loaded, x)[0].double().softmax(0).cpu()
    random = torch.stack([shares(one) for one in drawn]).mean(0)
    return Controlled(loaded, action, mode, chosen, before, shares(chosen), random)


def maps_figure(
    opened: OpenModes, loaded: LoadedModel, picture: Image.Image | None, modes: Sequence[int], top: int, target: int,
    watch: Watch | None = None,
) -> Figure:  # fmt: skip
    """Where in the picture the contributions of modes to a class come from; see `backlight.contribution_maps`.

    Raises:
        BacklightError: no picture, no mode, another network than that of the modes.
    """
    from backlight.viz.contribution_maps import contribution_figure

    if not modes:
        raise InputError("choose at least one mode")
    watch = watch or Watch()
    x = network_input(loaded, picture)
    logits = outputs(loaded, x)[0]
    index = chosen_class(logits, target)
    about = prediction(loaded, logits, index)
    sets = mode_sets(opened.decomposed, list(modes), top)
    watch.say("contribution maps")
    found = contribution_maps(
        loaded.model,
        loaded.preprocessing.normalise((x + 1) / 2),
        opened.decomposed.site,
        [list(one.channels) for one in sets],
        index,
        baseline=baseline_inputs("grey", loaded.preprocessing),
    )
    watch.check()
    assert found.positive is not None
    assert found.contributions is not None
    titles = [
        f"{one.title.replace(': ', chr(10))}\n{float(share):+.3g} to the logit"
        for one, share in zip(sets, found.contributions[:, 0], strict=True)
    ]
    black = masked(x, map_masks(found), ground=-1.0)[:, 0].cpu()
    title = f"{about}\n{loaded.name} · {opened.decomposed.site} · InputGrad, positive part"
    drawn = dict(zip(titles, found.positive[:, 0].cpu(), strict=True))
    return contribution_figure(x[0].cpu(), drawn, dict(zip(titles, black, strict=True)), title)
