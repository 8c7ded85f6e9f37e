"""Where an image may go: near the original, and inside the box of valid images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from backlight.data.images import Preprocessing
from backlight.errors import InputError
from backlight.shapes import Float


@dataclass(frozen=True)
class Pixels:
    """How pixels, in [0, 1], become inputs: `scale`, units of the input a unit of a pixel, and the `box` (low, high).

    Each a number or a tensor that broadcasts to an image; None where it is not known.
    """

    scale: Any = None
    box: tuple[Any, Any] | None = None

    @classmethod
    def of(cls, preprocessing: Preprocessing | None, scale: Any, box: tuple[Any, Any] | None) -> Pixels:
        """Those of a preprocessing, x = (pixel - mean) / std, where they are not given themselves."""
        if preprocessing is not None:
            mean, std = (
                torch.tensor(values, dtype=torch.float64).reshape(3, 1, 1)
                for values in (preprocessing.mean, preprocessing.std)
            )
            scale = 1 / std if scale is None else scale
            box = (-mean / std, (1 - mean) / std) if box is None else box
        return cls(scale, box)


class Room:
    """The points that an attack may visit: between two tensors, in the floating-point numbers of the input.

    |x_adv - x| / scale, as computed, is never more than the bound: the corners are moved inwards by one step of the
    last bit where rounding would let them out. An input just outside the box may stay where it is.

    Raises:
        InputError: a bound without a scale, a clamp without a box, a scale that is not positive, inputs outside.
    """

    def __init__(self, x: Float[Tensor, "N *shape"], bound: float | None, clamp: bool, pixels: Pixels) -> None:
        if bound is not None and pixels.scale is None:
            raise InputError("the bound is in pixel units: give preprocessing=, or scale= (1 / std of each channel)")
        if clamp and pixels.box is None:
            raise InputError("valid images are not known: give preprocessing=, box=(low, high), or clamp=False")
        self.scale = _like(1.0 if pixels.scale is None else pixels.scale, x, "scale")
        if not bool((self.scale > 0).all()):
            raise InputError("the scale is positive: units of the input a unit of a pixel")
        self.low, self.high = torch.full_like(x, -torch.inf), torch.full_like(x, torch.inf)
        if bound is not None:
            self.low, self.high = _within(x, bound, self.scale)
        if clamp and pixels.box is not None:
            low, high = (_like(end, x, "box") for end in pixels.box)
            slack = 1e-3 * (high - low)
            if bool((x < low - slack).any() or (x > high + slack).any()):
                raise InputError("the input leaves the box of valid images: another box=, or clamp=False")
            self.low = torch.maximum(self.low, torch.minimum(low, x))
            self.high = torch.minimum(self.high, torch.maximum(high, x))

    def clamp(self, x: Float[Tensor, "N *shape"]) -> Float[Tensor, "N *shape"]:
        """The nearest point inside."""
        return torch.minimum(torch.maximum(x, self.low), self.high)


def _within(x: Tensor, bound: float, scale: Tensor) -> tuple[Tensor, Tensor]:
    """The corners of |x_adv - x| / scale <= bound, as it is computed."""
    radius = bound * scale
    radius = torch.where(radius / scale > bound, torch.nextafter(radius, torch.zeros_like(radius)), radius)
    low, high = x - radius, x + radius
    low = torch.where(x - low > radius, torch.nextafter(low, x), low)
    return low, torch.where(high - x > radius, torch.nextafter(high, x), high)


def _like(value: Any, x: Tensor, name: str) -> Tensor:
    """A number, or a tensor that broadcasts to images; a list has one entry a channel."""
    given = torch.as_tensor(value, device=x.device).to(x.dtype)
    if given.ndim == 1 and x.ndim > 1:
        given = given.reshape(-1, *(1,) * (x.ndim - 2))
    try:
        given.expand_as(x)
    except RuntimeError:
        raise InputError(f"{name} {list(given.shape)} does not broadcast to the input {list(x.shape)}") from None
    return given
