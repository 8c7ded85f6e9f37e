"""From the files and folders that a user names to a list of picture files."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from backlight.errors import ImageError

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".jp2", ".ppm", ".pgm", ".avif"}


def image_paths(paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> list[Path]:
    """The picture files in `paths`, in the order given; a folder gives its picture files, sub-folders too, sorted.

    A file that is named is taken whatever its suffix; in a folder the suffix decides, hidden files and folders are
    passed over, and a file named twice comes once.

    Raises:
        ImageError: a path that does not exist, or a folder without pictures.
    """
    named = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
    found: dict[Path, None] = {}
    for path in map(Path, named):
        if path.is_dir():
            inside = sorted(file for file in path.rglob("*") if _is_picture(file, path))
            if not inside:
                raise ImageError(f"there is no image file in the folder {str(path)!r}")
            found.update(dict.fromkeys(inside))
        elif path.exists():
            found[path] = None
        else:
            raise ImageError(f"cannot read {str(path)!r}: there is no such file or folder")
    return list(found)


def _is_picture(file: Path, folder: Path) -> bool:
    hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
    return not hidden and file.suffix.lower() in SUFFIXES and file.is_file()
