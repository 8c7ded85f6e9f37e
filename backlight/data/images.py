"""Reading pictures, and turning them into a network's inputs.

Every reader ends in an 8-bit RGB picture, turned upright; every failure ends in one `ImageError` that names the file.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from backlight.errors import ImageError, InputError
from backlight.shapes import Float

Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"]
Fit = Literal["cover", "squash", "contain"]
Picture = str | os.PathLike[str] | Image.Image | np.ndarray

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
FILTERS = {name: Image.Resampling[name.upper()] for name in Interpolation.__args__}  # type: ignore[attr-defined]
MAX_ASPECT = 16  # a picture longer than this times its width is first cut to it: 1 x 60000 would grow to gigabytes


def read_image(path: str | os.PathLike[str]) -> Image.Image:
    """Read a picture file as upright 8-bit RGB.

    The EXIF orientation is applied, transparency is laid over white, 16-bit greyscale is scaled to 8 bits (65535 to
    255), floating point grey is taken as [0, 1], and an animation gives its first frame.

    Raises:
        ImageError: no such file, a folder, not a picture, cut short, or too large to decode safely (Pillow's limit).
    """
    path = Path(path)
    if path.is_dir():
        raise ImageError(f"cannot read {str(path)!r}: it is a folder, not an image file")
    if not path.exists():
        raise ImageError(f"cannot read {str(path)!r}: there is no such file")
    if path.stat().st_size == 0:
        raise ImageError(f"cannot read {str(path)!r}: the file is empty")
    try:
        with Image.open(path) as image:
            image.load()
            return to_rgb(image)
    except Image.UnidentifiedImageError:
        raise ImageError(f"cannot read {str(path)!r}: it is not in an image format that Pillow knows") from None
    except Exception as error:  # Pillow's decoders raise nearly anything on broken bytes, SyntaxError included
        raise ImageError(f"cannot read {str(path)!r}: {_one_line(error)}") from None


def to_rgb(image: Image.Image) -> Image.Image:
    """An upright 8-bit RGB copy of a PIL image of any mode; see `read_image` for what is decided."""
    image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        values = np.nan_to_num(np.asarray(image, dtype=np.float64)) * 255
    elif image.mode == "I" or image.mode.startswith("I;16"):
        values = np.asarray(image).astype(np.float64) / 257
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    else:
        return image.convert("RGB")
    return Image.fromarray(values.round().clip(0, 255).astype(np.uint8)).convert("RGB")


def as_image(picture: Picture) -> Image.Image:
    """An RGB picture from a path, a PIL image, or an array `[H, W]`, `[H, W, 1]`, `[H, W, 3]`, `[H, W, 4]`.

    Arrays are uint8 in [0, 255], uint16 in [0, 65535], bool, or floating point in [0, 1].

    Raises:
        ImageError: a file that cannot be read, or a picture without pixels.
        InputError: an array of another shape, type or range.
    """
    if isinstance(picture, np.ndarray):
        picture = _from_array(picture)
    elif not isinstance(picture, Image.Image):
        if not isinstance(picture, (str, os.PathLike)):
            raise InputError(f"expected a path, a PIL image or a numpy array, got {type(picture).__name__}")
        return read_image(picture)
    if 0 in picture.size:
        raise ImageError(f"an image of {picture.width} x {picture.height} has no pixels")
    return to_rgb(picture)


def _from_array(array: np.ndarray) -> Image.Image:
    shape = array.shape
    if array.ndim == 3 and shape[-1] == 1:
        array = array[..., 0]
    if array.ndim != 2 and not (array.ndim == 3 and shape[-1] in (3, 4)):
        raise InputError(f"expected an image array [H, W], [H, W, 3] or [H, W, 4], got {list(shape)}")
    if 0 in shape:
        raise ImageError(f"an image array of shape {list(shape)} has no pixels")
    if array.dtype == np.uint16:
        array = array / 65535
    elif array.dtype == np.bool_:
        array = array.astype(np.float64)
    if np.issubdtype(array.dtype, np.floating):
        if not (array.min() >= 0 and array.max() <= 1):
            raise InputError(f"expected a floating point image in [0, 1], got [{array.min():.3g}, {array.max():.3g}]")
        array = (array.astype(np.float64) * 255).round().astype(np.uint8)
    if array.dtype != np.uint8:
        raise InputError(f"expected an image array of uint8, uint16, bool or floating point, got {array.dtype}")
    return Image.fromarray(np.ascontiguousarray(array))


def _one_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


@dataclass(frozen=True)
class Preprocessing:
    """From a picture to a network's input: resize, centre-crop, scale to [0, 1], then (x - mean) / std.

    `resize` is the height and width to resize to before the crop to `size`, both in pixels, (height, width):

    - `fit="cover"`: keep the proportions and cover the box (for a square box: resize the shorter side);
    - `fit="squash"`: resize to exactly the box;
    - `fit="contain"`: keep the proportions, fit into the box, and pad with the mean colour.

    `crop_square=False` resizes square pictures straight to `size`, whatever `resize` is.

    Raises:
        InputError: a size that is not positive, a mean or std that is not three numbers, an unknown filter or fit.
    """

    size: tuple[int, int] = (224, 224)
    resize: tuple[int, int] = (256, 256)
    interpolation: Interpolation = "bilinear"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    fit: Fit = "cover"
    crop_square: bool = True

    def __post_init__(self) -> None:
        if min(*self.size, *self.resize) < 1:
            raise InputError(f"expected sizes of at least one pixel, got size {self.size} and resize {self.resize}")
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise InputError(f"expected three means and three positive stds, got {self.mean} and {self.std}")
        if self.interpolation not in FILTERS or self.fit not in Fit.__args__:  # type: ignore[attr-defined]
            raise InputError(f"unknown interpolation {self.interpolation!r} or fit {self.fit!r}")

    @classmethod
    def from_crop(cls, size: int | tuple[int, int], crop_pct: float = 1.0, **settings: Any) -> Preprocessing:
        """timm's convention: resize to floor(size / crop_pct), centre-crop to `size`."""
        height, width = (size, size) if isinstance(size, int) else size
        return cls((height, width), (int(height / crop_pct), int(width / crop_pct)), **settings)

    @classmethod
    def paper(cls, size: int = 224) -> Preprocessing:
        """The pullback papers' protocol, whose tensors lie in [-1, 1], as `LoadedModel.pixels()` takes them.

        Square pictures are resized to 224; others by their shorter side to 256, then centre-cropped to 224; bilinear.
        """
        side, half = round(size * 256 / 224), (0.5, 0.5, 0.5)
        return cls((size, size), (side, side), "bilinear", half, half, crop_square=False)

    def picture(self, picture: Picture) -> Image.Image:
        """The resized and cropped 8-bit RGB picture: what the network sees."""
        image = _limit_aspect(as_image(picture), self)
        if not self.crop_square and image.width == image.height:
            target = self.size
        else:
            target = _resized(image, self.resize, self.fit)
        image = image.resize((target[1], target[0]), FILTERS[self.interpolation])
        return _centre_crop(image, self.size, tuple(round(255 * min(max(m, 0.0), 1.0)) for m in self.mean))

    def image(self, picture: Picture) -> Float[Tensor, "3 H W"]:
        """The resized and cropped picture as a float32 tensor in [0, 1]."""
        array = np.array(self.picture(picture), dtype=np.uint8)
        return torch.from_numpy(array).permute(2, 0, 1).float().div(255)

    def tensor(self, picture: Picture) -> Float[Tensor, "3 H W"]:
        """The network's input: `normalise(image(picture))`."""
        return self.normalise(self.image(picture))

    def normalise(self, image: Float[Tensor, "*batch 3 H W"]) -> Float[Tensor, "*batch 3 H W"]:
        """(x - mean) / std, from [0, 1] to the network's input space."""
        mean, std = self._statistics(image)
        return (image - mean) / std

    def denormalise(self, tensor: Float[Tensor, "*batch 3 H W"]) -> Float[Tensor, "*batch 3 H W"]:
        """x * std + mean, from the network's input space to [0, 1]; nothing is clipped."""
        mean, std = self._statistics(tensor)
        return tensor * std + mean

    def bounds(self) -> tuple[Float[Tensor, "1 3 1 1"], Float[Tensor, "1 3 1 1"]]:
        """The inputs of an all-black and an all-white picture: the valid range in the network's input space."""
        black = torch.zeros(1, 3, 1, 1)
        return self.normalise(black), self.normalise(black + 1)

    def _statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        if like.ndim < 3 or like.shape[-3] != 3:
            raise InputError(f"expected images [..., 3, H, W], got {list(like.shape)}")
        return like.new_tensor(self.mean).view(3, 1, 1), like.new_tensor(self.std).view(3, 1, 1)


def three(numbers: Iterable[float]) -> tuple[float, float, float]:
    """Three floats, one a channel. Raises `InputError` for another number of them."""
    values = tuple(float(number) for number in numbers)
    if len(values) != 3:
        raise InputError(f"expected three numbers, one a channel, got {len(values)}")
    return values


def _limit_aspect(image: Image.Image, preprocessing: Preprocessing) -> Image.Image:
    if preprocessing.fit != "cover":
        return image
    box = max(preprocessing.size) / min(preprocessing.size)
    limit = int(min(image.size) * MAX_ASPECT * box) + 1
    if max(image.size) <= limit:
        return image
    return _centre_crop(image, (min(image.height, limit), min(image.width, limit)), (0, 0, 0))


def _resized(image: Image.Image, box: tuple[int, int], fit: Fit) -> tuple[int, int]:
    """Height and width to resize to; square boxes truncate the longer side, as torchvision's Resize does."""
    if fit == "squash":
        return box
    height, width = image.height, image.width
    if fit == "cover" and box[0] == box[1]:
        short, side = min(height, width), box[0]
        return (side, int(side * width / height)) if height == short else (int(side * height / width), side)
    pick = max if fit == "cover" else min
    scale = pick(box[0] / height, box[1] / width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def _centre_crop(image: Image.Image, size: tuple[int, int], fill: tuple[int, ...]) -> Image.Image:
    """Cut or pad to (height, width), rounding half a pixel as torchvision does."""
    height, width = size
    if image.height < height or image.width < width:
        canvas = Image.new("RGB", (max(width, image.width), max(height, image.height)), fill)
        canvas.paste(image, ((canvas.width - image.width) // 2, (canvas.height - image.height) // 2))
        image = canvas
    top, left = round((image.height - height) / 2), round((image.width - width) / 2)
    return image.crop((left, top, left + width, top + height))
