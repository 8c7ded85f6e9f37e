"""Labelled pictures: a folder with a table of labels, or with a folder for each class; masks where there are some."""

from __future__ import annotations

import csv
import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from backlight.data.classes import ClassNames
from backlight.data.folders import SUFFIXES, image_paths
from backlight.data.images import Preprocessing, read_image
from backlight.errors import BacklightError, ImageError, InputError
from backlight.shapes import Bool, Float

LABELS, MASKS = "labels.csv", "masks"
COLUMNS = ("file", "class_index")


@dataclass(frozen=True)
class Sample:
    """One input of a network, `[C, H, W]`, the class that is explained (None: the predicted one), and the object."""

    name: str
    inputs: Float[Tensor, "C H W"]
    target: int | None
    mask: Bool[Tensor, "H W"] | None = None


@dataclass(frozen=True)
class _Entry:
    path: Path
    target: int | None
    mask: Path | None


class LabelledFolder:
    """The labelled pictures of a folder, in [-1, 1], as `LoadedModel.pixels()` takes them.

    Labels come from `labels.csv` (columns `file`, below the folder, and `class_index`; others are passed over), or from
    the names of the folder's own folders: a synset (n02123045), a class name ("tiger cat", "tiger_cat") or an index.
    Hidden files and folders are passed over. The order is a shuffle that depends on the files' names alone: `limit`
    takes the first ones, and a larger limit adds to them.

    Args:
        classes: names of the network's outputs; `ClassNames()` where nobody knows them.
        preprocessing: how a picture is resized and cropped.
        limit: the most pictures; None: all.
        masks: a folder of PNG masks with the pictures' stems, non-zero where the object is; None: the folder `masks`
            beside the pictures, where there is one. A mask has its picture's path below the folder, or the bare name,
            where one picture alone has it. They are resized and cropped as the pictures are, without blending.
        labelled: False: targets are None, the predicted class, and no labels are needed.

    Attributes:
        names: paths below the folder, with forward slashes.
        fingerprint: a hash of the names and labels, of all before `limit`, and of the preprocessing.

    Raises:
        ImageError: a folder that does not exist, or without pictures.
        InputError: no labels, a table without the columns, a label that is no index of a class, a picture twice, a mask
            that may be of either of two pictures.
        UnknownNameError: a folder whose name is no class; close matches are listed.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        classes: ClassNames,
        preprocessing: Preprocessing,
        limit: int | None = None,
        masks: str | os.PathLike[str] | None = None,
        labelled: bool = True,
    ) -> None:
        self.folder, self.classes, self.preprocessing = Path(folder), classes, preprocessing
        if not self.folder.is_dir():
            raise ImageError(f"cannot read {str(folder)!r}: there is no such folder")
        if limit is not None and limit < 1:
            raise InputError(f"limit must be at least 1, got {limit}")
        self.masks = self._mask_folder(masks)
        found = dict(self._labelled() if labelled else self._pictures())
        if not found:
            raise ImageError(f"there is no image file in the folder {str(folder)!r}")
        order = sorted(found, key=lambda name: hashlib.sha256(name.encode()).digest())
        objects = self._mask_paths(order)
        entries = {name: _Entry(*found[name], objects.get(name)) for name in order}
        told = "".join(f"{name}\0{entries[name].target}\n" for name in sorted(entries))
        self.fingerprint = hashlib.sha256(f"{preprocessing}\n{told}".encode()).hexdigest()
        self._entries = dict(list(entries.items())[:limit])
        self.names = list(self._entries)

    def __len__(self) -> int:
        return len(self.names)

    @property
    def targets(self) -> dict[str, int | None]:
        """The class index of each picture, by name."""
        return {name: entry.target for name, entry in self._entries.items()}

    @property
    def masked(self) -> int:
        """How many of the pictures have a mask."""
        return sum(entry.mask is not None for entry in self._entries.values())

    def content(self, name: str) -> str:
        """A hash of the files of a picture and its mask. Raises `ImageError` where one cannot be read."""
        entry = self._entries[name]
        return _file_hash(entry.path) + ("" if entry.mask is None else _file_hash(entry.mask))

    def load(self, name: str) -> Sample:
        """A picture, its label and mask. Raises `ImageError` where picture or mask cannot be read."""
        entry = self._entries[name]
        picture = read_image(entry.path)
        mask = None if entry.mask is None else self._mask(entry.mask, picture.size)
        return Sample(name, 2 * self.preprocessing.image(picture) - 1, entry.target, mask)

    def _mask(self, path: Path, size: tuple[int, int]) -> Bool[Tensor, "H W"]:
        mask = read_mask(path)
        if mask.shape != size[::-1]:
            raise ImageError(f"the mask {str(path)!r} has {mask.shape[::-1]} pixels, its picture has {size}")
        geometry = replace(self.preprocessing, interpolation="nearest", mean=(0.0, 0.0, 0.0))
        shown = geometry.picture(Image.fromarray(mask.astype(np.uint8) * 255))
        return torch.from_numpy(np.asarray(shown)[..., 0] > 127)

    def _mask_folder(self, masks: str | os.PathLike[str] | None) -> Path | None:
        if masks is None:
            return self.folder / MASKS if (self.folder / MASKS).is_dir() else None
        if not Path(masks).is_dir():
            raise ImageError(f"cannot read masks from {str(masks)!r}: there is no such folder")
        return Path(masks)

    def _mask_paths(self, names: Sequence[str]) -> dict[str, Path]:
        """By picture: the mask of its whole path, else one of its bare name that is no other picture's."""
        if self.masks is None:
            return {}
        whole = {name: self.masks / Path(name).with_suffix(".png") for name in names}
        found = {name: path for name, path in whole.items() if path.is_file()}
        bare = {name: self.masks / path.name for name, path in whole.items() if name not in found}
        taken = set(found.values())
        found |= {name: path for name, path in bare.items() if path not in taken and path.is_file()}
        owners: dict[Path, str] = {}
        for name, path in found.items():
            if path in owners:
                raise InputError(
                    f"the mask {str(path)!r} may be that of {owners[path]!r} or of {name!r}: give each picture's mask "
                    f"its whole path, as {whole[name].relative_to(self.masks).as_posix()!r}"
                )
            owners[path] = name
        return found

    def _pictures(self) -> Iterator[tuple[str, tuple[Path, int | None]]]:
        for path in image_paths(self.folder):
            if self.masks is None or not path.is_relative_to(self.masks):
                yield path.relative_to(self.folder).as_posix(), (path, None)

    def _labelled(self) -> Iterator[tuple[str, tuple[Path, int | None]]]:
        table = self.folder / LABELS
        return self._listed(table) if table.is_file() else self._by_folder()

    def _by_folder(self) -> Iterator[tuple[str, tuple[Path, int | None]]]:
        inside = sorted(path for path in self.folder.iterdir() if not path.name.startswith("."))
        loose = [path.name for path in inside if path.is_file() and path.suffix.lower() in SUFFIXES]
        folders = [path for path in inside if path.is_dir() and path != self.masks and path.name != MASKS]
        if loose or not folders:
            what = f"{loose[0]!r} has no label" if loose else "there are neither labels nor pictures"
            raise InputError(
                f"{what} in {str(self.folder)!r}: expected a {LABELS} with the columns {', '.join(COLUMNS)}, or a "
                "folder for each class, named by synset, class name or index; where no labels are needed, "
                "labelled=False (--no-labels)"
            )
        for folder in folders:
            try:
                paths = image_paths(folder)
            except ImageError:
                continue  # an empty folder says nothing about a class
            target = self._class_of(folder.name)
            yield from ((path.relative_to(self.folder).as_posix(), (path, target)) for path in paths)

    def _class_of(self, name: str) -> int:
        try:
            return self.classes.index(name)
        except BacklightError:
            if "_" not in name:
                raise
        return self.classes.index(name.replace("_", " "))

    def _listed(self, table: Path) -> Iterator[tuple[str, tuple[Path, int | None]]]:
        seen: set[str] = set()
        try:
            with table.open(newline="", encoding="utf-8-sig") as file:
                reader = csv.DictReader(file)
                reader.fieldnames = heads = [head.strip() for head in reader.fieldnames or ()]
                missing = [column for column in COLUMNS if column not in heads]
                if missing:
                    given = ", ".join(heads) or "none"
                    raise InputError(f"{str(table)!r} needs the column {missing[0]!r}; its columns: {given}")
                for row in reader:
                    place = f"{str(table)!r}, line {reader.line_num}"
                    name = self._file(row["file"], seen, place)
                    yield name, (self.folder / name, self._index(row["class_index"], place))
            if not seen:
                raise InputError(f"{str(table)!r} has no rows below its header: it lists no picture")
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise InputError(f"cannot read {str(table)!r}: {error}") from None

    def _file(self, given: str | None, seen: set[str], place: str) -> str:
        name = Path(given).as_posix() if (given := (given or "").strip()) else ""
        if not name or name in seen:
            raise InputError(f"{place}: " + (f"{name!r} is listed twice" if name else "there is no file name"))
        seen.add(name)
        return name

    def _index(self, given: str | None, place: str) -> int:
        try:
            index = int((given or "").strip())
        except ValueError:
            raise InputError(f"{place}: a class_index is a whole number, got {given!r}") from None
        try:
            return self.classes.index(index)
        except BacklightError as error:
            raise InputError(f"{place}: {error}") from None


def read_mask(path: str | os.PathLike[str]) -> Bool[np.ndarray, "H W"]:
    """True where a mask file is not zero in some colour; transparency is passed over, palettes count by index.

    Raises:
        ImageError: a file that is not a picture.
    """
    try:
        with Image.open(path) as image:
            there: np.ndarray = np.asarray(ImageOps.exif_transpose(image)) != 0
    except Exception as error:  # as in read_image: decoders raise nearly anything
        raise ImageError(f"cannot read the mask {str(path)!r}: {' '.join(str(error).split())}") from None
    there = there.reshape(*there.shape[:2], -1)
    return np.logical_or.reduce(there[..., :-1] if there.shape[-1] in (2, 4) else there, axis=-1)


def _file_hash(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]
    except OSError as error:
        raise ImageError(f"cannot read {str(path)!r}: {error.strerror}") from None
