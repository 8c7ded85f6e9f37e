"""PointingGame: does the largest value of a map lie on the object?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from backlight.errors import InputError, UnknownNameError
from backlight.metrics.allowed import NOT_NEGATIVE, Check, one_of
from backlight.metrics.case import Case
from backlight.metrics.masks import dilated, refuse_other_masks
from backlight.metrics.metric import Metric
from backlight.metrics.relevance import of_each_method
from backlight.shapes import Bool, Float

TIES = ("share", "any")


def pointing_game(
    attributions: Tensor, masks: Bool[Tensor, "N H W"], *, tolerance: float = 15.0, ties: str = "share"
) -> Float[Tensor, "*M N"]:
    """1 where the largest value lies on the object or within `tolerance` of it, else 0.

    Zhang et al. 2018. The mean over samples is hits / (hits + misses) (iERF framework, equation 31). Higher is better;
    NaN where the mask is empty. It sees signs: minus a map points elsewhere.

    Args:
        attributions: `[N, C, H, W]`, `[N, 1, H, W]`, or either with a leading axis of methods; summed over channels.
        masks: where the object is.
        tolerance: in pixels, Euclidean; 15 of images of 224 in both papers. A fraction below 1 is of the shorter side.
        ties: several positions may hold the largest value. "share": the part of them that lies on the object, which is
            what a random choice among them would score, so that a constant map scores the object's area. "any": 1
            where one of them does, as in Quantus, where a constant map always hits.

    Raises:
        InputError: a negative tolerance, other masks, or maps that do not lie on them.
        UnknownNameError: another way with ties.
    """
    if ties not in TIES:
        raise UnknownNameError("way with ties", ties, TIES)
    if not tolerance >= 0:
        raise InputError(f"the tolerance must be at least 0 pixels, got {tolerance}")
    refuse_other_masks(masks)
    radius = tolerance * min(masks.shape[1:]) if tolerance < 1 else tolerance
    wide = dilated(masks, radius).flatten(1)

    def hits(values: Tensor) -> Tensor:
        flat, inside = values.flatten(1), wide.to(values.device)
        largest = flat == flat.amax(-1, keepdim=True)
        held = (largest & inside).sum(-1).double()
        found = held / largest.sum(-1) if ties == "share" else (held > 0).double()
        return torch.where(inside.any(-1), found, torch.nan)

    return of_each_method(hits, attributions, masks=masks)


@dataclass(frozen=True, kw_only=True)
class PointingGame(Metric):
    """Whether a map's largest value lies on the object; settings as in `pointing_game`."""

    source: ClassVar[str] = "Zhang et al. 2018; iERF framework, equation 31"
    formula: ClassVar[str] = "1 if argmax sum_c phi_c lies within 15 px of the object's mask, else 0"
    needs: ClassVar[tuple[str, ...]] = ("masks",)
    presets: ClassVar[dict[str, dict[str, Any]]] = {"ierf": {}, "quantus": {"tolerance": 0.0, "ties": "any"}}
    allowed: ClassVar[dict[str, Check]] = {
        "tolerance": NOT_NEGATIVE,
        "ties": one_of(TIES, "way with ties"),
    }

    tolerance: float = 15.0
    ties: str = "share"

    def __call__(self, case: Case) -> Tensor:
        return pointing_game(case.attributions, case.object_masks(), **self.settings())

    @property
    def sees_sign(self) -> bool:
        return True
