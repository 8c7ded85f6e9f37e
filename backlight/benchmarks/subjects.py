"""What a benchmark works on: networks behind a front of pixels, and pictures, alone or composed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from backlight.benchmarks.protocols import MOSAICS, OBJECTS, STAGE
from backlight.data.classes import ClassNames
from backlight.data.images import Preprocessing
from backlight.data.labelled import LabelledFolder, Sample
from backlight.data.mosaics import Layout, mosaics, pairs
from backlight.errors import InputError, SiteError
from backlight.evaluation.identity import combined_hash
from backlight.evaluation.samples import Samples
from backlight.models import load
from backlight.models.layers import resolve_layer

NETWORKS = ("efficientnet_lite0", "mobilenet_v2")
DATA = Path(__file__).resolve().parents[3] / "shared" / "data" / "images" / "photos_500"


@dataclass(frozen=True)
class Subject:
    """A network that takes pictures in [-1, 1], `size` pixels square, and the names of its outputs.

    `prefix`: of the layers' names, where the network stands behind a front.
    """

    name: str
    model: nn.Module
    classes: ClassNames = field(default_factory=ClassNames)
    size: int = 224
    prefix: str = ""

    @property
    def preprocessing(self) -> Preprocessing:
        """That of the pullback papers, for the networks of any of them."""
        return Preprocessing.paper(self.size)

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next((tensor.device for tensor in self.model.parameters()), torch.device("cpu"))

    def layer(self, name: str) -> str:
        """A layer's name in `model`; `STAGE` is found by its size.

        Raises:
            SiteError: no layer of that size; UnknownNameError: no layer of that name.
        """
        if name == STAGE:
            return stage(self.model, torch.zeros(1, 3, self.size, self.size, device=self.device), 8)
        resolve_layer(self.model, self.prefix + name)
        return self.prefix + name


def open_subject(
    name: str,
    weights: str | None = None,
    random_weights: bool = False,
    classes: str | None = None,
    device: str | torch.device = "cpu",
) -> Subject:
    """A network by a name of `backlight.load`, in its own resolution.

    Raises:
        BacklightError: a network or weights that cannot be had.
    """
    loaded = load(name, weights=weights, pretrained=not random_weights, classes=classes)
    loaded.model.to(device)
    height, width = loaded.preprocessing.size
    if height != width:
        raise InputError(f"the protocols are of square pictures; {name!r} takes {height} x {width}")
    return Subject(loaded.name, loaded.pixels(), loaded.classes, height, "network.")


def stage(model: nn.Module, x: Tensor, factor: int) -> str:
    """The outermost, then last, layer that gives maps of 1 / factor of the input's sides.

    Raises:
        SiteError: there is none.
    """
    found: list[str] = []
    sides = [side // factor for side in x.shape[2:]]

    def note(name: str) -> Callable[[nn.Module, object, object], None]:
        def hook(module: nn.Module, args: object, output: object) -> None:
            if isinstance(output, Tensor) and output.ndim == 4 and list(output.shape[2:]) == sides:
                found.append(name)

        return hook

    handles = [module.register_forward_hook(note(name)) for name, module in model.named_modules() if name]
    try:
        with torch.no_grad():
            model(x)
    finally:
        for handle in handles:
            handle.remove()
    if not found:
        raise SiteError(f"no layer gives maps of {sides[0]} x {sides[1]}, 1/{factor} of the input")
    outermost = min(name.count(".") for name in found)
    return [name for name in found if name.count(".") == outermost][-1]


@dataclass(frozen=True)
class Composed:
    """Pictures composed of labelled ones, as `Samples`; the mask is the target's tiles."""

    folder: LabelledFolder
    layouts: Sequence[Layout]
    size: int
    kind: str

    @property
    def names(self) -> list[str]:
        """A number, which says which sources, and in which order."""
        return [f"{self.kind} {place:04d}" for place in range(len(self.layouts))]

    @cached_property
    def sources(self) -> list[str]:
        """The pictures in the order of their names, as the published draws count them."""
        return sorted(self.folder.names)

    @property
    def fingerprint(self) -> str:
        """Of the pictures; the layouts follow from their labels and the seed that `kind` holds."""
        return hashlib.sha256(f"{self.kind} {self.folder.fingerprint}".encode()).hexdigest()

    def content(self, name: str) -> str:
        """A hash of the layout and of its sources' files. Raises `ImageError` where one cannot be read."""
        layout = self._layout(name)
        return combined_hash(repr(layout), *(self.folder.content(self.sources[place]) for place in layout.sources))

    def load(self, name: str) -> Sample:
        """A composed picture. Raises `ImageError` where a source cannot be read."""
        layout = self._layout(name)
        found = layout.picture(lambda index: self.folder.load(self.sources[index]).inputs, self.size)
        return Sample(name, found, layout.target, layout.mask(self.size))

    def _layout(self, name: str) -> Layout:
        return self.layouts[int(name.rsplit(" ", 1)[1])]


def data_folder(data: Path | None) -> Path:
    """The folder that was named, or the photographs beside the repository.

    Raises:
        InputError: none was named, and there are no photographs.
    """
    if data is None and not DATA.is_dir():
        raise InputError(f"which pictures? Give --data FOLDER of labelled ones (there is none at {str(DATA)!r})")
    return data or DATA


def pictures(
    data: Path | None, subject: Subject, kind: str, number: int, masks: Path | None = None, seed: int = 314
) -> Samples:
    """The samples of a kind, `number` of them at most.

    `objects` are the pictures themselves where some have masks, else pairs.

    Raises:
        InputError: no folder was named, and there are no photographs beside the repository.
    """
    folder = data_folder(data)
    found = LabelledFolder(folder, subject.classes, subject.preprocessing, None, masks)
    if kind == MOSAICS or (kind == OBJECTS and not found.masked):
        labels = [target or 0 for _, target in sorted(found.targets.items())]
        layouts = (mosaics if kind == MOSAICS else pairs)(labels, number, seed=seed)
        return Composed(found, layouts, subject.size, f"{'mosaic' if kind == MOSAICS else 'pair'} {seed}")
    return LabelledFolder(folder, subject.classes, subject.preprocessing, number, masks)
