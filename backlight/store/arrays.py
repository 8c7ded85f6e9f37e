"""The arrays of a store: one Zarr group, chunks of whole samples, each written once and then on the disk."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from backlight.errors import InputError, MissingExtraError

CHUNK_BYTES = 2**22  # the most of an array that is compressed at once, where a batch is no larger
_FOLDERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-"


@dataclass(frozen=True)
class Layout:
    """The arrays by key: shape of one sample's entry, type, and samples in a chunk (a divisor of the block)."""

    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, str]
    chunks: dict[str, int]

    @classmethod
    def of(cls, arrays: Mapping[str, np.ndarray], batch_size: int, block: int) -> Layout:
        """The layout for arrays of this kind; `block` is a multiple of `batch_size`."""
        shapes = {key: array.shape[1:] for key, array in arrays.items()}
        dtypes = {key: array.dtype.name for key, array in arrays.items()}
        return cls(shapes, dtypes, {key: _chunk(array, batch_size, block) for key, array in arrays.items()})

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Layout:
        """From what `plain` gave."""
        return cls({key: tuple(shape) for key, shape in plain["shapes"].items()}, plain["dtypes"], plain["chunks"])

    def plain(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return {"shapes": {k: list(s) for k, s in self.shapes.items()}, "dtypes": self.dtypes, "chunks": self.chunks}

    def check(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Raise `InputError` where arrays are not of this layout."""
        if set(arrays) != set(self.shapes):
            odd = min(set(arrays) ^ set(self.shapes))
            raise InputError(f"{odd!r} was computed for some samples and not for others")
        for key, array in arrays.items():
            if array.shape[1:] != self.shapes[key]:
                raise InputError(
                    f"{key!r} has {list(array.shape[1:])} entries a sample here and {list(self.shapes[key])} before: "
                    "what is kept by position needs samples of one size"
                )


def _chunk(array: np.ndarray, batch_size: int, block: int) -> int:
    row = max(1, array.dtype.itemsize * math.prod(array.shape[1:]))
    sizes = [size for size in range(batch_size, block + 1, batch_size) if block % size == 0]
    return max([size for size in sizes if size * row <= CHUNK_BYTES] or [batch_size])


def part(site: str) -> str:
    """A site's address as the name of a folder: letters, digits, `.`, `_` and `-` stay, others become `%3A`."""
    return "".join(sign if sign in _FOLDERS else "".join(f"%{byte:02X}" for byte in sign.encode()) for sign in site)


class Arrays:
    """The arrays in a folder, to be written (`writing=True`) or read."""

    def __init__(self, folder: Path, layout: Layout, writing: bool = False) -> None:
        self.folder, self.layout = folder, layout
        self._store = _store(folder, writing)
        self._open: dict[str, Any] = {}

    def create(self, samples: int) -> None:
        """Make the arrays, or make those that are there longer, for this many samples. What is written stays."""
        import zarr
        from zarr.codecs import BloscCodec, Crc32cCodec

        self._create_groups()
        for key, shape in self.layout.shapes.items():
            if (self.folder / key / "zarr.json").is_file():
                array = self._array(key)
                if array.shape[0] < samples:
                    array.resize((samples, *shape))
                continue
            dtype = np.dtype(self.layout.dtypes[key])
            self._open[key] = zarr.create_array(
                self._store,
                name=key,
                shape=(samples, *shape),
                chunks=(self.layout.chunks[key], *(max(1, size) for size in shape)),
                dtype=dtype,
                compressors=[
                    BloscCodec(cname="zstd", clevel=3, shuffle="bitshuffle", typesize=dtype.itemsize),
                    Crc32cCodec(),  # Blosc does not see that bytes are missing
                ],
                fill_value=np.nan if dtype.kind == "f" else -1,
                chunk_key_encoding={"name": "default", "separator": "."},
                config={"write_empty_chunks": True},
            )

    def _create_groups(self) -> None:
        """Outermost first, each alone: with an array Zarr makes them all at once, and a kill may leave some out."""
        import zarr

        above = {str(parent): None for key in self.layout.shapes for parent in reversed(PurePosixPath(key).parents)}
        for group in above:
            if not (self.folder / group / "zarr.json").is_file():
                zarr.create_group(self._store, path="" if group == "." else group)

    def write(self, key: str, start: int, values: np.ndarray) -> None:
        """Rows from `start`, the first of a chunk; whole chunks, but for the end of the array."""
        self._array(key)[start : start + len(values)] = values

    def read(self, key: str, start: int, stop: int) -> np.ndarray:
        """Rows `start..stop`, which are finished.

        Raises:
            InputError: a chunk that is gone or damaged.
        """
        chunk = self.layout.chunks[key]
        for number in range(start // chunk, -(-stop // chunk)):
            path = self.folder / key / ".".join(["c", str(number), *"0" * len(self.layout.shapes[key])])
            if not path.is_file():  # Zarr would read it as a chunk that was never written
                raise InputError(f"the store is damaged: the file {str(path)!r} is gone")
        try:
            return np.asarray(self._array(key)[start:stop])
        except (OSError, ValueError, RuntimeError) as error:
            said = " ".join(str(error).split())
            raise InputError(f"the store is damaged: cannot read {key!r}, rows {start} to {stop}: {said}") from None

    def _array(self, key: str) -> Any:
        import zarr

        if key not in self._open:
            try:
                found = zarr.open_array(self._store, path=key, mode="r" if self._store.read_only else "r+")
            except (OSError, ValueError, KeyError) as error:
                raise InputError(f"the store is damaged: cannot read {str(self.folder / key)!r}: {error}") from None
            self._open[key] = found.with_config({"write_empty_chunks": True})
        return self._open[key]


def _store(folder: Path, writing: bool) -> Any:
    try:
        from zarr.storage import LocalStore
    except ModuleNotFoundError:
        raise MissingExtraError("zarr", "contributions") from None
    if not writing:
        return LocalStore(folder, read_only=True)
    from backlight.store.durable import DurableStore

    return DurableStore(folder)
