"""Reading pictures: every mode becomes the right RGB values, every broken file one ImageError of one line."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from backlight.data import as_image, read_image
from backlight.errors import ImageError, InputError


def values(image: Image.Image) -> list[list[int]]:
    return np.asarray(image).reshape(-1, 3).tolist()


def save(image: Image.Image, path: Path, **options: object) -> Path:
    image.save(path, **options)
    return path


def test_rgb_is_read_as_it_is(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    read = read_image(save(Image.fromarray(pixels), tmp_path / "a.png"))
    assert read.mode == "RGB"
    assert np.array_equal(np.asarray(read), pixels)


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    image = Image.new("RGB", (20, 10), "white")
    image.paste("black", (0, 0, 10, 10))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera lay on its side: the left edge of the file is the top of the scene
    read = read_image(save(image, tmp_path / "a.png", exif=exif))
    assert read.size == (10, 20)
    assert np.asarray(read)[:10].max() == 0
    assert np.asarray(read)[10:].min() == 255


def test_cmyk(tmp_path: Path) -> None:
    image = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    red = np.asarray(read_image(save(image, tmp_path / "a.tif"))).reshape(-1, 3)[0]
    assert red[0] > 200
    assert red[1:].max() < 60


@pytest.mark.parametrize(("alpha", "expected"), [(0, 255), (255, 0), (51, 204)])
def test_transparency_lies_over_white(tmp_path: Path, alpha: int, expected: int) -> None:
    rgba = read_image(save(Image.new("RGBA", (2, 2), (0, 0, 0, alpha)), tmp_path / "a.png"))
    la = read_image(save(Image.new("LA", (2, 2), (0, alpha)), tmp_path / "b.png"))
    assert values(rgba) == values(la) == [[expected] * 3] * 4


def test_palette_with_and_without_a_transparent_colour(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putdata([0, 1])
    assert values(read_image(save(image, tmp_path / "a.png"))) == [[255, 0, 0], [0, 0, 255]]
    assert values(read_image(save(image, tmp_path / "b.png", transparency=0))) == [[255, 255, 255], [0, 0, 255]]


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bits_are_scaled_not_clipped(tmp_path: Path, suffix: str) -> None:
    levels = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)
    read = read_image(save(Image.fromarray(levels), tmp_path / f"a{suffix}"))
    assert np.asarray(read)[0, :, 0].tolist() == [0, 1, 128, 255]


def test_floating_point_grey_is_a_fraction(tmp_path: Path) -> None:
    levels = np.array([[0.0, 0.5, 1.0, 2.0, np.nan]], dtype=np.float32)
    read = read_image(save(Image.fromarray(levels), tmp_path / "a.tif"))
    assert np.asarray(read)[0, :, 0].tolist() == [0, 128, 255, 255, 0]


def test_one_pixel_and_one_bit(tmp_path: Path) -> None:
    assert values(read_image(save(Image.new("RGB", (1, 1), (1, 2, 3)), tmp_path / "a.png"))) == [[1, 2, 3]]
    assert values(read_image(save(Image.new("1", (1, 1), 1), tmp_path / "b.png"))) == [[255, 255, 255]]


def test_an_animation_gives_its_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    path = save(frames[0], tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert values(read_image(path))[0] == [255, 0, 0]


def bomb() -> bytes:
    """A PNG header that promises 60000 x 60000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("missing.jpg", None, "no such file"),
        ("folder.jpg", "folder", "folder"),
        ("text.jpg", b"these are words\nin two lines\n", "image format"),
        ("empty.png", b"", "empty"),
        ("noise.gif", b"GIF89a\x00\x01", ""),
        ("bomb.png", bomb(), "decompression bomb"),
    ],
)
def test_bad_files(tmp_path: Path, name: str, content: bytes | str | None, reason: str) -> None:
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content == "folder":
        path.mkdir()
    with pytest.raises(ImageError) as caught:
        read_image(path)
    assert reason in str(caught.value)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif"])
@pytest.mark.parametrize("part", [0.05, 0.5, 0.9])
def test_truncated_files(tmp_path: Path, suffix: str, part: float) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path = save(Image.fromarray(pixels), tmp_path / f"a{suffix}")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * part)])
    with pytest.raises(ImageError, match=path.name) as caught:
        read_image(path)
    assert "\n" not in str(caught.value)


def test_arrays() -> None:
    grey = np.array([[0, 255]], dtype=np.uint8)
    same = [grey, grey[..., None], (grey > 0), grey / 255, grey.astype(np.uint16) * 257, np.stack([grey] * 3, -1)]
    assert {tuple(map(tuple, values(as_image(array)))) for array in same} == {((0, 0, 0), (255, 255, 255))}


@pytest.mark.parametrize(
    "array",
    [np.zeros(3, np.uint8), np.zeros((2, 2, 2), np.uint8), np.zeros((2, 2), np.int64), np.full((2, 2), 200.0)],
)
def test_arrays_that_are_no_images(array: np.ndarray) -> None:
    with pytest.raises(InputError, match="expected"):
        as_image(array)


def test_an_array_without_pixels() -> None:
    with pytest.raises(ImageError, match="no pixels"):
        as_image(np.zeros((0, 4, 3), np.uint8))
