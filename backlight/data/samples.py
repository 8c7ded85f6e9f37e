"""Sample photographs that need no network: the ones that scikit-image's wheel carries."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from pathlib import Path

from PIL import Image

from backlight.data.images import read_image
from backlight.errors import MissingExtraError, UnknownNameError

FILES = {
    "astronaut": "astronaut.png",
    "camera": "camera.png",
    "chelsea": "chelsea.png",
    "coffee": "coffee.png",
    "coins": "coins.png",
    "hubble_deep_field": "hubble_deep_field.jpg",
    "moon": "moon.png",
    "retina": "retina.jpg",
    "rocket": "rocket.jpg",
}


class SampleImages(Mapping[str, Image.Image]):
    """The sample photographs by name, each read from disk when it is asked for."""

    def __init__(self, folder: Path) -> None:
        self._files = {name: folder / file for name, file in FILES.items() if (folder / file).is_file()}

    def __getitem__(self, name: str) -> Image.Image:
        if name not in self._files:
            raise UnknownNameError("sample image", name, self._files)
        return read_image(self._files[name])

    def __contains__(self, name: object) -> bool:
        return name in self._files

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


def sample_images() -> SampleImages:
    """The sample photographs that are on this disk, as a mapping from names to RGB pictures.

    Raises:
        MissingExtraError: scikit-image is not installed.
    """
    spec = importlib.util.find_spec("skimage")  # finding reads no code: importing skimage takes half a second
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtraError("scikit-image", "demo")
    return SampleImages(Path(spec.submodule_search_locations[0]) / "data")


def sample_names() -> list[str]:
    """The names that `sample_image` takes. Raises `MissingExtraError` without scikit-image."""
    return list(sample_images())


def sample_image(name: str) -> Image.Image:
    """One sample photograph, RGB. Raises `UnknownNameError` with close matches, or `MissingExtraError`."""
    return sample_images()[name]
