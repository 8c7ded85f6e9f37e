"""What a network says of a picture: its most probable classes, by name."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from backlight.engine.targets import output_tensor
from backlight.errors import ImageError, TargetError
from backlight.models import LoadedModel
from backlight.shapes import Float

PREDICTED = -1  # in place of a class's index: the class that the network predicts


@dataclass(frozen=True)
class Prediction:
    """A class and what the network gives it; features, which are no classes, have no probability."""

    index: int
    name: str
    logit: float
    probability: float | None

    def __str__(self) -> str:
        said = f"{self.logit:.3g}" if self.probability is None else f"{100 * self.probability:.1f} %"
        return f"{self.name} · {said}"


def network_input(loaded: LoadedModel, picture: Image.Image | None) -> Float[Tensor, "1 3 H W"]:
    """A picture as the network's own preprocessing resizes and crops it, in [-1, 1], on the network's device.

    Raises:
        ImageError: there is no picture yet.
    """
    if picture is None:
        raise ImageError("choose a picture first: upload one, paste one, or take an example")
    x = (2 * loaded.preprocessing.image(picture) - 1)[None]
    parameter = next(loaded.model.parameters(), None)
    return x if parameter is None else x.to(parameter.device)


def grey_input(loaded: LoadedModel) -> Float[Tensor, "1 3 H W"]:
    """A grey picture as the network's input, for what does not depend on the picture."""
    parameter = next(loaded.model.parameters(), None)
    return torch.zeros(1, 3, *loaded.preprocessing.size, device=None if parameter is None else parameter.device)


def outputs(loaded: LoadedModel, x: Float[Tensor, "N 3 H W"]) -> Float[Tensor, "N K"]:
    """The network's outputs for pictures in [-1, 1]. Raises `TargetError` where they are not one row a picture."""
    with torch.no_grad():
        found = output_tensor(loaded.pixels()(x))
    if found.ndim != 2:
        raise TargetError(f"expected outputs [N, K] of a classifier, got {list(found.shape)}")
    return found


def prediction(loaded: LoadedModel, logits: Float[Tensor, "K"], index: int) -> Prediction:
    """A class and what the network gives it. Raises `TargetError` for an index out of range."""
    if not 0 <= index < len(logits):
        raise TargetError(f"the class index {index} is out of range: the network has {len(logits)} outputs")
    share = None if loaded.classes.unit == "feature" else float(logits.double().softmax(0)[index])
    return Prediction(index, class_name(loaded, index), float(logits[index]), share)


def best(loaded: LoadedModel, logits: Float[Tensor, "K"], count: int = 5) -> list[Prediction]:
    """The largest outputs, largest first."""
    return [prediction(loaded, logits, int(index)) for index in logits.topk(min(count, len(logits))).indices]


def chosen_class(logits: Float[Tensor, "K"], target: int) -> int:
    """The index of a class; `PREDICTED` is the class of the largest output."""
    return int(logits.argmax()) if target == PREDICTED else target


def class_name(loaded: LoadedModel, index: int) -> str:
    """The first name of a class, with its index where another class has the same name (ImageNet has two cranes)."""
    name = loaded.classes.name(index)
    same = sum(other == name for other in map(_first, loaded.classes.names))
    return f"{name} ({index})" if same > 1 else name


def class_choices(loaded: LoadedModel, count: int) -> list[tuple[str, int]]:
    """(names, index) of all classes to choose from, in alphabetical order of names, the predicted class first.

    Names hold all synonyms, so that a search finds every one of them.
    """
    listed = [(", ".join(loaded.classes.synonyms(index)), index) for index in range(count)]
    if loaded.classes.unit != "feature":
        listed.sort(key=lambda one: one[0].lower())
    return [("the predicted class" if loaded.classes.unit != "feature" else "the largest feature", PREDICTED), *listed]


def _first(name: str) -> str:
    return name.partition(",")[0].strip()
