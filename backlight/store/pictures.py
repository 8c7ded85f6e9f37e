"""Pictures in one array, as samples: CIFAR and its like."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from backlight.data.labelled import Sample
from backlight.errors import InputError

SPLITS = ("test", "train")


class ArraySamples:
    """Pictures of an `.npz` file: `x_test` uint8 `[N, H, W, 3]`, and their classes `y_test` `[N]`, where it has them.

    They are given in [-1, 1], `[3, H, W]`, as `LoadedModel.pixels()` takes them. The order is a shuffle that depends on
    the pictures' number alone, for such files are often sorted by class: `limit` takes the first ones, and a larger
    limit adds to them. The file is opened where it is needed; another process gets its path.

    Args:
        split: "test" for `x_test`, "train" for `x_train`. limit: the most pictures; None: all.

    Attributes:
        names: "test/4711": the number in the array. fingerprint: a hash of the number of pictures and the labels.

    Raises:
        InputError: no such file, or without such an array; another shape or type; fewer labels; a limit below 1.
    """

    def __init__(self, path: str | os.PathLike[str], split: str = "test", limit: int | None = None) -> None:
        self.path, self.split = Path(path).absolute(), split
        if limit is not None and limit < 1:
            raise InputError(f"limit must be at least 1, got {limit}")
        pictures, labels = self._arrays
        digits = len(str(len(pictures) - 1))
        every = [f"{split}/{number:0{digits}d}" for number in range(len(pictures))]
        self.names = sorted(every, key=lambda name: hashlib.sha256(name.encode()).digest())[:limit]
        about = repr((split, pictures.shape)).encode() + (b"" if labels is None else labels.tobytes())
        self.fingerprint = hashlib.sha256(about).hexdigest()

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def _arrays(self) -> tuple[np.ndarray, np.ndarray | None]:
        x, y = f"x_{self.split}", f"y_{self.split}"
        try:
            with np.load(self.path) as arrays:
                if x not in arrays:
                    raise InputError(f"{str(self.path)!r} has no {x!r}; it has {', '.join(arrays.files) or 'nothing'}")
                pictures, labels = arrays[x], arrays.get(y)
        except (OSError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"cannot read {str(self.path)!r} as .npz: {error}") from None
        if pictures.dtype != np.uint8 or pictures.ndim != 4 or pictures.shape[3] != 3 or not len(pictures):
            raise InputError(f"{x} holds uint8 pictures [N, H, W, 3], got {pictures.dtype} {list(pictures.shape)}")
        if labels is not None:
            labels = labels.reshape(-1).astype(np.int64)
            if len(labels) != len(pictures):
                raise InputError(f"{len(labels)} labels in {y} for {len(pictures)} pictures in {x}")
        return pictures, labels

    def content(self, name: str) -> str:
        """A hash of a picture."""
        return hashlib.sha256(self._arrays[0][self._number(name)].tobytes()).hexdigest()[:16]

    def load(self, name: str) -> Sample:
        """A picture and its label."""
        pictures, labels = self._arrays
        number = self._number(name)
        picture = torch.from_numpy(pictures[number]).permute(2, 0, 1).float() / 127.5 - 1
        return Sample(name, picture, None if labels is None else int(labels[number]))

    def _number(self, name: str) -> int:
        return int(name.rpartition("/")[2])

    def __getstate__(self) -> Mapping[str, Any]:
        return {key: value for key, value in vars(self).items() if key != "_arrays"}
