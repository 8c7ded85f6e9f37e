"""The figure of a result: what `show` draws."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from backlight.errors import InputError
from backlight.viz.figures import (
    EDGE,
    GAP,
    HEAD,
    SIDE,
    TARGET,
    Chance,
    Sheet,
    counterfactual_figure,
    draw_map,
    explanation_figure,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

AGAINST = "#2166AC"
CHANNELS = 12
Drawn = Callable[[Any, Any, Any, str, dict[str, Any]], "Figure"]


def figure_of(result: Any, image: Any, loaded: Any, title: str, settings: dict[str, Any]) -> Figure:
    """See `backlight.viz.show`.

    Raises:
        InputError: no figure is known of such a result.
    """
    if isinstance(result, (Tensor, np.ndarray)):
        return _maps({"map": result}, image, loaded, title, settings)
    if isinstance(result, Mapping):
        return _maps(dict(result), image, loaded, title, settings)
    for kind in type(result).__mro__:
        if kind.__name__ in _FIGURES:
            return _FIGURES[kind.__name__](result, image, loaded, title, settings)
    raise InputError(f"there is no figure of {type(result).__name__}; there is one of {', '.join(_FIGURES)}")


def shown_picture(image: Any, loaded: Any, sample: int = 0) -> Tensor:
    """`[3, H, W]` in [-1, 1]: what the network sees of a picture.

    Raises:
        InputError: a picture without the network that crops it; a tensor that is no picture.
    """
    if not isinstance(image, Tensor):
        if loaded is None:
            raise InputError("give loaded=, the network, beside a picture: maps lie on what it sees of it")
        return 2 * loaded.preprocessing.image(image) - 1
    one = image[sample] if image.ndim == 4 else image
    one = one.detach().cpu().float()
    if one.ndim != 3 or len(one) != 3:
        raise InputError(f"a picture is [3, H, W], not {list(image.shape)}")
    if loaded is not None:
        return (2 * loaded.preprocessing.denormalise(one) - 1).clamp(-1, 1)
    if float(one.abs().max()) > 1.001:
        raise InputError("a picture without loaded= lies in [-1, 1]; with it, give the network's input")
    return one


def _maps(maps: dict[str, Any], image: Any, loaded: Any, title: str, settings: dict[str, Any]) -> Figure:
    """Maps beside their picture, or alone."""
    sample = settings.pop("sample", 0)
    chances = settings.pop("predictions", ())
    _nothing_left(settings)
    drawn = {name: _one(value, sample) for name, value in maps.items()}
    if image is None:
        return _bare(drawn, title)
    seen = shown_picture(image, loaded, sample)
    return explanation_figure(seen, drawn, chances or _chances(seen, loaded), title)


def _one(value: Any, sample: int) -> Tensor | np.ndarray:
    if hasattr(value, "values") and hasattr(value, "coverage"):  # an Attribution
        value = value.value
    return value[sample] if value.ndim == 4 else value


def _chances(seen: Tensor, loaded: Any) -> list[Chance]:
    """The network's five largest outputs at the picture, where the network is given and has classes."""
    if loaded is None or loaded.classes.unit == "feature":
        return []
    device = next(loaded.model.parameters(), torch.zeros(())).device
    with torch.no_grad():
        outputs = loaded.pixels()(seen[None].to(device))
    if not isinstance(outputs, Tensor) or outputs.ndim != 2:
        return []
    shares = outputs[0].double().softmax(0)
    best = shares.topk(min(5, len(shares)))
    return [Chance(loaded.classes.name(int(i)), float(p)) for p, i in zip(best.values, best.indices, strict=True)]


def _bare(maps: Mapping[str, Any], title: str) -> Figure:
    sheet = Sheet(EDGE + len(maps) * (SIDE + GAP), HEAD + SIDE + 0.4)
    for place, (name, attribution) in enumerate(maps.items()):
        axes = draw_map(sheet, EDGE + place * (SIDE + GAP), HEAD, SIDE, attribution, (0.0, 1.0, 1.0, 0.0))
        axes.set_title(name, fontsize=10.5, parse_math=False)
    sheet.title(title)
    return sheet.figure


def _attribution(found: Any, image: Any, loaded: Any, title: str, settings: dict[str, Any]) -> Figure:
    return _maps(dict(found.values), image, loaded, title, settings)


def _perturbation(found: Any, image: Any, loaded: Any, title: str, settings: dict[str, Any]) -> Figure:
    sample = settings.pop("sample", 0)
    _nothing_left(settings)
    start, end = (shown_picture(found.points[place, sample], loaded) for place in (0, -1))
    target = found.target[sample] if isinstance(found.target, (Tensor, list, tuple)) else found.target
    first = int(found.predictions[0, sample])
    curves = {_name(loaded, int(target)): found.probabilities[:, sample].tolist()}
    if first != int(target):
        curves[_name(loaded, first)] = found.probability(first)[:, sample].tolist()
    return counterfactual_figure(start, end, curves, title)


def _class_image(found: Any, image: Any, loaded: Any, title: str, settings: dict[str, Any]) -> Figure:
    from backlight.viz.overlays import class_figure

    sample, contrast = settings.pop("sample", 0), settings.pop("contrast", 0.15)
    _nothing_left(settings)
    if loaded is None:
        raise InputError("give loaded=, the network: a class model is an image in its input's units")
    shown = 2 * found.picture(loaded.preprocessing, contrast)[sample] - 1
    return class_figure(shown.cpu().float(), found.scores[:, sample].tolist(), title)


def _segmentation(found: Any, image: Any, loaded: Any, title: str, settings: dict[str, Any]) -> Figure:
    from backlight.viz.overlays import segmentation_figure

    _nothing_left(settings)
    if image is None:
        raise InputError("give the picture that was segmented, as the network saw it")
    return segmentation_figure(shown_picture(image, loaded), found.saliency, found.seeds, found.mask, found.box, title)


def _contributions(found: Any, image: Any, loaded: Any, title: str, settings: dict[str, Any]) -> Figure:
    """The strongest channels of each site, at a sample."""
    sample = settings.pop("sample", 0)
    _nothing_left(settings)
    sheet = Sheet(0.6 + len(found.values) * 3.0, 3.2)
    for place, (site, value) in enumerate(found.values.items()):
        one = value[sample].double()
        channels = one.flatten(1).sum(1) if one.ndim > 1 else one
        best = channels.abs().argsort(descending=True)[:CHANNELS]
        axes = sheet.axes(0.6 + place * 3.0, 0.75, 2.1, 2.0)
        sizes = channels[best].tolist()
        axes.barh(range(len(best)), sizes, color=[TARGET if size > 0 else AGAINST for size in sizes])
        axes.set_yticks(range(len(best)), [str(int(one)) for one in best], fontsize=7.5)
        axes.set_ylim(len(best) - 0.4, -0.6)
        axes.axvline(0, color="#444444", linewidth=0.6)
        axes.set_xlabel("contribution", fontsize=8.5)
        axes.tick_params(labelsize=7.5)
        axes.set_title(f"{site}, strongest channels", fontsize=9, parse_math=False)
        axes.spines[["top", "right"]].set_visible(False)
    sheet.title(title)
    return sheet.figure


def _contribution_maps(found: Any, image: Any, loaded: Any, title: str, settings: dict[str, Any]) -> Figure:
    sample = settings.get("sample", 0)
    maps = {f"set {place}": found.total[place, sample] for place in range(min(len(found.total), 6))}
    return _maps(maps, image, loaded, title, settings)


def _latent_fields(found: Any, image: Any, loaded: Any, title: str, settings: dict[str, Any]) -> Figure:
    from backlight.viz.latents import latent_page, shown

    _nothing_left(settings)
    if image is None:
        raise InputError("give the picture, or the inputs [N, 3, H, W], that the latents were explained on")
    several = isinstance(image, Tensor) and image.ndim == 4
    count = len(image) if several else 1
    pictures = torch.stack([shown_picture(image, loaded, number) for number in range(count)])
    return latent_page(shown(found, pictures), None, title)


def _concept_graph(found: Any, image: Any, loaded: Any, title: str, settings: dict[str, Any]) -> Figure:
    from backlight.viz.graph_picture import graph_figure

    return graph_figure(found, title=title, **settings)


def _diagnosis(found: Any, image: Any, loaded: Any, title: str, settings: dict[str, Any]) -> Figure:
    return _concept_graph(found.graph, image, loaded, title, settings)


def _evaluation(found: Any, image: Any, loaded: Any, title: str, settings: dict[str, Any]) -> Figure:
    from backlight.evaluation.figures import metric_figure

    metric = settings.pop("metric", found.metrics[0] if found.metrics else "")
    _nothing_left(settings)
    return metric_figure(found, metric)


def _control_curves(found: Any, image: Any, loaded: Any, title: str, settings: dict[str, Any]) -> Figure:
    from backlight.contributions.control_figures import curve_figure

    return curve_figure(found, **settings)


def _explained_text(found: Any, image: Any, loaded: Any, title: str, settings: dict[str, Any]) -> Figure:
    from backlight.viz.text_figures import relevance_figure

    _nothing_left(settings)
    return relevance_figure(found, title)


def _text_contributions(found: Any, image: Any, loaded: Any, title: str, settings: dict[str, Any]) -> Figure:
    from backlight.viz.text_figures import contributions_figure

    _nothing_left(settings)
    return contributions_figure(found, title)


def _name(loaded: Any, index: int) -> str:
    return f"class {index}" if loaded is None else loaded.classes.name(index)


def _nothing_left(settings: Mapping[str, Any]) -> None:
    if settings:
        raise InputError(f"this figure has no setting {', '.join(settings)}")


_FIGURES: dict[str, Drawn] = {
    "Attribution": _attribution,
    "Perturbation": _perturbation,
    "ClassImage": _class_image,
    "Segmentation": _segmentation,
    "Contributions": _contributions,
    "ContributionMaps": _contribution_maps,
    "LatentFields": _latent_fields,
    "ConceptGraph": _concept_graph,
    "Diagnosis": _diagnosis,
    "Evaluation": _evaluation,
    "ControlCurves": _control_curves,
    "ExplainedText": _explained_text,
    "TextContributions": _text_contributions,
}
