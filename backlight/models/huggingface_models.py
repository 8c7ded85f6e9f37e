"""Hugging Face image classifiers. Their outputs are objects with `.logits`; targets read those."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from backlight.data.classes import ClassNames
from backlight.data.images import Fit, Interpolation, Preprocessing, three
from backlight.errors import MissingExtraError, ModelError, UnknownNameError
from backlight.models.checkpoints import load_strictly, read_state_dict
from backlight.models.hub import fetching
from backlight.models.layers import layer_names
from backlight.models.loaded import LoadedModel, Request

RESAMPLING: dict[int, Interpolation] = {
    0: "nearest",
    1: "lanczos",
    2: "bilinear",
    3: "bicubic",
    4: "box",
    5: "hamming",
}  # PIL's numbers


def names() -> list[str]:
    """The model types that have an image classifier ("vit", "swin", ...). Raises `MissingExtraError`."""
    _transformers()
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES

    return sorted(MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES)


def knows(name: str) -> bool:
    """Whether the name looks like ORG/NAME or is a folder with a `config.json`; the hub is not asked."""
    return (Path(name) / "config.json").is_file() or ("/" in name and not name.startswith((".", "/")))


def build(name: str, request: Request) -> LoadedModel:
    """ORG/NAME of the hub, a local folder that `save_pretrained` wrote, or, without weights of its own, a model type.

    Raises:
        UnknownNameError: neither of the three.
        ModelError: weights that cannot be fetched, do not fit, or have no classifier.
        MissingExtraError: transformers is not installed.
    """
    transformers = _transformers()
    is_type = not knows(name)
    if is_type and name not in names():
        raise UnknownNameError("Hugging Face model type", name, names(), "models of the hub are hf:ORG/NAME")
    if is_type and request.fetch:
        raise ModelError(f"'hf:{name}' is an architecture: give weights=FILE, pretrained=False, or hf:ORG/NAME")
    model: Any = _fetched(name, transformers) if request.fetch else _from_config(name, is_type, request, transformers)
    if request.weights is not None:
        load_strictly(model, read_state_dict(request.weights), request.source(""))
    return LoadedModel(
        name=name,
        model=model.eval(),
        preprocessing=request.preprocessing or preprocessing(_processor(name, is_type, transformers), model),
        classes=ClassNames.from_id2label(model.config.id2label),
        layers=layer_names(model),
        source=request.source(f"Hugging Face {name}, licence: see its model card"),
    )


def preprocessing(processor: Any, model: nn.Module) -> Preprocessing:
    """An image processor's settings as resize, crop and normalisation on PIL.

    The settings are read by many conventions, so the result is checked: both must make the same of a probe picture.

    Raises:
        ModelError: the processor does something else (flips the channels, keeps the proportions, cuts into patches).
    """
    kind = type(model if processor is None else processor).__name__
    unknown = ModelError(f"no preprocessing is known that fits {kind}: give preprocessing=Preprocessing(...)")
    if processor is None:
        raise unknown
    try:
        read = _read(processor)
        theirs = torch.as_tensor(processor(_probe(), return_tensors="pt")["pixel_values"])[0]
    except Exception:  # settings that are absent or of another kind fail in as many ways as there are processors
        raise unknown from None
    ours = read.tensor(_probe())
    if theirs.shape != ours.shape or (theirs - ours).abs().mean() > 0.005 * ours.std():
        raise unknown
    return read


def _read(processor: Any) -> Preprocessing:
    size, resize, fit = _sizes(processor)
    scale = 255 * float(processor.rescale_factor) if processor.do_rescale else 255.0
    shift = 1.0 if getattr(processor, "rescale_offset", False) else 0.0
    mean, std = (processor.image_mean, processor.image_std) if processor.do_normalize else ((0.0,) * 3, (1.0,) * 3)
    return Preprocessing(
        size=size,
        resize=resize,
        interpolation=RESAMPLING[int(processor.resample)],
        mean=three((float(m) + shift) / scale for m in mean),
        std=three(float(s) / scale for s in std),
        fit=fit,
    )


def _probe() -> Image.Image:
    """A smooth picture, wider than high, without symmetries, and different in every channel."""
    down, across = np.mgrid[0:200, 0:300] / 300
    channels = (across, down * across + 0.3, 0.5 + 0.5 * np.cos(5 * across + 2 * down))
    return Image.fromarray((np.stack(channels, axis=-1) * 255).clip(0, 255).astype(np.uint8))


def _sizes(processor: Any) -> tuple[tuple[int, int], tuple[int, int], Fit]:
    """The size after the crop, the size to resize to, and how (`Preprocessing.fit`)."""
    own = _entries(processor.size)
    crop_pct = getattr(processor, "crop_pct", None)
    crops = getattr(processor, "do_center_crop", None) and getattr(processor, "crop_size", None)
    fit: Fit = "squash" if "height" in own else "cover"
    box = (own["height"], own["width"]) if fit == "squash" else (own["shortest_edge"], own["shortest_edge"])
    if crops:
        cut = _entries(processor.crop_size)
        size = (cut["height"], cut["width"])
        if crop_pct:  # PoolFormer's processor divides, too
            box, fit = (int(box[0] / crop_pct), int(box[1] / crop_pct)), "cover"
        return size, box, fit
    if crop_pct and fit == "cover":  # ConvNeXt's: small sizes are cropped, from 384 pixels on pictures are squashed
        side = int(box[0] / crop_pct)
        return (box, box, "squash") if box[0] >= 384 else (box, (side, side), "cover")
    return box, box, fit


def _entries(size: Any) -> dict[str, int]:
    entries = dict(size) if isinstance(size, Mapping) else dict(vars(size)) if hasattr(size, "__dict__") else {}
    return {key: int(value) for key, value in entries.items() if value is not None}


def _fetched(name: str, transformers: ModuleType) -> nn.Module:
    with fetching(f"hf:{name}"):
        model, info = transformers.AutoModelForImageClassification.from_pretrained(name, output_loading_info=True)
    if info["missing_keys"]:
        listed = ", ".join(sorted(info["missing_keys"])[:4])
        raise ModelError(f"'hf:{name}' is no image classifier: it has no weights for {listed}")
    return model


def _from_config(name: str, is_type: bool, request: Request, transformers: ModuleType) -> nn.Module:
    labels = {} if request.outputs is None else {"num_labels": request.outputs}
    if is_type:
        config = transformers.AutoConfig.for_model(name, **labels)
    else:
        with fetching(f"hf:{name}"):
            config = transformers.AutoConfig.from_pretrained(name, **labels)
    return transformers.AutoModelForImageClassification.from_config(config)


def _processor(name: str, is_type: bool, transformers: ModuleType) -> Any:
    """The model's image processor; for a bare model type, the type's processor as it is by default."""
    if not is_type:
        try:
            with fetching(f"hf:{name}"):
                return transformers.AutoImageProcessor.from_pretrained(name)
        except ModelError:
            return None  # the weights are here by now: the folder or repository has no processor
    from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES

    entry = IMAGE_PROCESSOR_MAPPING_NAMES.get(name, ())
    choices = entry.values() if isinstance(entry, Mapping) else (entry,) if isinstance(entry, str) else entry
    for choice in choices:
        try:
            return getattr(transformers, choice)()
        except (ImportError, AttributeError, TypeError):
            continue  # the processor of a back end that is not installed
    return None


def _transformers() -> ModuleType:
    try:
        import transformers
    except ModuleNotFoundError as error:
        raise MissingExtraError(error.name or "transformers", "hf") from None
    return transformers
