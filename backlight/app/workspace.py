"""What all users of a server share: the models it holds, its limits, and the folders its owner opened."""

from __future__ import annotations

import hashlib
import re
import threading
from collections import OrderedDict
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from backlight.app.uploads import MAX_PICTURE_BYTES, MAX_PIXELS, MEGABYTE, check_weights
from backlight.data.classes import ClassNames
from backlight.errors import BacklightError, InputError, MissingExtraError, ModelError, UnknownNameError
from backlight.models import LoadedModel, load
from backlight.models.checkpoints import read_state_dict
from backlight.models.loading import FAMILIES, available_names

OPEN_FAMILIES = ("embedded", "cifar", "timm", "torchvision")  # those whose names are no paths and no hub's addresses
PLAIN_NAME = re.compile(r"\w+([.-]\w+)*", re.ASCII)


@dataclass
class Workspace:
    """Shared by all sessions, and read by them only: nothing of a user's lives here, and no model is written to.

    `default_model`: what a new user sees. `max_models`: how many networks are held; the one used longest ago goes.
    `max_upload_bytes`, `max_picture_bytes`, `max_pixels`: what may be uploaded. `dictionaries`, `contributions`:
    folders whose entries users choose by name. `lock`: held by whatever runs a model: the engine's hooks are the
    process's.
    """

    default_model: str = "efficientnet_lite0"
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    max_models: int = 4
    max_upload_bytes: int = 200 * MEGABYTE
    max_picture_bytes: int = MAX_PICTURE_BYTES
    max_pixels: int = MAX_PIXELS
    dictionaries: Path | None = None
    contributions: Path | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)
    _loading: threading.Lock = field(default_factory=threading.Lock)
    _models: OrderedDict[tuple[str, str, str], LoadedModel] = field(default_factory=OrderedDict)

    def __post_init__(self) -> None:
        for name, folder in (("dictionaries", self.dictionaries), ("contributions", self.contributions)):
            if folder is not None and not folder.is_dir():
                raise InputError(f"the folder of {name}, {str(folder)!r}, is not there")
        if self.max_models < 1 or self.max_upload_bytes < 1:
            raise InputError("at least one model is held, and at least one byte may be uploaded")

    def model(self, name: str, weights: str | None = None, names: str = "") -> LoadedModel:
        """A network, with its own weights or with an uploaded file's; the same object for all who ask for the same.

        `weights`: the path of an uploaded checkpoint. `names`: what its classes are called, one a line.

        Raises:
            UnknownNameError: no embedded, timm or torchvision model has the name; paths and hub addresses are none.
            ModelError: weights that cannot be fetched, read or fitted.
        """
        name, names = (name or "").strip(), (names or "").strip()
        family = _family(name)
        checked = check_weights(weights, self.max_upload_bytes) if weights else None
        key = (name, _digest(checked) if checked else "", names if checked else "")
        with self._loading:
            found = self._models.get(key)
            if found is None:
                found = _loaded(name, family, checked, names)
                found = replace(found, model=found.model.to(self.device))
                self._models[key] = found
            self._models.move_to_end(key)
            while len(self._models) > self.max_models:
                self._models.popitem(last=False)
            return found

    def dictionary_names(self) -> list[str]:
        """What users may choose of the folder of dictionaries."""
        return _entries(self.dictionaries)

    def dictionary(self, name: str) -> Path:
        """The place of a dictionary by its name. Raises `UnknownNameError`."""
        return _entry("dictionary", self.dictionaries, name)

    def contribution_names(self) -> list[str]:
        """What users may choose of the folder of contributions."""
        return _entries(self.contributions)

    def contribution(self, name: str) -> Path:
        """The place of contributions by their name. Raises `UnknownNameError`."""
        return _entry("contributions", self.contributions, name)


def model_names() -> list[str]:
    """The names that the app offers; `Workspace.model` takes these, and timm's with a tag of weights."""
    return [name for name in available_names() if PLAIN_NAME.fullmatch(name)]


def _family(name: str) -> str:
    """The family of a plain name: a path, an address of a hub, or a folder of the server's is none."""
    prefix, colon, rest = name.rpartition(":")
    if PLAIN_NAME.fullmatch(rest) and (not colon or prefix in OPEN_FAMILIES):
        for family in (prefix,) if colon else OPEN_FAMILIES:
            try:
                if FAMILIES[family].knows(rest):
                    return family
            except MissingExtraError:
                continue
    raise UnknownNameError("model", name, available_names())


def _loaded(name: str, family: str, weights: Path | None, names: str) -> LoadedModel:
    inner = name.rpartition(":")[2]
    if weights is None:
        return replace(load(inner, family=family), name=name)
    given = [line.strip() for line in names.splitlines() if line.strip()]
    try:
        state = read_state_dict(weights)
        loaded = load(inner, family=family, weights=state, classes=ClassNames(tuple(given)) if given else None)
    except BacklightError as error:
        raise ModelError(str(error).replace(str(weights), weights.name)) from None
    return replace(loaded, name=name, source=f"the uploaded file {weights.name}")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _entries(folder: Path | None) -> list[str]:
    if folder is None:
        return []
    return sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))


def _entry(kind: str, folder: Path | None, name: str) -> Path:
    """An entry by a name of the listing: nothing that is not listed can be reached."""
    listed = _entries(folder)
    if folder is None or name not in listed:
        raise UnknownNameError(kind, name, listed)
    return folder / name
