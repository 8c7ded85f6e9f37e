"""A report on pictures: what a network says of each, where that comes from, and what its layers make of it."""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from backlight.data import image_paths
from backlight.data.images import Picture
from backlight.engine.sites import FEATURES
from backlight.errors import BacklightError, InputError
from backlight.evaluation.identity import model_hash, plain, tensor_hash, versions
from backlight.evaluation.journal import write_text
from backlight.graph import ConceptGraph
from backlight.graph.layers import Given, as_layer
from backlight.methods import Method, method
from backlight.models import LoadedModel, PixelModel
from backlight.viz import styles
from backlight.viz.report_concepts import concept_cards
from backlight.viz.report_fields import INSIDE, fields_of
from backlight.viz.report_figures import maps_figure
from backlight.viz.report_markup import Markup, join, number, tag
from backlight.viz.report_page import Report, Section, failures, page, settings_section
from backlight.viz.report_pictures import (
    Said,
    fields_grid,
    graph_section,
    lead,
    maps_grid,
    overview,
    prediction,
    predictions,
)

METHODS = ("SoftPullback", "SRD", "AttnLRP", "GradCAM")
Progress = Callable[[str, int, int], None]  # a picture's name, pictures done, pictures in all
FAILURES = (BacklightError, OSError, RuntimeError)  # a picture's own, the next may do (RuntimeError: no memory)


@dataclass(frozen=True)
class Asked:
    """What is done with every picture; see `image_report`."""

    loaded: LoadedModel
    methods: Mapping[str, Method]
    target: int | None
    layers: Sequence[str] | None
    places: int
    dictionaries: Mapping[str, Given]
    top: int
    batch_size: int | None
    figures: Path | None
    kinds: Sequence[str]
    style: str

    def identity(self) -> dict[str, Any]:
        """What decides a picture's part of the page."""
        loaded = self.loaded
        return {
            "model": {"name": loaded.name, "weights": loaded.source, "parameters": model_hash(loaded.model)},
            "preprocessing": plain(vars(loaded.preprocessing)),
            "target": "the prediction" if self.target is None else str(loaded.classes.name(self.target)),
            "methods": {
                name: {"class": type(one).__name__, **{key: plain(getattr(one, key)) for key in one.settings()}}
                for name, one in self.methods.items()
            },
            "receptive fields": {
                "layers": "chosen" if self.layers is None else list(self.layers),
                "places": self.places,
            },
            "concepts": {site: _about(one) for site, one in self.dictionaries.items()},
            "concepts a layer": self.top,
            "versions": versions(),
        }


def image_report(
    loaded: LoadedModel,
    images: Sequence[Picture] | Mapping[str, Picture],
    methods: Sequence[str] | Mapping[str, Method] = METHODS,
    *,
    target: int | None = None,
    layers: Sequence[str] | None = None,
    places: int = 3,
    dictionaries: Mapping[str, Given] | None = None,
    graphs: Sequence[ConceptGraph] = (),
    top: int = 6,
    internal_batch_size: int | None = None,
    figures: str | os.PathLike[str] | None = None,
    kinds: Sequence[str] = ("png", "svg"),
    style: str = "double",
    parts: str | os.PathLike[str] | None = None,
    title: str = "",
    progress: Progress | None = None,
) -> Report:
    """Pictures by a model: predictions, maps side by side, receptive fields, concepts and graphs, on one page.

    A picture that cannot be read, or a method that does not fit the network, is listed with its reason.

    Args:
        images: paths of files or folders, PIL images or arrays; by name, or under the files' names.
        methods: names, or methods on `loaded.pixels()` by the titles of their maps.
        target: the class that is explained; None: the predicted one of each picture.
        layers: whose receptive fields are drawn; None: chosen by depth; empty: none. places: of each layer.
        dictionaries: concepts by site, as `build_graph` takes them; `top` of each layer are shown.
        graphs: those of pictures of this page stand with them, others by themselves.
        figures: a folder for the maps as figures of a paper, in `kinds` and a `style` of `backlight.viz.styles`.
        parts: a folder where the parts of pictures are kept: the same call goes on where it was stopped.

    Raises:
        InputError: no pictures. UnknownNameError: a method or style. TargetError: no such class.
        MissingExtraError: matplotlib is not installed.
    """
    front = loaded.pixels()
    named = methods if isinstance(methods, Mapping) else {name: method(name)(front) for name in methods}
    styles.style(style)
    known, failed = _pictures(images)
    if not known and not failed:
        raise InputError("a report needs at least one picture")
    folder = None if figures is None else Path(figures)
    asked = Asked(
        loaded, named, target, layers, places, dict(dictionaries or {}), top, internal_batch_size, folder,
        tuple(kinds), style,
    )  # fmt: skip
    own = [one for one in graphs if one.about.get("model") in (None, loaded.name)]
    for one in graphs:
        if one not in own:
            said = f"it is of {one.about['model']}, not of {loaded.name}"
            failed[f"concept graph of {one.about.get('image') or 'a picture'}"] = said
    work = _Pages(asked, front, own, None if parts is None else Path(parts))
    sections = []
    for done, (name, image) in enumerate(known.items()):
        if progress is not None:
            progress(name, done, len(known))
        try:
            sections.append(work.section(name, image))
        except FAILURES as error:
            failed[name] = " ".join(str(error).split())
    failed |= work.failed
    sections += [graph_section(one, str(one.about.get("image") or "a picture")) for one in work.graphs]
    heading = title or f"{loaded.name}: " + (next(iter(known)) if len(known) == 1 else f"{len(known)} pictures")
    top_lines = join([lead(loaded, named, target), failures(failed)])
    settings = {**asked.identity(), "seeds": _seeds(named), "made": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())}
    html = page(heading, top_lines, [*sections, settings_section(settings)])
    return Report(heading, html, failed, tuple(work.written))


def _pictures(images: Sequence[Picture] | Mapping[str, Picture]) -> tuple[dict[str, Picture], dict[str, str]]:
    """The pictures by distinct names; and what names none, with the reason."""
    if isinstance(images, Mapping):
        return dict(images), {}
    found: dict[str, Picture] = {}
    failed: dict[str, str] = {}
    for number_, one in enumerate(images, 1):
        if not isinstance(one, (str, os.PathLike)):
            found[f"picture {number_}"] = one
            continue
        try:
            for path in image_paths(one):
                found[path.name if path.name not in found else str(path)] = path
        except BacklightError as error:
            failed[str(one)] = " ".join(str(error).split())
    return found, failed


@dataclass
class _Pages:
    """The parts of a page, one a picture."""

    asked: Asked
    front: PixelModel
    graphs: list[ConceptGraph]
    parts: Path | None
    failed: dict[str, str] = field(default_factory=dict)
    written: list[Path] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._identity = json.dumps(self.asked.identity(), sort_keys=True, default=str)

    def section(self, name: str, image: Picture) -> Section:
        """A picture's part of the page; what was kept of an earlier run is taken."""
        loaded = self.asked.loaded
        device = next(loaded.model.parameters(), torch.zeros(())).device
        x = (2 * loaded.preprocessing.image(image) - 1)[None].to(device)
        graphs = [one for one in self.graphs if one.about.get("image") == name]
        kept = self._kept(name, x)
        section = None if kept is None else self._read(*kept)
        if section is None:
            section = self._made(name, x)
            if kept is not None:
                self._keep(*kept, section)
        for graph in graphs:
            self.graphs.remove(graph)
            own = graph_section(graph, name)
            body = join([section.body, tag("h3", "Concept graph"), own.body])
            section = replace(section, body=body, inline=(*section.inline, *own.inline))
        return section

    def _made(self, name: str, x: Tensor) -> Section:
        said = predictions(self.asked.loaded, self.front, x)
        index = said[0].index if self.asked.target is None else self.asked.target
        target = prediction(self.asked.loaded, self.front, x, index)
        found, wrong = self._maps(x, index)
        if self.asked.figures is not None and found:
            self._figures(name, x, {key: one for key, (one, _) in found.items()}, target)
        shown = said if target in said else [*said[:-1], target]
        parts = [overview(name, x, shown, target), maps_grid(found, target), self._fields(x, index, wrong)]
        for site, one in self.asked.dictionaries.items():
            try:
                parts.append(concept_cards(self.asked.loaded, self._normalised(x), site, one, index, self.asked.top))
            except FAILURES as error:
                wrong[f"concepts of {site}"] = " ".join(str(error).split())
        return Section(name, join([*parts, failures(wrong)]), new_page=True)

    def _normalised(self, x: Tensor) -> Tensor:
        return ((x + 1) / 2 - self.front.mean.to(x)) / self.front.std.to(x)

    def _maps(self, x: Tensor, index: int) -> tuple[dict[str, tuple[Tensor, str]], dict[str, str]]:
        """Each method's map with what it says of itself; and why others have none."""
        found: dict[str, tuple[Tensor, str]] = {}
        wrong: dict[str, str] = {}
        for name, one in self.asked.methods.items():
            start = time.perf_counter()
            layer = getattr(one, "layer", None)
            placed = one if layer in (None, FEATURES) or str(layer).startswith(INSIDE) else _at(one, INSIDE + layer)
            try:
                result = placed.explain(x, index, internal_batch_size=self.asked.batch_size)
            except FAILURES as error:
                wrong[name] = " ".join(str(error).split())
                continue
            cost, seconds = result.cost, time.perf_counter() - start
            said = f"{cost.forwards} forward, {cost.backwards} backward passes, {seconds:.1f} s"
            if result.residual is not None:
                said += f"; completeness residual {number(float(result.residual[0]), 2)}"
            found[name] = (result.value[0].detach().float().cpu(), said)
        return found, wrong

    def _fields(self, x: Tensor, index: int, wrong: dict[str, str]) -> Markup:
        asked = self.asked
        if asked.layers is not None and not asked.layers:
            return Markup("")
        try:
            found = fields_of(self.front, x, index, asked.layers, asked.places)
        except FAILURES as error:
            wrong["receptive fields"] = " ".join(str(error).split())
            return Markup("")
        return fields_grid(x[0].cpu().numpy(), found)

    def _figures(self, name: str, x: Tensor, maps: Mapping[str, Tensor], target: Said) -> None:
        folder = self.asked.figures
        assert folder is not None
        folder.mkdir(parents=True, exist_ok=True)
        figure = maps_figure(x[0].cpu(), maps, self.asked.style, str(target))
        self.written += styles.save(figure, folder / f"{_slug(name)}.maps", None, self.asked.kinds)

    def _kept(self, name: str, x: Tensor) -> tuple[Path, str] | None:
        if self.parts is None or self.asked.figures is not None:
            return None  # figures are files of their own: they are drawn again
        key = hashlib.sha256(f"{self._identity} {name} {tensor_hash(x)}".encode()).hexdigest()
        return self.parts / f"{key[:32]}.json", key

    def _read(self, path: Path, key: str) -> Section | None:
        try:
            held = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        if held.get("key") != key:
            return None
        return Section(held["title"], Markup(held["body"]), new_page=True)

    def _keep(self, path: Path, key: str, section: Section) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps({"key": key, "title": section.title, "body": section.body}))


def _about(given: Given) -> Any:
    layer = as_layer(given)
    return {**{key: plain(value) for key, value in layer.about.items()}, "atoms": tensor_hash(layer.atoms)[:16]}


def _at(one: Method, layer: str) -> Method:
    return replace(one, layer=layer)  # type: ignore[call-arg]


def _seeds(methods: Mapping[str, Method]) -> dict[str, Any]:
    return {name: one.seed for name, one in methods.items() if hasattr(one, "seed")} or {"": "nothing is drawn"}


def _slug(name: str) -> str:
    return re.sub(r"[^\w.+-]+", "-", name).strip("-.")[:120] or "picture"
