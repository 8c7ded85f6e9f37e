"""The network a command works on: loaded, moved to a device, behind its front of pixels, with its predictions."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from backlight.engine.sites import INPUT, Site
from backlight.engine.targets import output_tensor
from backlight.errors import InputError, TargetError
from backlight.models import LoadedModel, PixelModel, load, resolve_layer
from backlight.shapes import Float
from backlight.viz.figures import Chance


@dataclass(frozen=True)
class Network:
    """A loaded network, and the same behind a front that takes pictures in [-1, 1]."""

    loaded: LoadedModel
    front: PixelModel
    device: torch.device

    def picture(self, path: str | os.PathLike[str]) -> Float[Tensor, "1 3 H W"]:
        """The picture as the network's own preprocessing resizes and crops it, in [-1, 1]."""
        return (2 * self.loaded.preprocessing.image(path) - 1)[None].to(self.device)

    def logits(self, x: Float[Tensor, "N 3 H W"]) -> Float[Tensor, "N K"]:
        """The outputs. Raises `TargetError` where they are not one row a picture."""
        with torch.no_grad():
            outputs = output_tensor(self.front(x))
        if outputs.ndim != 2:
            raise TargetError(f"expected outputs [N, K] of a classifier, got {list(outputs.shape)}")
        return outputs

    def class_index(self, query: str) -> int:
        """A class by name, synset or index. Raises `UnknownNameError` or `TargetError`."""
        return self.loaded.classes.index(query)

    def prediction(self, logits: Float[Tensor, "K"], index: int) -> dict[str, Any]:
        """A class and what the network gives it; features (`unit="feature"`) have no probability.

        Raises:
            TargetError: an index out of range.
        """
        if not 0 <= index < len(logits):
            raise TargetError(f"the class index {index} is out of range: the network has {len(logits)} outputs")
        classes = self.loaded.classes
        share = None if classes.unit == "feature" else float(logits.double().softmax(0)[index])
        return {
            "index": index,
            "name": classes.name(index),
            "synset": classes.synset(index) or None,
            "logit": float(logits[index]),
            "probability": share,
        }

    def best(self, logits: Float[Tensor, "K"], count: int = 5) -> list[dict[str, Any]]:
        """The largest outputs, largest first."""
        return [self.prediction(logits, int(index)) for index in logits.topk(min(count, len(logits))).indices]

    def site(self, layer: str) -> str:
        """The front's address of a layer of the network. Raises `UnknownNameError` or `SiteError`."""
        if layer == INPUT:
            return INPUT
        resolve_layer(self.loaded.model, Site.parse(layer).layer)
        return f"network.{layer}"


def open_network(
    name: str, weights: str | None, random_weights: bool, classes: str | None, device: str = "auto"
) -> Network:
    """Load a network and move it to a device, `auto`, `cpu` or `cuda`.

    Raises:
        BacklightError: a name, weights or device that cannot be had.
    """
    place = choose_device(device)
    loaded = load(name, weights=weights, pretrained=not random_weights, classes=classes)
    loaded = replace(loaded, model=loaded.model.to(place))
    return Network(loaded, loaded.pixels(), place)


def choose_device(device: str) -> torch.device:
    """The device; `auto` is CUDA where there is one. Raises `InputError` where the one asked for is missing."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise InputError("there is no CUDA device for --device cuda; choices here: auto, cpu")
    return torch.device(device)


def bars(predictions: list[dict[str, Any]], target: dict[str, Any]) -> list[Chance]:
    """Predictions as a figure draws them; the explained class comes last where it is not among them."""
    shown = predictions if target in predictions else [*predictions[:-1], target]
    longest = max(max(abs(one["logit"]) for one in shown), 1e-12)
    return [
        Chance(one["name"], abs(one["logit"]) / longest, one == target, f"{one['logit']:.3g}")
        if one["probability"] is None
        else Chance(one["name"], one["probability"], one == target)
        for one in shown
    ]


def described(prediction: dict[str, Any]) -> str:
    """`tiger cat, 39.3 %`."""
    if prediction["probability"] is None:
        return f"{prediction['name']}, {prediction['logit']:.3g}"
    return f"{prediction['name']}, {100 * prediction['probability']:.1f} %"
