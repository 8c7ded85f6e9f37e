"""SegmentationOverlap: the overlap of the object's mask with what a map would segment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from backlight.errors import InputError, UnknownNameError
from backlight.metrics.allowed import Check, one_of, within
from backlight.metrics.case import Case
from backlight.metrics.masks import boxes, refuse_other_masks
from backlight.metrics.metric import Metric
from backlight.metrics.relevance import PARTS, of_each_method, part_of
from backlight.metrics.relevance_rank_accuracy import strongest
from backlight.shapes import Bool, Float

SEGMENTS = ("area", "quantile", "cut")
SHAPES = ("mask", "box")


def segmentation_overlap(
    attributions: Tensor,
    masks: Bool[Tensor, "N H W"],
    *,
    segment: str = "area",
    quantile: float = 0.95,
    part: str = "positive",
    shape: str = "mask",
    hit: float | None = None,
    images: Float[Tensor, "N 3 H W"] | None = None,
) -> Float[Tensor, "*M N"]:
    """Intersection over union of the object's mask with the segment of a map. Higher is better, in [0, 1].

    A segment is made of the strongest positions; ties at its last place are counted by their expected value, so that a
    map without any relevance scores as a random segment of the same size. NaN where the mask is empty.

    Args:
        attributions: `[N, C, H, W]`, `[N, 1, H, W]`, or either with a leading axis of methods; summed over channels.
        masks: where the object is.
        segment: "area": as many positions as the object has, so that no map is punished for its spread and the true
            mask scores 1. "quantile": those above the `quantile` of the map. "cut": GrabCut in the picture's colours,
            seeded by the map's quantiles (Simonyan et al. 2014; `backlight.methods.weak_segmentation`, whose maps must
            not be constant: NaN).
        part: rank the "positive" part, or "absolute" values.
        shape: compare the segment's "mask", or its "box", with the object's. All ties are in the box.
        hit: 1 where the overlap is above this, else 0 (0.5 in the localisation task of ILSVRC); None: the overlap.
        images: the pictures in [0, 1], for "cut"; see `pictures`.

    Raises:
        InputError: other masks, maps that do not lie on them, a quantile that is not in [0, 1), or no images for "cut".
        UnknownNameError: another segment, shape or part.
        MissingExtraError: "cut" without OpenCV.
    """
    if segment not in SEGMENTS:
        raise UnknownNameError("segment", segment, SEGMENTS)
    if shape not in SHAPES:
        raise UnknownNameError("shape", shape, SHAPES)
    if not 0 <= quantile < 1 or (segment == "cut" and images is None):
        raise InputError(f"needs a quantile in [0, 1), and images for a cut, got {quantile} and images={images!r:.20}")
    refuse_other_masks(masks)
    objects = masks.flatten(1)

    def overlap(values: Tensor) -> Tensor:
        relevance = part_of(values, part)[:, 0]
        if segment == "cut":
            assert images is not None
            chosen = _cuts(relevance, images)
        else:
            sizes = objects.sum(-1)
            if segment == "quantile":
                sizes = torch.full_like(sizes, max(1, round((1 - quantile) * objects.shape[-1])))
            chosen = strongest(relevance.flatten(1), sizes)
        held = objects.to(chosen.device)
        if shape == "box":
            found = box_overlap((chosen > 0).reshape(relevance.shape), masks.to(chosen.device))
        else:
            found = _overlap(chosen, held)
        found = torch.where(held.any(-1) & ~chosen.isnan().any(-1), found, torch.nan)
        return found if hit is None else torch.where(found.isnan(), found, (found > hit).double())

    return of_each_method(overlap, attributions, masks=masks)


def pictures(
    inputs: Float[Tensor, "N C H W"], mean: Sequence[float] | None = None, std: Sequence[float] | None = None
) -> Float[Tensor, "N 3 H W"]:
    """A network's inputs as colours in [0, 1]: x std + mean, clipped; without them, stretched.

    Stretching takes an input's least value to 0 and its largest to 1, the same in all channels: what is alike stays so.

    Raises:
        InputError: other than 1 or 3 channels, or a mean or std for another number of them.
    """
    channels = inputs.shape[1]
    if channels not in (1, 3) or any(given is not None and len(given) not in (1, channels) for given in (mean, std)):
        raise InputError(f"expected 1 or 3 channels, and as many means and stds, got {channels}, {mean} and {std}")
    values = inputs.detach().cpu().double()
    if mean is None and std is None:
        low, high = values.flatten(1).amin(1), values.flatten(1).amax(1)
        values = (values - low[:, None, None, None]) / (high - low).clamp(min=1e-12)[:, None, None, None]
    else:
        scale, shift = (torch.tensor(given).double().reshape(-1, 1, 1) for given in (std or (1.0,), mean or (0.0,)))
        values = (values * scale + shift).clamp(0, 1)
    return values.expand(-1, 3, -1, -1)


def box_overlap(one: Bool[Tensor, "N H W"], other: Bool[Tensor, "N H W"]) -> Float[Tensor, "N"]:
    """Intersection over union of the boxes around two masks; NaN where both are empty."""
    first, second = boxes(one).double(), boxes(other).double()
    low, high = torch.maximum(first[:, :2], second[:, :2]), torch.minimum(first[:, 2:], second[:, 2:])
    shared = (high - low).clamp(min=0).prod(-1)
    areas = [(box[:, 2:] - box[:, :2]).prod(-1) for box in (first, second)]
    return shared / (areas[0] + areas[1] - shared)


def _overlap(chosen: Float[Tensor, "N S"], held: Bool[Tensor, "N S"]) -> Float[Tensor, "N"]:
    """Of a segment whose entries are chosen with these probabilities: expected intersection over expected union."""
    shared = (chosen * held).sum(-1)
    return shared / (chosen.sum(-1) + held.sum(-1) - shared)


def _cuts(relevance: Float[Tensor, "N H W"], images: Float[Tensor, "N 3 H W"]) -> Float[Tensor, "N S"]:
    """1 on the segments of the pictures, 0 beside; NaN where a map is constant."""
    from backlight.methods.weak_segmentation import weak_segmentation

    found = torch.full(relevance.shape, torch.nan, dtype=torch.float64)
    for row, (map_, image) in enumerate(zip(relevance.cpu(), images, strict=True)):
        if map_.min() < map_.max():
            found[row] = torch.from_numpy(weak_segmentation(image, map_).mask).double()
    return found.flatten(1)


@dataclass(frozen=True, kw_only=True)
class SegmentationOverlap(Metric):
    """Intersection over union of a map's segment with the object; settings as in `segmentation_overlap`.

    `mean`, `std`: of the case's inputs, for the colours of a "cut"; see `pictures`.
    """

    source: ClassVar[str] = "Simonyan, Vedaldi, Zisserman 2014, section 3.2"
    formula: ClassVar[str] = "|S and G| / |S or G|, S the |G| strongest positions of phi+"
    needs: ClassVar[tuple[str, ...]] = ("masks",)
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "area": {},
        "quantile": {"segment": "quantile"},
        "simonyan": {"segment": "cut", "part": "absolute", "shape": "box", "hit": 0.5},
    }
    allowed: ClassVar[dict[str, Check]] = {
        "segment": one_of(SEGMENTS),
        "quantile": within(0, 1, below=True),
        "part": one_of(PARTS, "part of a map"),
        "shape": one_of(SHAPES),
        "hit": within(0, 1, none=True),
    }

    segment: str = "area"
    quantile: float = 0.95
    part: str = "positive"
    shape: str = "mask"
    hit: float | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def __call__(self, case: Case) -> Tensor:
        settings = {name: value for name, value in self.settings().items() if name not in ("mean", "std")}
        images = pictures(case.inputs, self.mean, self.std) if self.segment == "cut" else None
        return segmentation_overlap(case.attributions, case.object_masks(), images=images, **settings)

    @property
    def sees_sign(self) -> bool:
        return self.part == "positive"
