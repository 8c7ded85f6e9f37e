"""What results made of maps and pictures show in a notebook."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from backlight.concepts.cafe import LatentFields
from backlight.contributions.maps import ContributionMaps
from backlight.engine.attribution import Attribution
from backlight.errors import InputError
from backlight.methods.class_model import ClassImage
from backlight.methods.perturbation import Perturbation
from backlight.methods.weak_segmentation import Segmentation
from backlight.viz.report_markup import Markup, join, number, picture, pixels, signed_picture, table, tag
from backlight.viz.rich_display_tables import coverage

FEW = 4  # samples, maps
SIDE = "width:11em;max-width:100%;height:auto;border:1px solid #bbb"


def attribution(found: Attribution) -> Markup:
    """A map for each of the first samples and sites, scores, what it cost, and the table of rules."""
    cells = []
    for site, value in found.values.items():
        for place in range(min(len(value), FEW)):
            said = (site,) if len(value) == 1 else (site, f"sample {place}")
            cells.append(_map(value[place], said))
    heads = ["", *(f"sample {place}" for place in range(_count(found)))]
    given = {"score": found.scores, "completeness residual": found.residual, "share of the biases": found.bias}
    rows = [(name, *_numbers(one)) for name, one in given.items() if one is not None]
    cost = f"{found.cost.forwards} forward and {found.cost.backwards} backward passes"
    parts = [_row(cells), _more(max((len(one) for one in found.values.values()), default=0), "samples")]
    parts += [table(heads, rows)] if rows else []
    rules = tag("details", tag("summary", f"{cost}; operations and rules"), coverage(found.coverage))
    return join([*parts, rules])


def perturbation(found: Perturbation) -> Markup:
    """The first inputs, where they went, the difference, and the target's probability on the way."""
    cells, rows = [], []
    probabilities, predictions = found.probabilities, found.predictions
    for place in range(min(found.points.shape[1], FEW)):
        start, end = found.points[0, place], found.points[-1, place]
        if _is_picture(start) and _is_picture(end):
            cells += [_picture(start, f"input {place}"), _picture(end, f"perturbed {place}")]
        cells.append(_map(found.difference[place], ("difference",)))
        target = found.target[place] if isinstance(found.target, (Tensor, list, tuple)) else found.target
        before, after = (number(float(probabilities[step, place])) for step in (0, -1))
        classes = f"{int(predictions[0, place])} → {int(predictions[-1, place])}"
        rows.append((str(place), str(int(target)), before, after, classes))
    heads = ("sample", "target", "probability before", f"after {len(found.points) - 1} steps", "predicted")
    return join([_row(cells), table(heads, rows), _more(found.points.shape[1], "samples")])


def class_image(found: ClassImage) -> Markup:
    """The first images, scaled so that they can be seen, with their scores."""
    cells = []
    for place, image in enumerate(found.image[:FEW]):
        shown = (image / image.std().clamp(min=1e-12) * 0.3).clamp(-1, 1)
        shown = shown if len(shown) == 3 else shown.mean(0, keepdim=True).expand(3, -1, -1)
        said = f"score {number(float(found.scores[0, place]))} → {number(float(found.scores[-1, place]))}"
        cells.append(_picture(shown, said))
    said = f"{len(found.scores) - 1} steps; contrast is chosen for display"
    return join([_row(cells), tag("p", said), _more(len(found.image), "images")])


def segmentation(found: Segmentation) -> Markup:
    """The object's pixels, the seeds and the saliency that they come from, the box."""
    mask = np.where(found.mask[None], 0.7, -0.7).repeat(3, 0).astype(np.float32)
    cells = [
        _picture(mask, "object"),
        _map(found.seeds.astype(np.float32)[None], ("seeds",)),
        _map(found.saliency[None], ("saliency",)),
    ]
    x0, y0, x1, y1 = found.box
    source = "by the cut" if found.from_cut else "of the seeds: the cut left nothing"
    said = f"box ({x0}, {y0}) to ({x1}, {y1}); {100 * found.mask.mean():.1f} % of the pixels, {source}"
    return join([_row(cells), tag("p", said)])


def contribution_maps(found: ContributionMaps) -> Markup:
    """Maps of the first sets of channels at the first sample, with what they contribute."""
    cells = []
    for place in range(min(len(found.total), FEW)):
        told = "" if found.contributions is None else f"contributes {number(float(found.contributions[place, 0]))}"
        cells.append(_map(found.total[place, 0], (f"set {place}", told)))
    return join([_row(cells), _more(len(found.total), "sets of channels"), *_scores(found.scores)])


def latent_fields(found: LatentFields) -> Markup:
    """Where the first latents fire, and where they look."""
    cells, rows = [], []
    for place in range(min(len(found), FEW)):
        latent = int(found.latents[place])
        cells += [_map(found.activation[place], (f"z of {latent}",)), _map(found.map[place], (f"iERF of {latent}",))]
        row, column = found.positions[place].tolist()
        token = int(found.tokens[place])
        at = f"row {row}, column {column}" if row >= 0 else "all" if token < 0 else f"prefix token {token}"
        rows.append((str(latent), number(float(found.z[place])), at))
    return join([_row(cells), table(("latent", "z", "token"), rows), _more(len(found), "latents")])


def _map(values: Tensor | np.ndarray, said: Sequence[str]) -> Markup:
    """A signed map with its scale; where it cannot be drawn, its shape."""
    text = " · ".join(part for part in said if part)
    try:
        drawn, scale = signed_picture(values, text, f"{SIDE};image-rendering:pixelated")
    except InputError:
        return tag("figure", tag("figcaption", f"{text}: {list(values.shape)}"), style="margin:0")
    return _figure(drawn, f"{text} (±{number(scale, 2)})")


def _picture(image: Tensor | np.ndarray, said: str) -> Markup:
    return _figure(picture(pixels(image), said, style=SIDE), said)


def _figure(drawn: Markup, said: str) -> Markup:
    return tag("figure", drawn, tag("figcaption", said, style="font-size:.85em"), style="margin:0;max-width:11em")


def _row(cells: Iterable[Markup]) -> Markup:
    return tag("div", *cells, style="display:flex;flex-wrap:wrap;gap:.6em;margin:.2em 0")


def _is_picture(x: Tensor) -> bool:
    return x.ndim == 3 and len(x) == 3 and bool((x.abs() <= 1.001).all())


def _count(found: Attribution) -> int:
    return min(max((len(one) for one in found.values.values()), default=0), FEW)


def _numbers(values: Any) -> list[str]:
    return [number(float(one), 4) for one in torch.as_tensor(values).flatten()[:FEW]]


def _scores(scores: Tensor) -> list[Markup]:
    return [tag("p", "score " + ", ".join(_numbers(scores)))]


def _more(count: int, what: str) -> Markup:
    return tag("p", f"{FEW} of {count} {what} are shown.") if count > FEW else Markup("")
