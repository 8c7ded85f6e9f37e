"""ScoreCAM and AblationCAM: pytorch-grad-cam's, under Backlight's `attribute`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from backlight.errors import InputError, MissingExtraError, ModelError, NonFiniteError, SiteError, UnknownNameError
from backlight.methods.baseline import PERTURBATIONS, Baseline, Scored
from backlight.methods.feature_maps import feature_maps
from backlight.shapes import Float


def _library(name: str) -> Any:
    try:
        return import_module(f"pytorch_grad_cam.{name}")
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            "grad-cam" if "pytorch_grad_cam" in str(error) else str(error.name), "baselines"
        ) from None


@dataclass(frozen=True)
class _Seen:
    """What a module gave in one forward pass, and whether that was written to afterwards."""

    module: nn.Module
    output: Any
    version: int
    calls: int

    @property
    def is_written_to(self) -> bool:
        return isinstance(self.output, Tensor) and self.output._version != self.version


@dataclass(kw_only=True)
class GradCAMLibraryMethod(Baseline):
    """A method of pytorch-grad-cam: of each image, a map in [0, 1], resized by OpenCV, in single precision.

    `layer`: a module by name, since the library hooks modules; None: the last that gives a map with more than one
    position, pooling aside. `grid`, `channels_last`: how tokens and maps lie, see `backlight.methods.feature_maps`.
    """

    positions: ClassVar[bool] = True

    layer: str | None = None
    grid: tuple[int, ...] | None = None
    channels_last: bool | None = None

    def cam(self, scored: Scored, layer: nn.Module, maps: Tensor, settings: dict[str, Any]) -> tuple[Any, Any]:
        """(the library's module of this method, its object)."""
        raise NotImplementedError

    def attribute_one(self, scored: Scored, x: Tensor, limit: int | None) -> Float[Tensor, "1 1 H W"]:
        if x.ndim != 4:
            raise InputError(f"{type(self).__name__} takes images [N, C, H, W], got {list(x.shape)}")
        scored.limit = None
        module, raw = self.chosen(scored, x)

        def reshape(values: Tensor) -> Tensor:
            return self._maps(values, x).to(torch.promote_types(values.dtype, torch.float32))  # NumPy has no bfloat16

        training = {id(part): part.training for part in scored.modules()}
        settings = {"reshape_transform": reshape}
        with torch.no_grad(), np.errstate(all="ignore"):
            library, cam = self.cam(scored, module, raw, settings)
            for part in scored.modules():
                part.training = training[id(part)]  # the library sets all to evaluation
            cam.batch_size = limit or PERTURBATIONS
            try:
                with _silent(library):
                    found = cam(x, [_identity])
            finally:
                cam.activations_and_grads.release()
        if not np.isfinite(found).all():
            raise NonFiniteError(f"{type(self).__name__} at this layer is not finite: {self.undefined}")
        return torch.from_numpy(found)[:, None]

    undefined: ClassVar[str] = "another layer or target"

    def chosen(self, scored: Scored, x: Tensor) -> tuple[nn.Module, Tensor]:
        """The module to explain at, and its output.

        Raises:
            UnknownNameError: a layer that is no module.
            SiteError: a module that gives no map.
            ModelError: a module that runs several times, gives a tuple, or is written to in place afterwards.
        """
        names = [name.removeprefix("model.") for name, _ in scored.named_modules() if name.startswith("model.")]
        if self.layer is not None and self.layer not in names:
            raise UnknownNameError("layer", self.layer, names, "pytorch-grad-cam hooks modules")
        seen = _seen(scored, x)
        name = self._last(seen, x) if self.layer is None else self.layer
        one = seen.get(name)
        if one is None:
            raise SiteError(f"layer {name!r} does not run in the forward pass")
        problem = (
            f"runs {one.calls} times"
            if one.calls > 1
            else f"gives a {type(one.output).__name__}"
            if not isinstance(one.output, Tensor)
            else "is written to in place by what comes after it"
            if one.is_written_to
            else ""
        )
        if problem:
            raise ModelError(f"pytorch-grad-cam cannot explain at {name!r}, which {problem}: name another layer")
        self._maps(one.output, x)
        return one.module, one.output

    def _maps(self, values: Tensor, x: Tensor) -> Tensor:
        return feature_maps(values, x.shape[2:], self.grid, self.channels_last)

    def _last(self, seen: dict[str, _Seen], x: Tensor) -> str:
        pooled = {id(one.output) for one in seen.values() if "Pool" in type(one.module).__name__}
        for name, one in reversed(seen.items()):
            if not isinstance(one.output, Tensor):
                continue
            if one.output.ndim == x.ndim - 1 and one.output.shape[1] > 1:
                break  # tokens: a map before them, such as the patches' embedding, is far from the score
            known = one.output.ndim == x.ndim and id(one.output) not in pooled
            if known and one.calls == 1 and not one.is_written_to and self._maps(one.output, x)[0, 0].numel() > 1:
                return name
        raise SiteError("no module gives a map [N, C, H, W] with several positions: name a layer of tokens")


@dataclass(kw_only=True)
class ScoreCAM(GradCAMLibraryMethod):
    """Maps weighted by the softmax of the scores of the input masked by each map: one forward pass a channel."""

    source: ClassVar[str] = "Wang et al. 2020, by pytorch-grad-cam"
    formula: ClassVar[str] = "relu(sum_k w_k A_k) scaled to [0, 1], w = softmax_k s(x * upsampled, scaled A_k)"

    def cam(self, scored: Scored, layer: nn.Module, maps: Tensor, settings: dict[str, Any]) -> tuple[Any, Any]:
        library = _library("score_cam")
        return library, library.ScoreCAM(scored, [layer], **settings)


@dataclass(kw_only=True)
class AblationCAM(GradCAMLibraryMethod):
    """Maps weighted by the relative drop of the score when each is set to zero: one forward pass a channel.

    Where the smallest activation is not 0, the library sets channels to the smallest less 10^7, and not to zero as the
    paper does; `strict` refuses that.
    """

    source: ClassVar[str] = "Desai and Ramaswamy 2020, by pytorch-grad-cam"
    formula: ClassVar[str] = "relu(sum_k w_k A_k) scaled to [0, 1], w_k = (s - s without A_k) / s"
    undefined: ClassVar[str] = "it divides by the score, which is 0"

    def cam(self, scored: Scored, layer: nn.Module, maps: Tensor, settings: dict[str, Any]) -> tuple[Any, Any]:
        if self.strict and float(maps.min()) != 0:
            raise ModelError(
                f"pytorch-grad-cam ablates channels to -10^7 where the smallest activation is not 0 (here "
                f"{float(maps.min()):.3g}): name a layer that ends in a ReLU; strict=False lets it"
            )
        library, layers = _library("ablation_cam"), _library("ablation_layer")
        first = settings["reshape_transform"](maps).shape[1:] == maps.shape[1:]
        ablation = layers.AblationLayer() if first else layers.AblationLayerVit()
        return library, library.AblationCAM(scored, [layer], ablation_layer=ablation, **settings)


def _identity(score: Tensor) -> Tensor:
    return score


def _seen(scored: Scored, x: Tensor) -> dict[str, _Seen]:
    """What the modules of the model give in a forward pass, in the order in which they end."""
    seen: dict[str, _Seen] = {}
    handles = []
    for name, module in scored.model.named_modules():

        def note(module: nn.Module, args: Any, output: Any, name: str = name) -> None:
            before = seen.pop(name, None)
            version = output._version if isinstance(output, Tensor) else 0
            seen[name] = _Seen(module, output, version, 1 if before is None else before.calls + 1)

        if name:
            handles.append(module.register_forward_hook(note))
    try:
        with torch.no_grad():
            scored(x.clone())
    finally:
        for handle in handles:
            handle.remove()
    return seen


@contextmanager
def _silent(library: Any) -> Iterator[None]:
    """Without the library's progress bar for each image."""
    bars = library.tqdm
    library.tqdm = SimpleNamespace(tqdm=lambda steps: steps)
    try:
        yield
    finally:
        library.tqdm = bars
