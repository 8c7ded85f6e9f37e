"""torchvision's classification models."""

from __future__ import annotations

from types import ModuleType
from typing import Any

from backlight.data.classes import ClassNames
from backlight.data.images import Preprocessing, three
from backlight.errors import MissingExtraError, UnknownNameError
from backlight.models.checkpoints import load_strictly, read_state_dict
from backlight.models.hub import fetching
from backlight.models.layers import layer_names
from backlight.models.loaded import LoadedModel, Request

# torchvision's own weights for these two need their inputs rescaled inside the network; it says so only when it
# fetches them itself, and warns about a slow initialisation otherwise.
INCEPTIONS = {"googlenet", "inception_v3"}


def names() -> list[str]:
    """All classification architectures. Raises `MissingExtraError` without torchvision."""
    models = _models()
    return list(models.list_models(module=models))


def knows(name: str) -> bool:
    """Whether torchvision has the architecture; a tag after a dot is not looked at."""
    return name.partition(".")[0] in names()


def build(name: str, request: Request) -> LoadedModel:
    """An architecture, "resnet50", or one with its weights' name, "resnet50.IMAGENET1K_V1" (without: DEFAULT).

    The weights' name also decides the preprocessing, of weights from a file too.

    Raises:
        UnknownNameError: no such architecture, or no such weights.
        ModelError: weights that cannot be fetched or do not fit.
        MissingExtraError: torchvision is not installed.
    """
    models = _models()
    architecture, _, tag = name.partition(".")
    if architecture not in names():
        raise UnknownNameError("torchvision model", name, names())
    enum = models.get_model_weights(architecture)
    tags = [*enum.__members__, "DEFAULT"]
    if tag and tag not in tags:
        raise UnknownNameError("torchvision model", name, [f"{architecture}.{other}" for other in tags])
    weights = getattr(enum, tag or "DEFAULT")
    if request.fetch:
        with fetching(name):
            model = models.get_model(architecture, weights=weights)
    else:
        settings: dict[str, Any] = {} if request.outputs is None else {"num_classes": request.outputs}
        if architecture in INCEPTIONS:
            settings |= {"transform_input": True, "init_weights": False}
        model = models.get_model(architecture, weights=None, **settings)
    if request.weights is not None:
        load_strictly(model, read_state_dict(request.weights), request.source(""))
    return LoadedModel(
        name=name,
        model=model.eval(),
        preprocessing=request.preprocessing or preprocessing(weights),
        classes=_classes(weights),
        layers=layer_names(model),
        source=request.source(f"torchvision {weights}, {weights.url}, licence not stated"),
    )


def preprocessing(weights: Any) -> Preprocessing:
    """What the weights' `transforms()` do, read off its settings: the pixels are the same, on PIL alone."""
    transforms = weights.transforms()
    side, crop = transforms.resize_size[0], transforms.crop_size[0]
    return Preprocessing(
        size=(crop, crop),
        resize=(side, side),
        interpolation=transforms.interpolation.value,
        mean=three(transforms.mean),
        std=three(transforms.std),
    )


def _classes(weights: Any) -> ClassNames:
    """The weights' categories, with ImageNet's synonyms and synsets where timm is there to tell them."""
    categories = tuple(weights.meta.get("categories", ()))
    try:
        return ClassNames.imagenet() if len(categories) == 1000 else ClassNames(categories)
    except MissingExtraError:
        return ClassNames(categories)


def _models() -> ModuleType:
    try:
        import torchvision.models
    except ModuleNotFoundError as error:
        raise MissingExtraError(error.name or "torchvision", "vision") from None
    return torchvision.models
