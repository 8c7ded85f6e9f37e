"""From paths and folders to picture files."""

from __future__ import annotations

from pathlib import Path

import pytest

from backlight.data import image_paths
from backlight.errors import ImageError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b.JPG", "a.png", "notes.txt", "sub/c.webp", ".hidden/d.png", ".e.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def test_a_folder_is_expanded_and_sorted(folder: Path) -> None:
    assert image_paths(folder) == [folder / "a.png", folder / "b.JPG", folder / "sub" / "c.webp"]


def test_the_order_given_is_kept_and_repeats_are_dropped(folder: Path) -> None:
    named = [folder / "notes.txt", str(folder / "b.JPG"), folder]
    assert [path.name for path in image_paths(named)] == ["notes.txt", "b.JPG", "a.png", "c.webp"]


def test_nothing_there(folder: Path) -> None:
    (folder / "none").mkdir()
    for path in ("none", "absent.png"):
        with pytest.raises(ImageError, match=path):
            image_paths(folder / path)
