"""The shape that all metrics share: settings, then scores of every method at every sample of a case."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from backlight.errors import UnknownNameError
from backlight.metrics.allowed import Check
from backlight.metrics.case import Case
from backlight.shapes import Float


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A metric with its settings; a thin class around a pure function of the same module.

    `source`: the paper. `formula`: what is computed. `higher_is_better`: the direction. `needs`: what a case must have
    besides maps: "explainers" where the method is run again, "masks" where the object is known, "classes" where the
    target is a class index. `presets`: settings by the protocol they belong to; the defaults are the first. `allowed`:
    what settings may be, by name; see `backlight.metrics.allowed`.

    Raises:
        InputError, UnknownNameError: a setting that no sample can do with.
    """

    source: ClassVar[str] = ""
    formula: ClassVar[str] = ""
    higher_is_better: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ()
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    allowed: ClassVar[Mapping[str, Check]] = {}

    def __post_init__(self) -> None:
        for name, check in self.allowed.items():
            check(name, getattr(self, name))

    def __call__(self, case: Case) -> Float[Tensor, "M N"]:
        """The scores, in double precision on the CPU; NaN where the metric is not defined."""
        raise NotImplementedError

    @property
    def sees_sign(self) -> bool:
        """Whether a map and its negative may get different scores."""
        return False

    @classmethod
    def preset(cls, name: str, **settings: Any) -> Self:
        """The metric in a protocol's settings, some of them replaced.

        Raises:
            UnknownNameError: a protocol that is not in `presets`.
        """
        if name not in cls.presets:
            raise UnknownNameError(f"preset of {cls.__name__}", name, cls.presets)
        return cls(**{**cls.presets[name], **settings})

    def _of_maps(self, function: Callable[..., Tensor], case: Case) -> Float[Tensor, "M N"]:
        """A function of a network and maps, in the metric's settings, on all maps of a case at once."""
        given = {"seed": case.seed, "batch_size": case.batch_size, **self.settings()}
        return function(case.scorer, case.inputs, case.attributions, case.chosen, **given)

    def _of_explainers(self, function: Callable[..., Tensor], case: Case) -> Float[Tensor, "M N"]:
        """A function that explains again, in the metric's settings, on one explainer of a case after the other."""
        given = {"seed": case.seed, "batch_size": case.batch_size, **self.settings()}
        found = [
            function(case.explainer(name), case.inputs, case.chosen, attributions=case.map(name), **given)
            for name in case.names
        ]
        return torch.stack(found)

    def settings(self) -> dict[str, Any]:
        """`{name: value}` of the settings."""
        return {field.name: getattr(self, field.name) for field in fields(self)}
