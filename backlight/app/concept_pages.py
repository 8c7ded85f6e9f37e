"""What the Concepts tab computes: the concepts of a dictionary, one's page, and where one looks in a picture."""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from PIL import Image

from backlight.app.computation import Watch
from backlight.app.correlates import LEAST, Correlates, correlation_note, imagenet_above, joined_names, places_of
from backlight.app.interruption import stoppable
from backlight.app.opened import Opened, without_paths
from backlight.app.predictions import network_input
from backlight.concepts.attributors import attributor
from backlight.concepts.cafe import Cafe, LatentFields
from backlight.concepts.concepts import Concepts
from backlight.concepts.exemplars import exemplars
from backlight.concepts.localisation import RADIUS, measure
from backlight.concepts.naming import name_by_class
from backlight.contributions.decomposed import REPORT
from backlight.errors import BacklightError, InputError, SiteError
from backlight.methods.token_layout import find_sites
from backlight.models import LoadedModel

if TYPE_CHECKING:
    from matplotlib.figure import Figure

AUTO = "by the network"
MASS = 0.9  # of a field, in crops
TOKENS = {
    "where it is largest": "argmax",
    "the patch where it is largest": "patch",
    "the class token": "class",
    "all tokens together": "sum",
}


@dataclass(frozen=True, eq=False, kw_only=True)
class OpenConcepts(Correlates):
    """A dictionary with its bank, and what its concepts go with."""

    concepts: Concepts


def open_concepts(one: Opened) -> OpenConcepts:
    """A dictionary with the classes of its concepts; kept for the next who asks, until the folder is written anew."""
    with without_paths():
        return _open(one.folder, (one.folder / REPORT).stat().st_mtime_ns)


@lru_cache(maxsize=8)
def _open(folder: Path, written: int) -> OpenConcepts:
    concepts = Concepts.open(folder)
    above = imagenet_above(concepts.bank.classes)
    for by in ("label", "prediction"):
        for least in LEAST:
            try:
                levels = [name_by_class(concepts, by=by, min_images=least)]
            except BacklightError:
                continue
            if above is not None:
                with suppress(BacklightError):
                    levels.append(name_by_class(concepts, hierarchy=above, by=by, min_images=max(least, LEAST[1])))
            names, r = joined_names((one.masks.names, one.r) for one in levels)
            note = correlation_note(by, least, len(concepts.bank))
            return OpenConcepts(concepts=concepts, names=names, r=r, note=note)
    note = "No class has two pictures in the bank: concepts have no names."
    return OpenConcepts(concepts=concepts, names=(), r=torch.zeros(len(concepts), 0), note=note)


@dataclass(frozen=True)
class ConceptRow:
    """A concept in a list; `explained`: the R2 lost without it, NaN where unknown; `z`: on a picture, where asked."""

    concept: int
    frequency: float
    explained: float
    classes: str
    z: float | None = None


def listed(opened: OpenConcepts, search: str = "", count: int = 20) -> list[ConceptRow]:
    """Concepts by the largest r with a class whose name holds `search`; of no search, by the R2 lost without them.

    Raises:
        InputError: no class that concepts were correlated with is called so.
    """
    statistics = opened.concepts.statistics
    score = statistics["explained"].double().nan_to_num(nan=-torch.inf)
    if search.strip():
        score = opened.r[:, places_of(opened.names, search)].amax(1).double()
    score = score.where(statistics["alive"], -torch.inf)
    order = score.argsort(descending=True, stable=True)[:count].tolist()
    return [_row(opened, k) for k in order if bool(statistics["alive"][k])]


def _row(opened: OpenConcepts, k: int, z: float | None = None) -> ConceptRow:
    statistics = opened.concepts.statistics
    return ConceptRow(
        k, float(statistics["frequency"][k]), float(statistics["explained"][k]), opened.told_classes(k), z
    )


def page_figure(
    opened: OpenConcepts, k: int, count: int = 4, diverse: bool = False, watch: Watch | None = None
) -> Figure:
    """The concept's page: the pictures on which it is strongest, what each is made of, and crops.

    Fields are computed once, and kept with the bank. Raises `InputError` where nothing tells where the pictures are.
    """
    from backlight.viz.concept_sheet import ConceptPanel, concept_figure

    watch = watch or Watch()
    concepts, names = opened.concepts, opened.concepts.bank.classes
    watch.say("looking for its pictures")
    with without_paths(), stoppable(watch):
        found = exemplars(concepts, k, count, diverse=diverse)
        if not found:
            raise InputError(f"concept {k} is on in no picture of the bank")
        panels = []
        for number, one in enumerate(found, start=1):
            watch.say(f"picture {number} of {len(found)}")
            height, width = one.picture.shape[1:]
            rows, columns = concepts.bank.grid(one.site)
            row, column = one.position
            point = None if row < 0 else ((column + 0.5) * width / columns, (row + 0.5) * height / rows)
            label = names.name(one.label) if one.label >= 0 else one.name
            lines = (label, f"{one.strength:.3g} at " + ("the class token" if row < 0 else f"({row}, {column})"))
            panels.append(ConceptPanel(one.picture, one.ierf, one.box(MASS), one.crop(MASS, masked=True), point, lines))
    share = 100 * float(concepts.statistics["frequency"][k])
    title = f"{concepts.model_name} · {concepts.site} · concept {k}, on in {share:.2g} % of vectors"
    return concept_figure(panels, title)


def fitting(how: str, loaded: LoadedModel) -> str:
    """The attributor's name; AUTO is AttnLRP where the network has tokens, else SRD."""
    if how != AUTO:
        return how
    try:
        find_sites(loaded.model)
    except SiteError:
        return "SRD"
    return "AttnLRP"


def cafe_of(opened: OpenConcepts, loaded: LoadedModel, how: str, token: str, watch: Watch | None = None) -> Cafe:
    """CAFE of the dictionary in the user's network. Raises `InputError` for a dictionary without an encoder.

    `how`: a name of `ATTRIBUTORS`, or AUTO; `token`: of `TOKENS`, or a number.
    """
    chosen = TOKENS.get(token, token)
    place = int(chosen) if chosen.lstrip("-").isdecimal() else chosen
    front = (watch or Watch()).front(loaded)
    return Cafe(
        front,
        opened.concepts.dictionary,
        f"network.{opened.concepts.site}",
        attributor=attributor(fitting(how, loaded)),
        token=place,
    )


def strongest(
    opened: OpenConcepts, loaded: LoadedModel, picture: Image.Image | None, token: str, count: int = 8
) -> list[ConceptRow]:
    """The concepts that are largest on a picture at the token that would be explained."""
    x = network_input(loaded, picture)
    cafe = cafe_of(opened, loaded, "Gradient", token)
    best = cafe.strongest(x, count)
    if not len(best):
        return []
    fields = cafe.explain(x, best)
    return [_row(opened, int(k), float(z)) for k, z in zip(best, fields.z, strict=True)]


@dataclass(frozen=True, eq=False)
class Looked:
    """Where a concept fires in a picture and where it looks."""

    fields: LatentFields
    figure: Figure
    sentence: str


def look(
    opened: OpenConcepts, loaded: LoadedModel, picture: Image.Image | None, k: int, how: str, token: str,
    watch: Watch | None = None,
) -> Looked:  # fmt: skip
    """CAFE of one concept on the user's picture: its page, and whether it looks where it fires.

    Raises:
        InputError: it is off in the picture; a dictionary without an encoder. TargetError: there is no such concept.
    """
    from backlight.viz.latents import latent_page, shown

    watch = watch or Watch()
    x = network_input(loaded, picture)
    watch.say(f"concept {k}")
    cafe = cafe_of(opened, loaded, how, token, watch)
    found = cafe.explain(x, k)
    if not bool((found.z > 0).any()):
        near = ", ".join(map(str, cafe.strongest(x, 4).tolist())) or "none"
        raise InputError(f"concept {k} is off in this picture at that token; those that are on: {near}")
    title = f"{loaded.name} · {opened.concepts.site} · concept {k}: where it fires, and where it looks"
    return Looked(
        found, latent_page(shown(found, x.cpu()), None, title, type(cafe.attributor).__name__), localised(found, k)
    )


def localised(found: LatentFields, k: int) -> str:
    """Whether a concept looks where it fires, in sentences; see `backlight.concepts.localisation`."""
    numbers = measure(found)
    outside, chance = float(numbers.outside[0]), float(numbers.outside_by_chance[0])
    z = float(found.z[0])
    field = f"its iERF covers {float(numbers.field_patches[0]):.3g} patches' worth"
    if math.isnan(outside) or not chance:
        where = "summed over all tokens" if int(found.tokens[0]) < 0 else "at the class token or a register"
        return f"Concept {k} is {z:.3g} {where}, which lies nowhere in the picture: {field}."
    row, column = found.positions[0].tolist()
    part = outside / chance
    verdict = (
        "it looks where it fires" if part < 0.5 else "it looks elsewhere too" if part < 0.9 else "it looks anywhere"
    )
    return (
        f"Concept {k} is {z:.3g} at patch ({row}, {column}). {100 * outside:.0f} % of its iERF lies farther than "
        f"{RADIUS:g} patches from there, where a constant map has {100 * chance:.0f} %: {verdict}; {field}."
    )
