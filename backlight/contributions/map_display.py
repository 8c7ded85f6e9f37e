"""The display of contribution maps: a mask in [0, 1] that shows a picture where a mode takes its contribution from."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from backlight.contributions.maps import ContributionMaps
from backlight.errors import InputError, UnknownNameError
from backlight.shapes import Float


@dataclass(frozen=True)
class Display:
    """How a map becomes a mask: values, mean over colours, median filter, min-max to [0, 1], times contrast, clipped.

    `values`: "positive", positive entries of the map's positive part, others set to 0; or "absolute", of the whole map.
    `filter_first`: filter each colour, then take the mean. `size`: of the median's window, in pixels (1: none).
    """

    values: str = "positive"
    filter_first: bool = False
    size: int = 4
    contrast: float = 7.0

    def __post_init__(self) -> None:
        if self.values not in ("positive", "absolute"):
            raise UnknownNameError("values of a display", self.values, ["positive", "absolute"])
        if self.size < 1 or not self.contrast > 0:
            raise InputError(f"expected a window of at least 1 pixel and a contrast > 0, got {self}")


DISPLAYS = {"paper": Display(), "reference": Display("absolute", filter_first=True)}


def as_display(display: str | Display) -> Display:
    """A display by name ("paper": CODEC's section 10.8; "reference": what its code does instead), or as given.

    Raises:
        UnknownNameError: a name that is not in `DISPLAYS`.
    """
    if isinstance(display, Display):
        return display
    if display not in DISPLAYS:
        raise UnknownNameError("display", display, DISPLAYS)
    return DISPLAYS[display]


def map_masks(maps: ContributionMaps, display: str | Display = "paper") -> Float[Tensor, "M N H W"]:
    """The masks of all maps, in [0, 1]; see `display_mask`.

    Raises:
        InputError: maps without parts where the display shows the positive one, or maps that are no images.
    """
    chosen = as_display(display)
    if chosen.values == "absolute":
        return display_mask(maps.total, chosen)
    if maps.positive is None:
        raise InputError("the display shows the positive part: compute the maps with split=True")
    return display_mask(maps.positive, chosen)


def display_mask(
    maps: Float[Tensor, "*leading C H W"], display: str | Display = "paper"
) -> Float[Tensor, "*leading H W"]:
    """The mask that one map, or several, make: CODEC, section 10.8. A map without positive values masks everything.

    Raises:
        InputError: maps that are no images.
    """
    chosen = as_display(display)
    values = maps.to(torch.promote_types(maps.dtype, torch.float32))
    values = values.clamp(min=0) if chosen.values == "positive" else values.abs()
    if chosen.filter_first:
        values = median_filter(values, chosen.size).mean(-3)
    else:
        values = median_filter(values.mean(-3), chosen.size)
    low, high = values.amin((-2, -1), keepdim=True), values.amax((-2, -1), keepdim=True)
    scaled = torch.where(high > low, (values - low) / (high - low), 0.0)
    return (chosen.contrast * scaled).clamp(max=1)


def masked(
    images: Float[Tensor, "*leading C H W"], masks: Float[Tensor, "*more H W"], ground: float = 0.0
) -> Float[Tensor, "*all C H W"]:
    """The images where the masks are 1, `ground` where they are 0: the paper multiplies normalised images by the mask.

    For images in [-1, 1], ground 0 is grey and -1 black.
    """
    return ground + (images - ground) * masks.unsqueeze(-3).to(images)


def median_filter(values: Float[Tensor, "*leading H W"], size: int) -> Float[Tensor, "*leading H W"]:
    """The median of each size x size window, borders mirrored with their edge, as SciPy's `median_filter` has it.

    A window of even size reaches one pixel further up and to the left, and of its two middle values gives the larger.
    """
    if size == 1:
        return values
    before, after = size // 2, size - size // 2 - 1
    for axis in (-2, -1):
        length = values.shape[axis]
        place = torch.arange(-before, length + after, device=values.device) % (2 * length)
        values = values.index_select(axis, torch.where(place < length, place, 2 * length - 1 - place))
    windows = values.unfold(-2, size, 1).unfold(-2, size, 1).flatten(-2)
    return windows.kthvalue(size * size // 2 + 1).values
