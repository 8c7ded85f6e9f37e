"""Layers of concept graphs from folders: what `backlight concepts fit` wrote, with its coder, names and exemplars."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn

from backlight.concepts.concepts import OWN, Concepts, codings
from backlight.concepts.exemplars import Exemplar, exemplars
from backlight.concepts.naming import name_by_class
from backlight.concepts.receptive_fields import ReceptiveFields
from backlight.contributions.decomposed import RUN
from backlight.errors import InputError
from backlight.evaluation.identity import model_hash
from backlight.graph.layers import Coder, Exemplars, LayerConcepts, Tags
from backlight.graph.thumbnails import png_uri

TAGS, IMAGES = 3, 5  # classes a concept, and images a class needs to be one of them
CROP = 96  # pixels


def open_layers(
    folders: Sequence[str | os.PathLike[str]],
    coder: str | Coder | None = None,
    *,
    model: nn.Module | None = None,
    tags: bool = True,
    **settings: Any,
) -> dict[str, LayerConcepts]:
    """Fitted concepts by their sites, for `build_graph`.

    Args:
        folders: of `fit_concepts`, one a layer; or folders of such, as `backlight concepts fit` writes.
        coder: that images are coded by. A name (`CODERS`) with its `settings`; without settings, those of the codes
            that the folder has by this coder. None: the dictionary's own codes.
        model: checked to be the network that the concepts are of.
        tags: concepts get the classes that they go with in the bank, by correlation over its images.

    Raises:
        InputError: no fitted concepts; two folders of one site; concepts of another network.
        UnknownNameError: a coder that there is not.
    """
    found: dict[str, LayerConcepts] = {}
    known: str | None = None if model is None else model_hash(model)
    for folder in (place for given in folders for place in _within(Path(given))):
        concepts = Concepts.open(folder)
        if concepts.site in found:
            raise InputError(f"{str(folder)!r} holds concepts of {concepts.site!r}, as a folder before it: give one")
        own = concepts.bank.identity["model"].get("parameters")
        if known is not None and own is not None and own != known:
            raise InputError(
                f"the concepts of {str(folder)!r} are of {concepts.model_name!r} with other weights than this network's"
            )
        found[concepts.site] = layer_of(concepts, coder, tags=tags, **settings)
    return found


def _within(folder: Path) -> list[Path]:
    """The folders of fitted concepts in a folder of such, else the folder itself."""
    inside = [] if (folder / RUN).is_file() else sorted(path.parent for path in folder.glob(f"*/{RUN}"))
    return inside or [folder]


def layer_of(
    concepts: Concepts, coder: str | Coder | None = None, *, tags: bool = True, **settings: Any
) -> LayerConcepts:
    """Fitted concepts as a layer of a graph; arguments and errors as of `open_layers`."""
    one = _coder(concepts, coder, settings) if isinstance(coder, str) else coder
    return LayerConcepts.of(
        concepts.dictionary,
        one,
        tags=tags_of(concepts) if tags else {},
        exemplars=_pictures(concepts),
        about={"folder": str(concepts.folder)},
    )


def _coder(concepts: Concepts, name: str, settings: dict[str, Any]) -> Coder | None:
    """A coder by its name. Settings that are not given are those of the folder's codes, where it has some by it."""
    from backlight.decompositions.codes import coder

    if name == OWN:
        return None
    fitting = [one for one in codings(concepts.folder) if one.lower().startswith(name.lower()) and one != OWN]
    if not settings and len(fitting) == 1:
        made = Concepts.open(concepts.folder, fitting[0]).report["identity"]
        return coder(made["coder"], **made["settings"])
    return coder(name, **settings)


def tags_of(concepts: Concepts, count: int = TAGS) -> Tags:
    """The classes that each concept goes with most, with Pearson's r, by labels, else by predictions.

    Without classes of at least 5 images in the bank there are none. With many classes and few images, large r are to
    be had by chance.
    """
    for by in ("label", "prediction"):
        try:
            naming = name_by_class(concepts, by=by, min_images=IMAGES)
        except InputError:
            continue
        return {k: [(name, r) for name, r in naming.top(k, count) if r > 0] for k in range(len(concepts))}
    return {}


def _pictures(concepts: Concepts) -> Exemplars:
    """Crops of a concept's strongest images; their fields are computed once, and kept with the bank."""
    fields: list[ReceptiveFields] = []

    def of(concept: int, count: int) -> list[dict[str, str]]:
        fields[:] = fields or [ReceptiveFields(concepts.bank)]
        found = exemplars(concepts, concept, count, fields=fields[0])
        return [{"image": one.name, "crop": png_uri(_crop(one))} for one in found]

    return of


def _crop(one: Exemplar) -> Image.Image:
    shown = ((one.crop(masked=True).clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    picture = Image.fromarray(shown.permute(1, 2, 0).cpu().numpy())
    picture.thumbnail((CROP, CROP))
    return picture
