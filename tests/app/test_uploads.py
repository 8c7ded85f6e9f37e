"""What strangers upload: each bad file gets its sentence, without being unpacked, and no path of the server in it."""

from __future__ import annotations

import io
import os
import struct
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from backlight.app.uploads import check_weights, read_upload
from backlight.errors import ImageError, ModelError


def png(width: int, height: int, rows: int) -> bytes:
    """A PNG of black 8-bit RGB whose header says width x height, and which holds so many rows."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer = zlib.compressobj(9)
    data = b"".join(packer.compress(bytes(1 + 3 * width)) for _ in range(rows)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


BAD = {
    "empty": (b"", "the uploaded file is empty: it has zero bytes"),
    "text": (b"not a picture at all", "the uploaded file is not a picture that can be read"),
    "html": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "the uploaded file is not a picture that can be read"),
    "large": (png(10_000, 10_000, 1), "too large: 10000 x 10000, 100 megapixels; at most 50 are taken"),
    "bomb": (png(60_000, 60_000, 50), "too large: more than 178 megapixels; at most 50 are taken"),
    "truncated": (png(400, 300, 300)[:90], "the uploaded picture is damaged or cut short"),
}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("name", BAD)
def test_a_bad_picture_gets_its_sentence(name: str, tmp_path: Path) -> None:
    data, sentence = BAD[name]
    path = tmp_path / "picture.png"
    path.write_bytes(data)
    with pytest.raises(ImageError, match=sentence) as caught:
        read_upload(path)
    assert str(tmp_path) not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bytes_are_counted_before_the_file_is_opened(tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    with path.open("wb") as file:
        file.truncate(3 * 2**20)  # a hole: no picture, and larger than allowed, which is found first
    with pytest.raises(ImageError, match=r"has 3\.0 MB; at most 2 MB"):
        read_upload(path, max_bytes=2 * 2**20)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.skipif(sys.platform != "linux", reason="reads the memory of the process from /proc")
def test_a_bomb_is_refused_without_being_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(png(8_000, 8_000, 8_000))  # 192 MB of pixels in a fifth of a megabyte
    assert path.stat().st_size < 2**20

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    before = resident()
    with pytest.raises(ImageError, match="64 megapixels"):
        read_upload(path)
    assert resident() - before < 20 * 2**20


def test_a_phone_picture_comes_upright_and_rgb(tmp_path: Path) -> None:
    picture = Image.fromarray(np.arange(20 * 10 * 3, dtype=np.uint8).reshape(20, 10, 3))
    exif = picture.getexif()
    exif[274] = 6  # turn by 90 degrees to see it upright
    path = tmp_path / "phone.png"
    picture.save(path, exif=exif)
    found = read_upload(path)
    assert found.mode == "RGB"
    assert np.array_equal(np.asarray(found), np.rot90(np.asarray(picture), -1))


def test_only_formats_of_the_list_are_decoded(tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n")  # would run Ghostscript
    with pytest.raises(ImageError, match="not a picture"):
        read_upload(path)


def test_weights_are_counted_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save({"weight": torch.zeros(4)}, path)
    assert check_weights(path, 2**20) == path
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/0", bytes(50 * 2**20))
    assert path.stat().st_size < 2**20
    with pytest.raises(ModelError, match="take 50 MB; at most 10 MB"):
        check_weights(path, 10 * 2**20)
    path.write_bytes(b"")
    with pytest.raises(ModelError, match="zero bytes"):
        check_weights(path, 2**20)
    with pytest.raises(ModelError, match="did not arrive"):
        check_weights(tmp_path / "none.pt", 2**20)


def test_pictures_with_transparency_and_palettes_are_read(tmp_path: Path) -> None:
    for mode in ("RGBA", "P", "L", "1", "CMYK"):
        file = io.BytesIO()
        Image.new(mode, (8, 8)).save(file, "TIFF" if mode == "CMYK" else "PNG")
        path = tmp_path / "picture"
        path.write_bytes(file.getvalue())
        assert read_upload(path).mode == "RGB"
