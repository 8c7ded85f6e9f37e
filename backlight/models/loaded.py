"""What `load` gives, and what it asks of the families of models."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from backlight.data.classes import ClassNames
from backlight.data.images import Preprocessing
from backlight.displayed import Displayed
from backlight.models.checkpoints import Weights
from backlight.models.pixels import PixelModel


@dataclass(frozen=True, repr=False)
class LoadedModel(Displayed):
    """A network with what is needed to use it.

    - `model`: in evaluation mode, of its own class; takes normalised inputs `[N, 3, H, W]`;
    - `preprocessing`: from pictures to those inputs;
    - `classes`: the names of the outputs; empty, with `unit="feature"`, where the outputs are features;
    - `layers`: the dotted names of the submodules, in module order;
    - `source`: where the weights come from, and their licence where it is known.
    """

    name: str
    model: nn.Module
    preprocessing: Preprocessing
    classes: ClassNames
    layers: tuple[str, ...]
    source: str

    def pixels(self) -> PixelModel:
        """The network behind a front that takes pictures in [-1, 1], `[N, 3, H, W]`."""
        return PixelModel(self.model, self.preprocessing.mean, self.preprocessing.std)


@dataclass(frozen=True)
class Request:
    """What the caller of `load` asked for, besides the name. `load` itself puts the caller's `classes` in place."""

    weights: Weights | None = None
    pretrained: bool = True
    classes: ClassNames | None = None
    preprocessing: Preprocessing | None = None

    @property
    def fetch(self) -> bool:
        """Whether the family's own weights are wanted."""
        return self.pretrained and self.weights is None

    @property
    def outputs(self) -> int | None:
        """How many outputs to build; None for the network's own number. Fetched weights bring their own head."""
        return len(self.classes) if self.classes and not self.fetch else None

    def source(self, own: str) -> str:
        """The `source` line: `own` for the family's weights."""
        if self.weights is None:
            return own if self.pretrained else "random weights"
        return "a state dict" if hasattr(self.weights, "keys") else f"the file {self.weights}"
