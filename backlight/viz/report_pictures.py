"""The parts of a report on pictures: predictions, maps beside each other, receptive fields, a concept graph."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from backlight.engine.targets import output_tensor
from backlight.errors import TargetError
from backlight.graph import ConceptGraph
from backlight.methods import Method
from backlight.models import LoadedModel, PixelModel
from backlight.shapes import Float
from backlight.viz.graph_page import graph_page
from backlight.viz.graph_picture import graph_figure
from backlight.viz.report_fields import Field, overlay
from backlight.viz.report_markup import (
    Markup,
    bar,
    escape,
    figure_picture,
    join,
    number,
    per_cent,
    picture,
    pixels,
    scale_bar,
    signed_picture,
    table,
    tag,
)
from backlight.viz.report_page import Section


@dataclass(frozen=True)
class Said:
    """What the network gives a class; features have no probability."""

    index: int
    name: str
    logit: float
    probability: float | None

    def __str__(self) -> str:
        return f"{self.name}, " + (number(self.logit) if self.probability is None else per_cent(self.probability))


def predictions(loaded: LoadedModel, front: PixelModel, x: Float[Tensor, "1 3 H W"], count: int = 5) -> list[Said]:
    """The largest outputs, the largest first. Raises `TargetError`: outputs that are not one row a picture."""
    logits = _logits(front, x)
    best = logits.topk(min(count, len(logits))).indices
    return [_said(loaded, logits, int(index)) for index in best]


def prediction(loaded: LoadedModel, front: PixelModel, x: Float[Tensor, "1 3 H W"], index: int) -> Said:
    """What the network gives a class. Raises `TargetError`: there is no such output."""
    logits = _logits(front, x)
    if not 0 <= index < len(logits):
        raise TargetError(f"the class index {index} is out of range: the network has {len(logits)} outputs")
    return _said(loaded, logits, index)


def _logits(front: PixelModel, x: Tensor) -> Tensor:
    with torch.no_grad():
        outputs = output_tensor(front(x))
    if outputs.ndim != 2:
        raise TargetError(f"expected outputs [N, K] of a classifier, got {list(outputs.shape)}")
    return outputs[0]


def _said(loaded: LoadedModel, logits: Tensor, index: int) -> Said:
    share = None if loaded.classes.unit == "feature" else float(logits.double().softmax(0)[index])
    return Said(index, loaded.classes.name(index), float(logits[index]), share)


def lead(loaded: LoadedModel, methods: Mapping[str, Method], target: int | None) -> Markup:
    """What the page is about, in a sentence or two."""
    what = "the predicted class" if target is None else f"the class {loaded.classes.name(target)!r}"
    outputs = "features" if loaded.classes.unit == "feature" else f"{len(loaded.classes) or 'unnamed'} classes"
    said = f"{loaded.name} ({loaded.source}; {outputs}). Maps explain the evidence for {what}"
    told = f"{said}: red speaks for it, blue against it, and white is zero; every map has its own scale."
    return join([tag("p", told), tag("p", f"Methods: {', '.join(methods)}.", class_="muted")])


def overview(name: str, x: Float[Tensor, "1 3 H W"], shown: Sequence[Said], target: Said) -> Markup:
    """The picture as the network sees it, and its predictions."""
    seen = tag(
        "figure", picture(pixels(x[0]), f"{name}, as the network sees it"), tag("figcaption", "as the network sees it")
    )
    return tag("div", seen, tag("div", chances(shown, target)), class_="grid overview")


def chances(shown: Sequence[Said], target: Said | None = None) -> Markup:
    """Classes with bars and probabilities; features with their values, the longest bar the largest."""
    longest = max((abs(one.logit) for one in shown), default=0.0) or 1.0
    rows = []
    for one in shown:
        share = abs(one.logit) / longest if one.probability is None else one.probability
        label = number(one.logit) if one.probability is None else per_cent(one.probability)
        name = tag("b", one.name) if one == target else escape(one.name)
        rows.append((name, bar(share, f"{one.name}: {label}", one == target), label))
    kind = "output" if shown and shown[0].probability is None else "probability"
    caption = "Predictions" if target is None else f"Predictions; explained: {target.name}"
    return table(("class", "", kind), rows, caption=caption, class_="chances")


def maps_grid(maps: Mapping[str, tuple[Tensor, str]], target: Said) -> Markup:
    """Signed maps beside each other, each with its scale and what it cost."""
    cells = []
    for name, (attribution, said) in maps.items():
        drawn, scale = signed_picture(attribution, f"{name} for {target.name}: a signed map")
        cells.append(tag("figure", tag("b", name), drawn, scale_bar(scale), tag("figcaption", said)))
    return join([tag("h3", f"Evidence for {target.name}"), tag("div", *cells, class_="grid")]) if cells else Markup("")


def fields_grid(image: Float[np.ndarray, "3 H W"], fields: Sequence[Field]) -> Markup:
    """A row a layer: what the places with the most relevance are made of."""
    parts: list[Markup] = [
        tag("h3", "What hidden places see"),
        tag(
            "p",
            "Of each layer, the places that hold the most evidence, and the parts of the picture that their feature "
            "vectors are made of (iERF): the rest is pale.",
            class_="muted",
        ),
    ]
    blocks = []
    for layer, group in itertools.groupby(fields, key=lambda one: one.layer):
        own = list(group)
        h, w = own[0].grid
        cells = []
        for one in own:
            where = "class token" if one.place is None else f"row {one.place[0]}, column {one.place[1]}"
            share = "" if one.share is None else f": {per_cent(one.share)} of relevance"
            shown = overlay(image, one.values)
            if one.place is not None:
                shown = _framed(shown, one.place, one.grid)
            drawn = picture(pixels(shown), f"what {where} of {layer} sees", "seen")
            cells.append(tag("figure", drawn, tag("figcaption", where + share)))
        title = tag("p", tag("b", layer), f" ({h} × {w})")
        blocks.append(tag("div", title, tag("div", *cells, class_="grid three"), class_="layer"))
    return join([*parts, tag("div", *blocks, class_="layers")])


def _framed(image: Float[np.ndarray, "3 H W"], place: tuple[int, int], grid: tuple[int, int]) -> np.ndarray:
    """The place's square, in an orange that no map has."""
    height, width = image.shape[1:]
    top, bottom = (round(edge * height / grid[0]) for edge in (place[0], place[0] + 1))
    left, right = (round(edge * width / grid[1]) for edge in (place[1], place[1] + 1))
    drawn = image.copy()
    colour = np.array([0.8, 0.25, -1.0], dtype=image.dtype)[:, None, None]
    line = max(round(height / 112), 1)
    box = drawn[:, max(top - line, 0) : bottom + line, max(left - line, 0) : right + line]
    inside = image[:, top:bottom, left:right].copy()
    box[:] = colour
    drawn[:, top:bottom, left:right] = inside
    return drawn


def graph_section(graph: ConceptGraph, name: str) -> Section:
    """A concept graph: its page in a frame, which runs its own scripts and no others, and a picture of it for paper."""
    document = graph_page(graph)
    inline = [
        part for kind in ("style", "script") for part in re.findall(rf"<{kind}>(.*?)</{kind}>", document, re.DOTALL)
    ]
    frame = tag("iframe", srcdoc=document, sandbox="allow-scripts", title=f"Concept graph of {name}", loading="lazy")
    words = tag("details", tag("summary", "In words"), tag("pre", graph.summary()))
    drawn = figure_picture(graph_figure(graph), f"Concept graph of {name}")
    about = str(graph.about.get("model") or "")
    said = tag("p", f"How concepts make those of the next layer, and these the decision ({about}).", class_="muted")
    body = join([said, frame, tag("div", drawn, class_="paper-only"), words])
    return Section(f"Concept graph of {name}", body, tuple(inline), new_page=True)
