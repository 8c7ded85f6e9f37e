"""AttributionLocalisation and EnergyPointingGame: how much of a map's relevance lies on the object?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from backlight.errors import UnknownNameError
from backlight.metrics.allowed import Check, one_of
from backlight.metrics.case import Case
from backlight.metrics.masks import boxed, refuse_other_masks
from backlight.metrics.metric import Metric
from backlight.metrics.relevance import PARTS, UNITS, of_each_method, part_of
from backlight.shapes import Bool, Float

REGIONS = ("mask", "box")


def attribution_localisation(
    attributions: Tensor,
    masks: Bool[Tensor, "N H W"],
    *,
    part: str = "positive",
    region: str = "mask",
    unit: str = "position",
    weighted: bool = False,
) -> Float[Tensor, "*M N"]:
    """R_in / R_tot: the share of the relevance that lies on the object.

    Kohlbrenner et al. 2020; iERF framework, equation 32. Higher is better, in [0, 1]; a constant map scores
    the region's share of the area. NaN where the mask is empty or there is no relevance.

    Args:
        attributions: `[N, C, H, W]`, `[N, 1, H, W]`, or either with a leading axis of methods.
        masks: where the object is.
        part: "positive", the positive part, as the papers define relevance; "absolute", which counts relevance against
            the class as well as for it, Quantus's default.
        region: the "mask", or the "box" around it (Score-CAM's energy-based pointing game; Wang et al. 2020).
        unit: "position": the part of the signed sum over channels. "feature": of every entry.
        weighted: divide by the region's share of the area (Kohlbrenner et al. 2020): a constant map scores
            1, and small objects can score more.

    Raises:
        InputError: other masks, or maps that do not lie on them.
        UnknownNameError: another part, region or unit.
    """
    if region not in REGIONS:
        raise UnknownNameError("region", region, REGIONS)
    refuse_other_masks(masks)
    held = boxed(masks) if region == "box" else masks
    area = held.flatten(1).double().mean(-1)

    def share(values: Tensor) -> Tensor:
        relevance, size = part_of(values, part), area.to(values.device)
        total = relevance.flatten(1).sum(-1)
        inside = torch.where(held[:, None].to(values.device), relevance, 0.0).flatten(1).sum(-1)
        found = inside / (total * size) if weighted else inside / total
        return torch.where((total > 0) & (size > 0), found, torch.nan)

    return of_each_method(share, attributions, unit, masks)


def energy_pointing_game(
    attributions: Tensor, masks: Bool[Tensor, "N H W"], *, unit: str = "position"
) -> Float[Tensor, "*M N"]:
    """The share of the positive relevance that lies in the object's box (Wang et al. 2020)."""
    return attribution_localisation(attributions, masks, region="box", unit=unit)


@dataclass(frozen=True, kw_only=True)
class AttributionLocalisation(Metric):
    """The share of relevance on the object; settings as in `attribution_localisation`."""

    source: ClassVar[str] = "Kohlbrenner et al. 2020; iERF framework, equation 32"
    formula: ClassVar[str] = "sum of phi+ on the object's mask / sum of phi+"
    needs: ClassVar[tuple[str, ...]] = ("masks",)
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "ierf": {},
        "kohlbrenner": {"region": "box"},
        "weighted": {"region": "box", "weighted": True},
        "quantus": {"part": "absolute"},
    }
    allowed: ClassVar[dict[str, Check]] = {
        "part": one_of(PARTS, "part of a map"),
        "region": one_of(REGIONS),
        "unit": one_of(UNITS),
    }

    part: str = "positive"
    region: str = "mask"
    unit: str = "position"
    weighted: bool = False

    def __call__(self, case: Case) -> Tensor:
        return attribution_localisation(case.attributions, case.object_masks(), **self.settings())

    @property
    def sees_sign(self) -> bool:
        return self.part == "positive"


@dataclass(frozen=True, kw_only=True)
class EnergyPointingGame(AttributionLocalisation):
    """The share of positive relevance in the object's box: a pointing game of all values, not of the largest."""

    source: ClassVar[str] = "Wang et al. 2020 (Score-CAM)"
    formula: ClassVar[str] = "sum of phi+ in the object's box / sum of phi+"
    presets: ClassVar[dict[str, dict[str, Any]]] = {"score-cam": {}, "mask": {"region": "mask"}}

    region: str = "box"
