"""The files that the command line writes: where, under which names, and never half."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from torch import Tensor

from backlight.errors import InputError
from backlight.shapes import Float, UInt8

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LONGEST = 120  # characters of a picture's name that are kept: file systems take 255 bytes, with suffixes


def output_folder(path: Path) -> Path:
    """The folder, made where it does not exist.

    Raises:
        InputError: it is a file, or cannot be made or written to.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        why = "it is a file, not a folder" if path.is_file() else error.strerror
        raise InputError(f"cannot write to {str(path)!r}: {why}") from None
    if not os.access(path, os.W_OK | os.X_OK):
        raise InputError(f"cannot write to {str(path)!r}: permission denied")
    return path


def distinct_names(paths: Sequence[Path]) -> list[str]:
    """A name for each picture, no two the same: the stem, where needed with its folder, its suffix, a number."""
    names: list[str] = [""] * len(paths)
    forms: tuple[Callable[[Path], str], ...] = (
        lambda path: path.stem,
        lambda path: f"{path.absolute().parent.name}-{path.stem}",
        lambda path: f"{path.absolute().parent.name}-{path.stem}-{path.suffix[1:]}",
    )
    for form in forms:
        given = [form(path)[:LONGEST] for path in paths]
        often = Counter(name.lower() for name in given)  # some file systems do not tell cases apart
        taken = {name.lower() for name in names if name}
        for place, name in enumerate(given):
            if not names[place] and often[name.lower()] == 1 and name.lower() not in taken:
                names[place] = name
                taken.add(name.lower())
    taken = {name.lower() for name in names if name}
    for place, path in enumerate(paths):
        number = 2
        while not names[place]:
            name = f"{path.stem[:LONGEST]}-{number}"
            names[place], number = ("" if name.lower() in taken else name), number + 1
        taken.add(names[place].lower())
    return names


@contextmanager
def written(path: Path) -> Iterator[Path]:
    """A path to write to, which takes the place of `path` once all is written: an interrupted file is none."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_arrays(path: Path, arrays: Mapping[str, Any], metadata: Mapping[str, Any]) -> str:
    """Arrays, and their metadata as a JSON string, in one `.npz`; `numpy.load` needs no pickle. Returns the path."""
    with written(path) as partial, partial.open("wb") as file:
        np.savez_compressed(file, metadata=np.array(json.dumps(metadata)), **arrays)
    return str(path)


def write_picture(path: Path, x: Float[Tensor, "3 H W"]) -> str:
    """An image in [-1, 1] as an 8-bit PNG. Returns the path."""
    return write_png(path, ((x + 1) * 127.5).round().clamp(0, 255).permute(1, 2, 0).numpy().astype(np.uint8))


def write_png(path: Path, pixels: UInt8[np.ndarray, "H W *C"]) -> str:
    """8-bit pixels as a PNG. Returns the path."""
    with written(path) as partial:
        Image.fromarray(pixels).save(partial, format="PNG")
    return str(path)


def slug(name: str) -> str:
    """A class's name as a part of a file's name."""
    return re.sub(r"\W+", "-", name.lower()).strip("-")[:40] or "class"


def write_figure(path: Path, figure: Figure, kind: str) -> str:
    """A figure as `kind`. Returns the path."""
    from backlight.viz import save_figure

    with written(path) as partial:
        save_figure(figure, partial, kind)
    return str(path)
