"""Sparseness: is a map's mass on few entries?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from backlight.errors import InputError
from backlight.metrics.allowed import NOT_NEGATIVE, Check, one_of
from backlight.metrics.case import Case
from backlight.metrics.metric import Metric
from backlight.metrics.relevance import PARTS, UNITS, of_each_method, part_of
from backlight.shapes import Float


def sparseness(
    attributions: Tensor, *, unit: str = "position", part: str = "absolute", offset: float = 0.0
) -> Float[Tensor, "*M N"]:
    """The Gini index of a map's d values v: 1 - 2 sum_k v_(k) / |v|_1 (d - k + 1/2) / d, with v_(1) the least.

    Chalasani et al. 2020; iERF framework, equation 33. Higher is sparser: 0 for a constant map, 1 - 1/d where one value
    is not 0; NaN for a map of zeros.

    Args:
        attributions: `[N, C, H, W]`, or with a leading axis of methods.
        unit: "position", the signed sum over channels; "feature", every entry by itself.
        part: "absolute" values, or the "positive" part.
        offset: added to all values after they are divided by the largest of their own map; Quantus adds 1e-7.

    Raises:
        InputError: maps without entries, or a negative offset.
        UnknownNameError: another unit or part.
    """
    if not offset >= 0:
        raise InputError(f"the offset must be at least 0, got {offset}")
    return of_each_method(lambda values: gini(part_of(values, part).flatten(1), offset), attributions, unit)


def gini(values: Float[Tensor, "N S"], offset: float = 0.0) -> Float[Tensor, "N"]:
    """The Gini index of values of at least 0, after division by their largest and `offset`; NaN where they sum to 0."""
    largest = values.amax(-1, keepdim=True)
    values = (torch.where(largest > 0, values / largest, values) + offset).sort(-1).values
    count = values.shape[-1]
    weights = torch.arange(1 - count, count, 2, device=values.device).to(values)  # 2 k - d - 1
    total = values.sum(-1)
    return torch.where(total > 0, values @ weights / (count * total), torch.nan).clamp(min=0)


@dataclass(frozen=True, kw_only=True)
class Sparseness(Metric):
    """The Gini index of a map; settings as in `sparseness`."""

    source: ClassVar[str] = "Chalasani et al. 2020; iERF framework, equation 33"
    formula: ClassVar[str] = "1 - 2 sum_k v_(k) / |v|_1 (d - k + 1/2) / d, v = |sum_c phi_c| in ascending order"
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "ierf": {},
        "positive": {"part": "positive"},
        "quantus": {"offset": 1e-7},
    }
    allowed: ClassVar[dict[str, Check]] = {
        "unit": one_of(UNITS),
        "part": one_of(PARTS, "part of a map"),
        "offset": NOT_NEGATIVE,
    }

    unit: str = "position"
    part: str = "absolute"
    offset: float = 0.0

    def __call__(self, case: Case) -> Tensor:
        return sparseness(case.attributions, **self.settings())

    @property
    def sees_sign(self) -> bool:
        return self.part == "positive"
