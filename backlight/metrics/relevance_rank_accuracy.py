"""RelevanceRankAccuracy: how many of the strongest positions, as many as the object has, lie on it?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from backlight.errors import UnknownNameError
from backlight.metrics.allowed import Check, one_of
from backlight.metrics.case import Case
from backlight.metrics.masks import refuse_other_masks
from backlight.metrics.metric import Metric
from backlight.metrics.relevance import PARTS, of_each_method, part_of
from backlight.shapes import Bool, Float, Int

RANKED = (*PARTS, "signed")


def relevance_rank_accuracy(
    attributions: Tensor, masks: Bool[Tensor, "N H W"], *, part: str = "positive"
) -> Float[Tensor, "*M N"]:
    """|the |G| strongest positions, and G| / |G|, with G the object's mask (Arras, Osman, Samek 2022).

    Higher is better, in [0, 1]; a constant map scores the mask's share of the area, since ties at the last rank are
    counted by their expected value under a random order. NaN where the mask is empty.

    Args:
        attributions: `[N, C, H, W]`, `[N, 1, H, W]`, or either with a leading axis of methods; summed over channels.
        masks: where the object is.
        part: rank the "positive" part, all else being tied; "absolute" values; or "signed" ones, as Quantus.

    Raises:
        InputError: other masks, or maps that do not lie on them.
        UnknownNameError: another part.
    """
    if part not in RANKED:
        raise UnknownNameError("part of a map", part, RANKED)
    refuse_other_masks(masks)
    inside = masks.flatten(1)

    def accuracy(values: Tensor) -> Tensor:
        flat, held = values.flatten(1), inside.to(values.device)
        size = held.sum(-1)
        chosen = strongest(flat if part == "signed" else part_of(flat, part), size)
        return torch.where(size > 0, (chosen * held).sum(-1) / size, torch.nan)

    return of_each_method(accuracy, attributions, masks=masks)


def strongest(values: Float[Tensor, "N S"], count: Int[Tensor, "N"]) -> Float[Tensor, "N S"]:
    """How surely each entry is among the `count` largest, ties at the last place being drawn by lot.

    1 above the last place's value, 0 below it; entries that tie for r places among t share them, r / t each. Sums to
    `count`.
    """
    order = values.sort(-1, descending=True).values
    count = count.to(values.device)[:, None]
    last = order.gather(-1, (count - 1).clamp(min=0))
    above, tied = values > last, values == last
    share = (count - above.sum(-1, keepdim=True)).to(values) / tied.sum(-1, keepdim=True)
    chosen = torch.where(above, 1.0, torch.where(tied, share, 0.0)).to(values)
    return torch.where(count > 0, chosen, 0.0)


@dataclass(frozen=True, kw_only=True)
class RelevanceRankAccuracy(Metric):
    """The share of a map's strongest positions that lie on the object."""

    source: ClassVar[str] = "Arras, Osman, Samek 2022 (CLEVR-XAI)"
    formula: ClassVar[str] = "|top-|G| positions of phi+, and G| / |G|"
    needs: ClassVar[tuple[str, ...]] = ("masks",)
    presets: ClassVar[dict[str, dict[str, Any]]] = {"clevr": {}, "quantus": {"part": "signed"}}
    allowed: ClassVar[dict[str, Check]] = {
        "part": one_of(RANKED, "part of a map"),
    }

    part: str = "positive"

    def __call__(self, case: Case) -> Tensor:
        return relevance_rank_accuracy(case.attributions, case.object_masks(), **self.settings())

    @property
    def sees_sign(self) -> bool:
        return self.part != "absolute"
