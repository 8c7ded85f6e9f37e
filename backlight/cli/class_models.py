"""`backlight class-model`: the image that a network scores highest for a class."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

import backlight
from backlight.cli.networks import Network, described
from backlight.cli.outputs import slug, write_arrays, write_figure, write_picture
from backlight.cli.settings import parse_setting, parse_value
from backlight.errors import InputError, UnknownNameError
from backlight.methods.class_model import ClassImage, ClassModel
from backlight.viz import class_figure

CONTRAST = 0.15  # of the pictures: the standard deviation that a soft photograph has


def class_model_with_settings(model: nn.Module, given: Iterable[str], readable: bool) -> ClassModel:
    """A class model with what was typed.

    Raises:
        UnknownNameError: a setting that it does not have.
        InputError: a setting that is not NAME=VALUE, or a value of the wrong type.
    """
    defaults, chosen = ClassModel.settings(), {}
    for name, text in map(parse_setting, given):
        if name not in defaults:
            raise UnknownNameError("setting of ClassModel", name, defaults)
        chosen[name] = parse_value(name, text, defaults[name])
        if chosen[name] is None:
            raise InputError(f"{name} needs a value")
    return ClassModel.readable(model, **chosen) if readable else ClassModel(model, **chosen)


def make_class_models(
    network: Network, maker: ClassModel, classes: list[int], out: Path, kind: str, batch_size: int
) -> list[dict[str, Any]]:
    """Write picture, figure and arrays of every class, all made at once; returns the records.

    Raises:
        TargetError: an index out of range.
    """
    start = time.perf_counter()
    preprocessing = network.loaded.preprocessing
    found = maker.visualise(classes, preprocessing, internal_batch_size=batch_size)
    pictures = 2 * found.picture(preprocessing, CONTRAST).cpu().float() - 1
    pixels = 2 * preprocessing.denormalise(found.image) - 1
    logits = torch.cat([network.logits(part) for part in pixels.split(batch_size)])
    records = []
    for place, index in enumerate(classes):
        record = {
            "target": network.prediction(logits[place], index),
            "model": network.loaded.name,
            "version": backlight.__version__,
            "settings": {name: getattr(maker, name) for name in maker.settings()},
            "scores": found.scores[:, place].tolist(),
            "objective": found.objective[:, place].tolist(),
            "contrast": CONTRAST,
        }
        records.append({**record, **_write(found, pictures[place], place, record, out, kind)})
    seconds = round(time.perf_counter() - start, 3)
    return [{**record, "seconds": seconds} for record in records]


def _write(found: ClassImage, picture: Any, place: int, record: dict[str, Any], out: Path, kind: str) -> dict[str, str]:
    base = f"{slug(record['target']['name'])}-{record['target']['index']}.class-model"
    steps = f"{record['settings']['n_steps']} steps"
    figure = class_figure(picture, record["scores"], f"{record['model']} · {described(record['target'])} · {steps}")
    arrays = {"image": found.image[place].cpu().numpy(), "scores": found.scores[:, place].cpu().numpy()}
    return {
        "picture": write_picture(out / f"{base}.png", picture),
        "figure": write_figure(out / f"{base}.figure.{kind}", figure, kind),
        "array": write_arrays(out / f"{base}.npz", arrays, record),
    }
