"""`backlight segment`: the object that a class is seen in, as a mask and a box."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import backlight
from backlight.cli.networks import Network, described
from backlight.cli.outputs import LONGEST, write_arrays, write_figure, write_png
from backlight.cli.settings import methods_with_settings, plain_settings
from backlight.data import read_image
from backlight.errors import InputError
from backlight.methods import Method
from backlight.methods.weak_segmentation import Segmentation, weak_segmentation
from backlight.viz import segmentation_figure


def one_method(name: str, given: Sequence[str], model: nn.Module, temperature: str | None) -> Method:
    """The method with its settings.

    Raises:
        UnknownNameError: an unknown method or setting.
        InputError: several methods, or one that moves the input, which is no map of it.
    """
    methods = methods_with_settings([name], given, model, temperature)
    if len(methods) != 1:
        raise InputError(f"one method makes one mask, got {', '.join(methods)}")
    (found,) = methods.values()
    if found.moves_input:
        raise InputError(f"{type(found).__name__} moves the input; a mask needs a map, as ClassSaliency's")
    return found


def whole_picture(network: Network) -> Network:
    """The network with a preprocessing that squashes the whole picture into its input, in place of a crop."""
    given = network.loaded.preprocessing
    squashed = replace(given, resize=given.size, fit="squash", crop_square=False)
    return replace(network, loaded=replace(network.loaded, preprocessing=squashed))


def make_segmentation(
    network: Network, method: Method, path: Path, target: int | None, cut: Mapping[str, Any], out: Path, kind: str
) -> dict[str, Any]:
    """Write mask, figure and arrays of one picture, at its own size; returns the record."""
    start = time.perf_counter()
    picture, network = read_image(path), whole_picture(network)
    x = network.picture(path)
    logits = network.logits(x)[0]
    index = int(logits.argmax()) if target is None else target
    explained = network.prediction(logits, index)
    value = method.explain(x, index, internal_batch_size=8).value[0].cpu()
    found = weak_segmentation(picture, value, **cut)
    record = {
        "image": str(path),
        "model": network.loaded.name,
        "version": backlight.__version__,
        "target": explained,
        "method": type(method).__name__,
        "settings": {**plain_settings(method), **cut},
        "size": list(picture.size),
        "box": list(found.box),
        "share": float(found.mask.mean()),
        "from_cut": found.from_cut,
    }
    base = out / path.stem[:LONGEST]
    arrays = {"attribution": value.numpy(), "input": x[0].cpu().numpy(), "target": index, "mask": found.mask}
    record["mask"] = write_png(base.with_name(f"{base.name}.mask.png"), found.mask.astype(np.uint8) * 255)
    record["figure"] = _draw(picture, found, record, base.with_name(f"{base.name}.segmentation.{kind}"), kind)
    about = {key: value for key, value in record.items() if key not in ("mask", "figure")}
    arrays |= {"saliency": found.saliency, "seeds": found.seeds}
    record["array"] = write_arrays(base.with_name(f"{base.name}.segmentation.npz"), arrays, about)
    return {**record, "seconds": round(time.perf_counter() - start, 3)}


def _draw(picture: Any, found: Segmentation, record: dict[str, Any], path: Path, kind: str) -> str:
    shown = torch.from_numpy(np.array(picture)).permute(2, 0, 1) / 127.5 - 1
    title = f"{Path(record['image']).name} · {record['model']} · {described(record['target'])} · {record['method']}"
    figure = segmentation_figure(shown, found.saliency, found.seeds, found.mask, found.box, title)
    return write_figure(path, figure, kind)
