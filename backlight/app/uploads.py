"""Pictures and weights that strangers send: looked at before they are opened, and refused in one plain sentence."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

from PIL import Image

from backlight.data.images import to_rgb
from backlight.errors import ImageError, ModelError

MEGABYTE = 2**20
MAX_PICTURE_BYTES = 32 * MEGABYTE
MAX_PIXELS = 50_000_000  # 150 MB as RGB
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")  # no format whose decoder runs other programs


def read_upload(
    path: str | os.PathLike[str], max_bytes: int = MAX_PICTURE_BYTES, max_pixels: int = MAX_PIXELS
) -> Image.Image:
    """An uploaded picture as upright 8-bit RGB; see `data.images.to_rgb` for what is decided.

    Its bytes are counted before it is opened and its pixels, as its header gives them, before it is decoded: a small
    file that would unpack to gigabytes is refused without being unpacked.

    Raises:
        ImageError: empty, too large, not a picture, or cut short. The sentence names no path of the server's.
    """
    path = Path(path)
    if not path.is_file():
        raise ImageError("the picture did not arrive; upload it again")
    size = path.stat().st_size
    if size == 0:
        raise ImageError("the uploaded file is empty: it has zero bytes")
    if size > max_bytes:
        raise ImageError(
            f"the uploaded picture has {size / MEGABYTE:.1f} MB; at most {max_bytes / MEGABYTE:.0f} MB are taken"
        )
    try:
        with Image.open(path, formats=FORMATS) as image:
            _check_pixels(image, max_pixels)
            image.load()
            return to_rgb(image)
    except ImageError:
        raise
    except Image.DecompressionBombError:
        raise ImageError(_too_many("more than 178", max_pixels)) from None
    except Image.UnidentifiedImageError:
        kinds = ", ".join(FORMATS[:-1])
        raise ImageError(f"the uploaded file is not a picture that can be read; expected one of {kinds}") from None
    except Exception:  # Pillow's decoders raise nearly anything on broken bytes, SyntaxError included
        raise ImageError("the uploaded picture is damaged or cut short; it cannot be decoded") from None


def _check_pixels(image: Image.Image, most: int) -> None:
    width, height = image.size
    if width * height > most:
        raise ImageError(_too_many(f"{width} x {height}, {width * height / 1e6:.0f}", most))


def _too_many(given: str, most: int) -> str:
    return f"the uploaded picture is too large: {given} megapixels; at most {most / 1e6:.0f} are taken"


def check_weights(path: str | os.PathLike[str], max_bytes: int) -> Path:
    """An uploaded checkpoint that is safe to hand to `models.read_state_dict`, which unpickles tensors alone.

    Raises:
        ModelError: not there, empty, too large, or a zip archive (as `torch.save` writes) that unpacks to more.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelError("the weights did not arrive; upload them again")
    size = path.stat().st_size
    if size == 0:
        raise ModelError("the uploaded weights are empty: the file has zero bytes")
    if path.suffix.lower() != ".safetensors" and zipfile.is_zipfile(path):
        try:
            with zipfile.ZipFile(path) as archive:
                size = max(size, sum(entry.file_size for entry in archive.infolist()))
        except (zipfile.BadZipFile, OSError, ValueError):
            raise ModelError("the uploaded weights are damaged or cut short") from None
    if size > max_bytes:
        raise ModelError(
            f"the uploaded weights take {size / MEGABYTE:.0f} MB; at most {max_bytes / MEGABYTE:.0f} MB are taken"
        )
    return path
