"""A case: samples, the network's score at them, and the explanations that are measured on it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from backlight.engine.targets import Logit, Target, output_tensor
from backlight.errors import InputError
from backlight.metrics.draws import Seed
from backlight.metrics.explainers import Explainer, as_explainer, explained
from backlight.metrics.maps import stacked
from backlight.metrics.scorer import BATCH_SIZE, Scorer
from backlight.shapes import Bool, Float, Int


@dataclass(eq=False)
class Case:
    """N samples and M explanations of them.

    Args:
        model: gives logits `[N, K]`.
        inputs: `[N, C, H, W]`.
        target: as in `backlight.attribute`; None: the class predicted at the samples.
        explainers: by name: methods of Backlight or Captum, or functions `(inputs, target) -> maps`.
        maps: by name, for what was explained elsewhere; `[N, C, H, W]` or `[N, 1, H, W]`. Names that are among the
            explainers too are not computed again.
        masks: where the object is, `[N, H, W]`.
        seed: of every draw; one for all samples, or one a sample.
        batch_size: the most samples in one pass of the network.

    Raises:
        InputError: no explanation, or masks and maps of other shapes.
    """

    model: nn.Module
    inputs: Float[Tensor, "N C H W"]
    target: Any = None
    explainers: Mapping[str, Any] = field(default_factory=dict)
    maps: Mapping[str, Tensor] = field(default_factory=dict)
    masks: Bool[Tensor, "N H W"] | None = None
    seed: Seed = 0
    batch_size: int = BATCH_SIZE

    def __post_init__(self) -> None:
        self._explainers: dict[str, Explainer] = {
            name: as_explainer(explainer) for name, explainer in self.explainers.items()
        }
        self._maps = dict(self.maps)
        if not self.names:
            raise InputError("a case needs at least one explanation: explainers={name: ...} or maps={name: ...}")
        shape = (len(self.inputs), *self.inputs.shape[2:])
        if self.masks is not None and (self.masks.shape != shape or self.masks.dtype != torch.bool):
            raise InputError(f"expected bool masks {list(shape)}, got {self.masks.dtype} {list(self.masks.shape)}")
        self.scorer = Scorer(self.model, self.inputs, self.target, self.batch_size)
        self.chosen: Target = self.scorer.target

    @property
    def names(self) -> list[str]:
        """The explanations, in the order of the scores' first axis."""
        return list(dict.fromkeys((*self._explainers, *self._maps)))

    def map(self, name: str) -> Tensor:
        """One explanation's maps; computed when first asked for."""
        if name not in self._maps:
            self._maps[name] = explained(self._explainers[name], self.inputs, self.chosen, self.batch_size)
        return self._maps[name]

    @cached_property
    def attributions(self) -> Float[Tensor, "M N C H W"]:
        """All maps, at the shape of the samples."""
        return torch.stack([self._of_one_method(name) for name in self.names])

    def _of_one_method(self, name: str) -> Float[Tensor, "N C H W"]:
        maps, single = stacked(self.map(name), self.inputs)
        if not single:
            raise InputError(
                f"{name!r} is one explanation: expected maps [N, C, H, W], got {list(self.map(name).shape)}"
            )
        return maps[0]

    def explainer(self, name: str) -> Explainer:
        """What makes an explanation. Raises `InputError` where only its maps were given."""
        if name not in self._explainers:
            raise InputError(f"only maps of {name!r} were given: this metric runs the method again, give its explainer")
        return self._explainers[name]

    @cached_property
    def classes(self) -> Int[Tensor, "N"]:
        """The class index of each sample's target. Raises `InputError` where the target is not one class."""
        index = self.chosen.index if isinstance(self.chosen, Logit) else None
        if index is None or isinstance(index, tuple):
            raise InputError(f"this metric needs a class index as target, not {self.chosen!r}")
        return torch.as_tensor(index).reshape(-1).expand(len(self.inputs)).cpu()

    @cached_property
    def class_count(self) -> int:
        """The number of classes, K."""
        with torch.no_grad():
            return output_tensor(self.model(self.inputs[:1])).shape[-1]

    def object_masks(self) -> Bool[Tensor, "N H W"]:
        """The masks. Raises `InputError` where there are none."""
        if self.masks is None:
            raise InputError("this metric compares maps with the object's mask: give masks=[N, H, W]")
        return self.masks
