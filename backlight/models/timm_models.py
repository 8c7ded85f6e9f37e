"""timm's models."""

from __future__ import annotations

from types import ModuleType
from typing import Any

from torch import nn

from backlight.data.classes import ClassNames
from backlight.data.images import Preprocessing, three
from backlight.errors import MissingExtraError, UnknownNameError
from backlight.models.checkpoints import load_strictly, read_state_dict
from backlight.models.hub import fetching
from backlight.models.layers import layer_names
from backlight.models.loaded import LoadedModel, Request

FITS = {"center": "cover", "squash": "squash", "border": "contain"}


def names() -> list[str]:
    """All architectures. Raises `MissingExtraError` without timm."""
    return list(_timm().list_models())


def knows(name: str) -> bool:
    """Whether timm has the architecture; a tag after a dot is not looked at."""
    return _is_hub(name) or bool(_timm().is_model(name))


def build(name: str, request: Request) -> LoadedModel:
    """An architecture, "resnet50", with a tag of weights or without, or "hf-hub:ORG/NAME".

    Raises:
        UnknownNameError: no such architecture, or no such tag.
        ModelError: weights that cannot be fetched or do not fit.
        MissingExtraError: timm is not installed.
    """
    timm = _timm()
    if not _is_hub(name):
        _check(name, timm)
    settings = {} if request.outputs is None else {"num_classes": request.outputs}
    if request.fetch or _is_hub(name):
        with fetching(name):
            model = timm.create_model(name, pretrained=request.fetch, **settings)
    else:
        model = timm.create_model(name, pretrained=False, **settings)
    if request.weights is not None:
        load_strictly(model, read_state_dict(request.weights), request.source(""))
    return LoadedModel(
        name=name,
        model=model.eval(),
        preprocessing=request.preprocessing or preprocessing(model),
        classes=classes(model),
        layers=layer_names(model),
        source=request.source(_source(model)),
    )


def preprocessing(model: nn.Module) -> Preprocessing:
    """As `timm.data.resolve_model_data_config` says for a timm model, whoever made it."""
    from timm.data import resolve_model_data_config

    config: dict[str, Any] = resolve_model_data_config(model)
    chosen = config["interpolation"]
    return Preprocessing.from_crop(
        tuple(config["input_size"][-2:]),
        config["crop_pct"],
        interpolation=chosen if chosen != "random" else "bilinear",
        mean=three(config["mean"]),
        std=three(config["std"]),
        fit=FITS.get(config.get("crop_mode") or "center", "cover"),
    )


def classes(model: nn.Module) -> ClassNames:
    """The names the model brings; ImageNet's where the number of outputs tells the subset; else "class 0", ...

    None, with `unit="feature"`, where there is no head. timm does not tell embeddings of CLIP models from classes.
    """
    from timm.data.imagenet_info import infer_imagenet_subset

    count = int(getattr(model, "num_classes", 0) or 0)
    if not count:
        return ClassNames(unit="feature")
    own = (getattr(model, "pretrained_cfg", None) or {}).get("label_names")
    if own and len(own) == count:
        return ClassNames(tuple(map(str, own)))
    subset = infer_imagenet_subset({"num_classes": count})
    return ClassNames.imagenet(subset) if subset else ClassNames.generic(count)


def _timm() -> ModuleType:
    try:
        import timm
    except ModuleNotFoundError as error:
        raise MissingExtraError(error.name or "timm", "vision") from None
    return timm


def _is_hub(name: str) -> bool:
    return name.startswith(("hf-hub:", "hf_hub:"))


def _check(name: str, timm: ModuleType) -> None:
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        raise UnknownNameError("timm model", name, timm.list_models())
    tagged = timm.list_pretrained(f"{architecture}.*")
    if tag and name not in tagged:
        raise UnknownNameError("timm model", name, tagged)


def _source(model: nn.Module) -> str:
    config: dict[str, Any] = getattr(model, "pretrained_cfg", None) or {}
    where = config.get("hf_hub_id") or config.get("url") or "timm"
    return f"timm, {where}, licence {config.get('license') or 'not stated'}"
