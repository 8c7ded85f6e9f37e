"""What the Graph tab computes: the concept graph of a picture, parts of it, and the diagnosis of a mistake."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from PIL import Image

from backlight.app.computation import Watch
from backlight.app.concept_pages import open_concepts
from backlight.app.interruption import stoppable
from backlight.app.opened import Opened, without_paths
from backlight.app.predictions import PREDICTED, network_input
from backlight.errors import InputError
from backlight.graph.build import build_graph
from backlight.graph.concept_graph import ConceptGraph
from backlight.graph.diagnosis import Diagnosis, diagnose
from backlight.graph.layers import LayerConcepts
from backlight.graph.layers_fitted import open_layers
from backlight.models import LoadedModel

OWN = "the dictionary's own"
CODERS = {OWN: None, "Lasso": "Lasso", "OMP": "OMP", "TopK": "TopK"}
MOST_NODES = 12


@dataclass(frozen=True)
class Building:
    """Settings of a graph; see `backlight.graph.build.build_graph`."""

    coder: str | None = None
    top: int = 4
    shared: int = 2
    attribution: str = "IntegratedGradients"
    exemplars: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.top <= MOST_NODES or not 0 <= self.shared <= MOST_NODES:
            raise InputError(f"concepts of a layer lie between 1 and {MOST_NODES}, got {self.top} and {self.shared}")


def layers_of(chosen: Sequence[Opened], loaded: LoadedModel, coder: str | None) -> dict[str, LayerConcepts]:
    """Fitted concepts by their layers, with the classes they go with; the graph calls folders by their names.

    Raises:
        InputError: none is chosen, two of one layer, or concepts of another network.
    """
    if not chosen:
        raise InputError("choose at least one layer's dictionary")
    with without_paths():
        found = open_layers([one.folder for one in chosen], coder, model=loaded.model, tags=False)
    layers = {}
    for one in chosen:
        concepts, layer = open_concepts(one), found[one.site]
        tags = {k: concepts.classes_of(k) for k in range(len(concepts.concepts))}
        layers[one.site] = replace(layer, tags=tags, about={**layer.about, "folder": one.name})
    return layers


def graph_of(
    chosen: Sequence[Opened], loaded: LoadedModel, picture: Image.Image | None, target: int, settings: Building,
    watch: Watch,
) -> ConceptGraph:  # fmt: skip
    """The concept graph of a picture, for the predicted class and the one chosen. Cost: that of `build_graph`."""
    x = _input(loaded, picture)
    watch.say("opening the dictionaries")
    layers = layers_of(chosen, loaded, settings.coder)
    classes = [] if target == PREDICTED else [target]
    with stoppable(watch), without_paths():
        return build_graph(loaded, x, layers, classes=classes, **_given(settings, watch))


def diagnosis_of(
    chosen: Sequence[Opened], loaded: LoadedModel, picture: Image.Image | None, true: int, settings: Building,
    watch: Watch,
) -> Diagnosis:  # fmt: skip
    """Why the picture is taken for another class than `true`, or if it is not, what speaks for the likeliest other one.

    Raises:
        InputError: no class is chosen; and as `graph_of`.
    """
    if true == PREDICTED:
        raise InputError("choose the class that the picture shows, above: Class to explain")
    x = _input(loaded, picture)
    watch.say("opening the dictionaries")
    layers = layers_of(chosen, loaded, settings.coder)
    with stoppable(watch), without_paths():
        return diagnose(loaded, x, layers, true=true, **_given(settings, watch))


def _input(loaded: LoadedModel, picture: Image.Image | None) -> Any:
    if loaded.classes.unit == "feature":
        raise InputError(f"{loaded.name!r} gives features and knows no classes: choose a classifier")
    return loaded.preprocessing.normalise((network_input(loaded, picture) + 1) / 2)


def _given(settings: Building, watch: Watch) -> dict[str, Any]:
    return {
        "top": settings.top,
        "shared": settings.shared,
        "attribution": settings.attribution,
        "exemplars": settings.exemplars,
        "name": "the picture",
        "progress": lambda what, done, total: watch.say(f"{what} ({done} of {total})"),
    }


def part_of(graph: ConceptGraph, min_share: float, layers: Sequence[str], classes: Sequence[int]) -> ConceptGraph:
    """The part that is asked for; no layers or no classes are all of them. Classes always stay."""
    last = graph.sites[-1]
    kept = None if not layers else [*[one for one in graph.sites if one in layers and one != last], last]
    return graph.filtered(min_share=min_share, layers=kept, classes=list(classes) or None)


def layer_choices(graph: ConceptGraph) -> list[str]:
    """The layers of a graph, classes apart."""
    return graph.sites[:-1]


def class_choices(graph: ConceptGraph) -> list[tuple[str, int]]:
    """(name and probability, index) of the classes of a graph."""
    told = {one["index"]: one for one in graph.about.get("classes", [])}
    return [(_class(told.get(index), index), index) for index in graph.classes]


def _class(told: Mapping[str, Any] | None, index: int) -> str:
    if told is None:
        return f"class {index}"
    share = told.get("probability")
    return str(told["name"]) + ("" if share is None else f" · {100 * share:.1f} %")


def framed(page: str, title: str) -> str:
    """A self-contained page in a frame of its own: its scripts run, and reach nothing of the app around it."""
    source, name = html.escape(page, quote=True), html.escape(title, quote=True)
    style = "width:100%;height:min(85vh,900px);min-height:480px;border:1px solid #ccc;border-radius:6px;background:#fff"
    return f'<iframe sandbox="allow-scripts" title="{name}" style="{style}" srcdoc="{source}"></iframe>'


def json_file(graph: ConceptGraph) -> bytes:
    """The graph as `backlight graph show` reads it."""
    return json.dumps(graph.as_json(), allow_nan=False).encode()
