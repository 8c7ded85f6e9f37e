"""Objects' masks: made wider, and the boxes around them."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from backlight.errors import InputError
from backlight.shapes import Bool, Int


def refuse_other_masks(masks: Any) -> None:
    """Raise `InputError` where masks are not bool `[N, H, W]`."""
    if not isinstance(masks, Tensor) or masks.dtype != torch.bool or masks.ndim != 3:
        what = f"{masks.dtype} {list(masks.shape)}" if isinstance(masks, Tensor) else type(masks).__name__
        raise InputError(f"expected masks [N, H, W] of torch.bool, True where the object is, got {what}")


def dilated(masks: Bool[Tensor, "N H W"], radius: float) -> Bool[Tensor, "N H W"]:
    """The positions whose distance from the mask, between centres of pixels, is at most `radius` (a Euclidean disc)."""
    height, width = (min(math.floor(radius), side - 1) for side in masks.shape[1:])
    if height < 1 and width < 1:
        return masks
    down, across = (torch.arange(-reach, reach + 1, device=masks.device) for reach in (height, width))
    disc = (down[:, None] ** 2 + across**2 <= radius**2).float()
    return F.conv2d(masks[:, None].float(), disc[None, None], padding=(height, width))[:, 0] > 0.5


def boxes(masks: Bool[Tensor, "*N H W"]) -> Int[Tensor, "*N 4"]:
    """(x0, y0, x1, y1), half-open, of the smallest box that holds each mask; zeros where it is empty."""
    corners = []
    for axis in (-2, -1):  # across, then down
        line = masks.any(axis).long()
        first, last = line.argmax(-1), line.shape[-1] - line.flip(-1).argmax(-1)
        corners.append((first, torch.where(line.any(-1), last, 0)))
    (left, right), (top, bottom) = corners
    return torch.stack([left, top, right, bottom], -1)


def boxed(masks: Bool[Tensor, "N H W"]) -> Bool[Tensor, "N H W"]:
    """The masks' boxes as masks: from the object's pixels to the rectangle around them."""
    left, top, right, bottom = boxes(masks)[..., None].unbind(-2)
    down, across = (torch.arange(side, device=masks.device) for side in masks.shape[1:])
    rows, columns = (down >= top) & (down < bottom), (across >= left) & (across < right)
    return rows[:, :, None] & columns[:, None]
