"""`load(name)`: a network from timm, torchvision, Hugging Face or the package index, ready to be explained."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from types import ModuleType

import torch
from torch import nn

from backlight.data.classes import ClassNames
from backlight.data.images import Preprocessing
from backlight.errors import MissingExtraError, ModelError, UnknownNameError
from backlight.models import cifar_models, embedded, huggingface_models, timm_models, torchvision_models
from backlight.models.checkpoints import Weights, load_strictly, read_state_dict
from backlight.models.layers import layer_names
from backlight.models.loaded import LoadedModel, Request

# In the order in which a name without a prefix is looked for.
FAMILIES: dict[str, ModuleType] = {
    "embedded": embedded,
    "cifar": cifar_models,
    "timm": timm_models,
    "torchvision": torchvision_models,
    "hf": huggingface_models,
}
ALIASES = {"huggingface": "hf"}


def load(
    name: str | os.PathLike[str] | nn.Module,
    *,
    weights: Weights | None = None,
    pretrained: bool = True,
    classes: ClassNames | Sequence[str] | str | os.PathLike[str] | None = None,
    preprocessing: Preprocessing | None = None,
    family: str | None = None,
) -> LoadedModel:
    """A network with its preprocessing, class names and layer names, in evaluation mode and otherwise untouched.

    `name` is an embedded model ("efficientnet_lite0"), a timm name ("resnet50", "resnet50.a1_in1k"), a torchvision
    name, ORG/NAME of Hugging Face, a folder that `save_pretrained` wrote, or a module. A name that several families
    have goes to the first of embedded, timm, torchvision; `family`, or a prefix ("torchvision:resnet50.IMAGENET1K_V1",
    "timm:resnet50", "hf:google/vit-base-patch16-224"), chooses.

    `weights` (a file or a state dict) is loaded strictly in place of the family's own; `pretrained=False` gives random
    ones, which depend on torch's seed and leave it as it was. `classes` (names, "imagenet", or a file of names) also
    sizes the head, unless the weights are fetched. A module must be in evaluation mode already: it is not switched.

    Raises:
        UnknownNameError: no such model, or family; close matches are listed.
        ModelError: weights that cannot be fetched or do not fit; a module in training mode, or without preprocessing.
        MissingExtraError: the family's package, or the package with the embedded weights, is not installed.
    """
    named = ClassNames.of(classes) if classes is not None else None
    request = Request(weights, pretrained, named, preprocessing)
    if isinstance(name, nn.Module):
        return _module(name, request)
    if not isinstance(name, (str, os.PathLike)):
        raise ModelError(f"expected the name of a model or a torch.nn.Module, got {type(name).__name__}")
    name = os.fspath(name)
    chosen, inner = _resolve(name, family)
    with torch.random.fork_rng(devices=[]):  # building draws random weights; the caller's random numbers stay
        loaded: LoadedModel = FAMILIES[chosen].build(inner, request)
    if named is not None and request.fetch and len(named) != len(loaded.classes):
        outputs = len(loaded.classes) or "no"
        raise ModelError(f"the weights of {name!r} are for {outputs} classes, but classes= gives {len(named)} names")
    return replace(loaded, name=name, classes=named or loaded.classes)


def available_models() -> dict[str, list[str]]:
    """The names that `load` takes, by family; empty for a family whose package is not installed.

    Hugging Face's are the architectures ("hf:vit"), which have no weights of their own; the hub has thousands that do.
    """
    listed = {
        "embedded": embedded.names(),
        "cifar": cifar_models.names(),
        "torchvision": [],
        "timm": [],
        "huggingface": [],
    }
    for key, module in (
        ("torchvision", torchvision_models),
        ("timm", timm_models),
        ("huggingface", huggingface_models),
    ):
        try:
            found = module.names()
        except MissingExtraError:
            continue
        listed[key] = [f"hf:{name}" for name in found] if key == "huggingface" else found
    return listed


def _resolve(name: str, family: str | None) -> tuple[str, str]:
    """The family, and the name inside it."""
    prefix, colon, rest = name.partition(":")
    prefix = ALIASES.get(prefix, prefix)
    if colon and prefix in FAMILIES:
        family, name = prefix, rest
    if family is not None:
        family = ALIASES.get(family, family)
        if family not in FAMILIES:
            raise UnknownNameError("model family", family, FAMILIES)
        return family, name
    if name.startswith("timm/"):
        return "timm", f"hf-hub:{name}"
    missing: MissingExtraError | None = None
    for key, module in FAMILIES.items():
        try:
            if module.knows(name):
                return key, name
        except MissingExtraError as error:
            missing = missing or error
    if missing is not None:  # the name may well be one of the package's
        raise missing
    listed = available_names()
    raise UnknownNameError("model", name, listed, "Hugging Face models are hf:ORG/NAME")


def available_names() -> list[str]:
    """The names without a prefix that `load` takes, each once."""
    return list(
        dict.fromkeys([*embedded.names(), *cifar_models.names(), *timm_models.names(), *torchvision_models.names()])
    )


def _module(model: nn.Module, request: Request) -> LoadedModel:
    training = [name or "the model itself" for name, part in model.named_modules() if part.training]
    kind = type(model).__name__
    if training:
        listed = ", ".join(training[:3]) + (", ..." if len(training) > 3 else "")
        raise ModelError(f"{kind} is in training mode ({listed}): call model.eval() first")
    if request.weights is not None:
        load_strictly(model, read_state_dict(request.weights), request.source(""))
    chosen = request.preprocessing or _own_preprocessing(model)
    if chosen is None:
        raise ModelError(
            f"the preprocessing of {kind} is not known: give preprocessing=Preprocessing(...) "
            "(its defaults are ImageNet's mean and std, 256 pixels cropped to 224)"
        )
    return LoadedModel(
        name=kind,
        model=model,
        preprocessing=chosen,
        classes=request.classes or _own_classes(model),
        layers=layer_names(model),
        source=request.source("the caller's module") if request.weights is not None else "the caller's module",
    )


def _own_preprocessing(model: nn.Module) -> Preprocessing | None:
    return timm_models.preprocessing(model) if getattr(model, "pretrained_cfg", None) else None


def _own_classes(model: nn.Module) -> ClassNames:
    if getattr(model, "pretrained_cfg", None):
        return timm_models.classes(model)
    labels = getattr(getattr(model, "config", None), "id2label", None)
    return ClassNames.from_id2label(labels) if labels else ClassNames()
