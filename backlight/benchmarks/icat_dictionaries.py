"""The dictionaries of an interlayer benchmark: fitted here on pictures that are not validated on, or opened."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from backlight.benchmarks.study import slug
from backlight.benchmarks.subjects import Subject
from backlight.concepts.concepts import Concepts
from backlight.contributions.reduction import layout_of
from backlight.data.labelled import LabelledFolder
from backlight.decompositions import Decomposition, decomposition
from backlight.decompositions.codes import coder
from backlight.decompositions.decomposition import CONFIG, plain_settings
from backlight.decompositions.folder import make_folder, read_json, write_json
from backlight.engine.sites import captured
from backlight.errors import ImageError, InputError
from backlight.evaluation.identity import model_hash, names_hash, sample_seed, tensor_hash
from backlight.graph.coded import vectors_of
from backlight.graph.layers import Coder, LayerConcepts
from backlight.shapes import Float

ABOUT = "fitted.json"
AT_ONCE = 8  # pictures in a forward pass
LAYERS: dict[str, tuple[str, ...]] = {
    "efficientnet_lite0": tuple(f"blocks.{n}" for n in range(1, 7)),
    "mobilenet_v2": tuple(f"features.{n}" for n in (3, 6, 10, 13, 16, 17)),
    "resnet50": ("layer1.2", "layer2.3", "layer3.0", "layer3.2", "layer3.5", "layer4.2"),
}


def layers_of(subject: Subject, chosen: Sequence[str] | None) -> tuple[str, ...]:
    """The layers by name, in the network's order: those that were chosen, or those of `LAYERS`.

    Raises:
        InputError: none were chosen for a network that `LAYERS` does not have, or fewer than two.
        UnknownNameError: one that is not there.
    """
    names = tuple(chosen or LAYERS.get(subject.name.split(".")[0], ()))
    if len(names) < 2:
        raise InputError(f"which layers of {subject.name}? Give two or more, in the network's order: --layers A,B,C")
    for name in names:
        subject.layer(name)
    return names


def fitted(
    subject: Subject,
    layers: Sequence[str],
    samples: LabelledFolder,
    names: Sequence[str],
    made: Callable[[], Decomposition],
    rows: int,
    seed: int,
    folder: Path,
    told: Callable[[str], None] = lambda text: None,
) -> dict[str, Decomposition]:
    """A dictionary a layer, of PFVs drawn evenly from the pictures' positions; those that are in `folder` stay.

    Raises:
        InputError: no pictures to fit on, or dictionaries that were fitted otherwise.
    """
    if not names:
        raise InputError("no pictures are left to fit dictionaries on: half of them are, so that two are needed")
    one = made()
    about = {
        "method": type(one).__name__, "settings": plain_settings(one), "rows": rows, "seed": seed,
        "model": model_hash(subject.model), "data": samples.fingerprint, "pictures": names_hash(names),
    }  # fmt: skip
    places = {layer: make_folder(folder / slug(layer)) for layer in layers}
    missing = []
    for layer, place in places.items():
        if (place / ABOUT).exists() and read_json(place / ABOUT) != about:
            raise InputError(f"{str(place)!r} holds a dictionary of other settings: give another folder")
        missing += [] if (place / ABOUT).exists() and (place / CONFIG).exists() else [layer]
    vectors = drawn(subject, missing, samples, names, rows, seed) if missing else {}
    for layer in missing:
        told(f"{subject.name}: {type(one).__name__} of {layer}, {len(vectors[layer])} vectors")
        made().fit(vectors[layer]).save(places[layer])
        write_json(places[layer] / ABOUT, about)
    return {layer: Decomposition.load(place) for layer, place in places.items()}


def drawn(
    subject: Subject, layers: Sequence[str], samples: LabelledFolder, names: Sequence[str], rows: int, seed: int
) -> dict[str, Float[Tensor, "n channels"]]:
    """PFVs of every layer: as many from each picture, at random positions, without prefix tokens."""
    each = -(-rows // len(names))
    found: dict[str, list[Tensor]] = {layer: [] for layer in layers}
    sites = {subject.layer(layer): layer for layer in layers}
    for start in range(0, len(names), AT_ONCE):
        chunk = names[start : start + AT_ONCE]
        pictures = {}
        for name in chunk:
            try:
                pictures[name] = samples.load(name).inputs
            except ImageError:
                continue
        if not pictures:
            continue
        x = torch.stack(list(pictures.values())).to(subject.device)
        with torch.no_grad(), captured(subject.model, sites) as values:
            subject.model(x)
        for site, layer in sites.items():
            layout = layout_of(values[site], subject.model, site, size=x.shape[2:])
            vectors = vectors_of(values[site], layout)[:, layout.prefix :]
            for one, name in zip(vectors, pictures, strict=True):
                draw = torch.Generator().manual_seed(sample_seed(seed, name))
                found[layer].append(one[torch.randperm(len(one), generator=draw)[:each].to(one.device)].cpu())
    return {layer: torch.cat(parts) for layer, parts in found.items()}


def opened(subject: Subject, folders: Sequence[Path]) -> dict[str, tuple[Decomposition, str]]:
    """Dictionaries of `backlight concepts fit`, by layer, with the hash of each.

    Raises:
        InputError: a folder of another network, or two of one layer.
    """
    found: dict[str, tuple[Decomposition, str]] = {}
    for folder in folders:
        concepts = Concepts.open(folder)
        if concepts.model_name != subject.name:
            raise InputError(f"{str(folder)!r} holds concepts of {concepts.model_name}, not of {subject.name}")
        if concepts.site in found:
            raise InputError(f"two dictionaries of {concepts.site!r}: {str(folder)!r} is the second")
        subject.layer(concepts.site)
        found[concepts.site] = (concepts.dictionary, tensor_hash(concepts.dictionary.atoms))
    return found


def as_layers(dictionaries: Mapping[str, Decomposition], chosen: Coder | None) -> dict[str, LayerConcepts]:
    """Coded by `chosen`, or by the dictionaries themselves."""
    return {layer: LayerConcepts.of(one, chosen) for layer, one in dictionaries.items()}


def coder_named(text: str | None) -> Coder | None:
    """A coder: `OMP`, or `OMP:k=8` with settings; None, or `own`: the dictionary's own codes.

    Raises:
        UnknownNameError: another name, or a setting that it does not have.
    """
    if text in (None, "own"):
        return None
    assert text is not None
    name, _, rest = text.partition(":")
    return coder(name, **_settings(name, rest))


def fit_named(text: str, seed: int) -> Callable[[], Decomposition]:
    """A dictionary to fit: `KMeans`, or `BisectingKMeans:n_modes=256` with settings.

    Raises:
        UnknownNameError: another name; InputError: settings that it does not have.
    """
    name, _, rest = text.partition(":")
    kind = decomposition(name)
    settings = {"seed": seed, **_settings(name, rest)}
    try:
        kind(**settings)
    except TypeError as error:
        raise InputError(f"{name}: {error}") from None
    return lambda: kind(**settings)


def _settings(name: str, text: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for part in filter(None, text.split(",")):
        key, equals, value = part.partition("=")
        if not equals:
            raise InputError(f"settings of {name} are written {name}:NAME=VALUE,NAME=VALUE, not {text!r}")
        found[key] = _value(value)
    return found


def _value(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return {"true": True, "false": False, "none": None}.get(text.lower(), text)
