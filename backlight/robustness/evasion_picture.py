"""Attacked pictures as files that a network's preprocessing reads as exactly the pixels that were attacked."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from PIL import Image

from backlight.data.images import Picture, Preprocessing
from backlight.errors import InputError
from backlight.robustness.evasion_outcome import levels
from backlight.shapes import Float, UInt8


def framed(
    image: Float[torch.Tensor, "3 H W"], original: Picture, preprocessing: Preprocessing
) -> UInt8[np.ndarray, "h w 3"]:
    """The 8-bit picture that `preprocessing` turns into `image`, rounded to 8 bits, bit for bit.

    A preprocessing that resizes to 256 and keeps the middle 224 x 224 would enlarge a file of 224 x 224, and lose the
    attack. So the attacked middle is put back into its frame, the resized original: resizing that does nothing, and
    the cut gives the middle. To be saved without loss, as PNG.

    Raises:
        InputError: an image of another size than the preprocessing's, or one whose frame is smaller than it.
    """
    size = preprocessing.size
    if tuple(image.shape[1:]) != size:
        raise InputError(f"expected an image of the size {size}, as the network takes it, got {list(image.shape[1:])}")
    middle = pixels = levels_of(image)
    if preprocessing.crop_square:
        frame = np.array(replace(preprocessing, size=preprocessing.resize).picture(original))
        top, left = (round((whole - part) / 2) for whole, part in zip(preprocessing.resize, size, strict=True))
        if min(top, left) < 0:
            raise InputError(f"{size} is larger than {preprocessing.resize}, to which pictures are resized")
        frame[top : top + size[0], left : left + size[1]] = middle
        pixels = frame
    if not np.array_equal(np.asarray(preprocessing.picture(Image.fromarray(pixels))), middle):
        raise InputError("no file gives this image by this preprocessing: save the network's input itself")
    return pixels


def levels_of(image: Float[torch.Tensor, "3 H W"]) -> UInt8[np.ndarray, "H W 3"]:
    """An image in [0, 1] as 8-bit pixels."""
    return levels(image.detach()).permute(1, 2, 0).to("cpu", torch.uint8).numpy()
