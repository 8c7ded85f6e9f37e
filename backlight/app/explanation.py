"""What the Explain tab computes: attributions of one picture by named methods, and what is said about each."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from PIL import Image

from backlight.app.computation import Watch
from backlight.app.predictions import Prediction, chosen_class, network_input, outputs, prediction
from backlight.engine.sites import FEATURES
from backlight.engine.targets import Contrast, Target
from backlight.methods import Method, method
from backlight.models import LoadedModel, PixelModel, resolve_layer
from backlight.shapes import Float

BATCH = 8  # points of a path in one pass


@dataclass(frozen=True, eq=False)
class Map:
    """A method's attribution of the picture, and what its computation tells of itself."""

    method: str
    values: Float[np.ndarray, "*shape"]
    score: float | None
    residual: float | None
    cost: dict[str, Any]
    settings: dict[str, Any]
    seconds: float


@dataclass(frozen=True, eq=False)
class Explained:
    """A picture as the network saw it, what was explained, and the maps: in the order in which they were asked for."""

    model: str
    source: str
    picture: Image.Image
    target: Prediction
    against: Prediction | None
    maps: tuple[Map, ...] = ()
    failures: dict[str, str] = field(default_factory=dict)


def begin(loaded: LoadedModel, picture: Image.Image | None, target: int, against: int | None = None) -> Explained:
    """Look at the picture, and settle what is explained: one class, or its contrast to another one.

    Raises:
        BacklightError: no picture, no such class.
    """
    logits = outputs(loaded, network_input(loaded, picture))[0]
    wanted = prediction(loaded, logits, chosen_class(logits, target))
    other = None if against is None else prediction(loaded, logits, against)
    shown = loaded.preprocessing.picture(picture)  # type: ignore[arg-type]
    return Explained(loaded.name, loaded.source, shown, wanted, other)


def explained_by(
    loaded: LoadedModel,
    picture: Image.Image | None,
    about: Explained,
    name: str,
    settings: Mapping[str, Any],
    watch: Watch,
) -> Map:
    """One method's map. Raises `BacklightError` where the method does not fit the network or its settings."""
    front = watch.front(loaded)
    built = placed(method(name)(front, **settings), front)
    target: int | Target = about.target.index
    if about.against is not None:
        target = Contrast(about.target.index, about.against.index)
    start = time.perf_counter()
    found = built.explain(network_input(loaded, picture), target, internal_batch_size=BATCH)
    return Map(
        method=name,
        values=found.value[0].cpu().numpy(),
        score=None if found.scores is None else float(found.scores[0]),
        residual=None if found.residual is None else float(found.residual[0]),
        cost=asdict(found.cost),
        settings=dict(settings),
        seconds=time.perf_counter() - start,
    )


def placed(built: Method, front: PixelModel) -> Method:
    """The method with a layer of its own by the front's address of it. Raises `UnknownNameError`."""
    layer = getattr(built, "layer", None)
    if layer in (None, FEATURES):
        return built
    resolve_layer(front.network, layer.partition(":")[0].partition("#")[0])
    return replace(built, layer=f"network.{layer}")  # type: ignore[call-arg]
