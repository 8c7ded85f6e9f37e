"""Composed pictures: several labelled pictures in a grid, for asking where the evidence for one of them lies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from backlight.errors import InputError, TargetError
from backlight.shapes import Bool, Float, Int

Load = Callable[[int], Tensor] | Sequence[Tensor] | Tensor


@dataclass(frozen=True)
class Layout:
    """Which picture lies in which tile of a grid, tiles in raster order, and the class that is asked for.

    `sources`: the pictures' indices. `labels`: their classes. `target`: one of the labels; its tiles are the mask.
    """

    rows: int
    columns: int
    sources: tuple[int, ...]
    labels: tuple[int, ...]
    target: int

    def __post_init__(self) -> None:
        if not len(self.sources) == len(self.labels) == self.rows * self.columns:
            raise InputError(
                f"a grid of {self.rows} x {self.columns} needs a source and a label for each tile, got "
                f"{len(self.sources)} and {len(self.labels)}"
            )
        if self.target not in self.labels:
            raise TargetError(f"the class {self.target} is on none of the tiles, whose classes are {self.labels}")

    @property
    def held(self) -> tuple[bool, ...]:
        """Whether each tile shows the target's class: Quantus's `custom_batch` for its Focus."""
        return tuple(label == self.target for label in self.labels)

    def aimed(self, target: int) -> Layout:
        """The same picture, asked for another of its classes. Raises `TargetError` for a class that is not in it."""
        return replace(self, target=target)

    def mask(self, size: int | tuple[int, int]) -> Bool[Tensor, "H W"]:
        """True on the target's tiles."""
        found = torch.zeros(_sides(size), dtype=torch.bool)
        for (rows, columns), held in zip(self._tiles(size), self.held, strict=True):
            found[rows, columns] = held
        return found

    def picture(self, load: Load, size: int | tuple[int, int]) -> Float[Tensor, "C H W"]:
        """The composed picture, in the pictures' own colours.

        `load(index)`, or `load[index]`, gives a picture `[C, h, w]`: each is scaled to cover its tile (bilinear with
        antialiasing; as it is where it fits) and cropped at the centre.
        """
        pieces: dict[int, Tensor] = {}
        whole = torch.empty(0)
        for (rows, columns), source in zip(self._tiles(size), self.sources, strict=True):
            if source not in pieces:
                pieces[source] = load(source) if callable(load) else load[source]
            piece = pieces[source]
            if not whole.numel():
                whole = piece.new_zeros(len(piece), *_sides(size))
            whole[:, rows, columns] = covering(piece, rows.stop - rows.start, columns.stop - columns.start)
        return whole

    def _tiles(self, size: int | tuple[int, int]) -> list[tuple[slice, slice]]:
        """Edges as Quantus has them: the middle rounded down."""
        height, width = _sides(size)
        if height < self.rows or width < self.columns:
            raise InputError(f"a picture of {height} x {width} has no {self.rows} x {self.columns} tiles")
        down = [height * edge // self.rows for edge in range(self.rows + 1)]
        across = [width * edge // self.columns for edge in range(self.columns + 1)]
        rows = [slice(*edges) for edges in pairwise(down)]
        columns = [slice(*edges) for edges in pairwise(across)]
        return [(row, column) for row in rows for column in columns]


def mosaics(labels: Sequence[int], count: int, *, seed: int = 314) -> list[Layout]:
    """Focus mosaics: one picture of a class in two of four tiles, and pictures of other classes in the other two.

    Arias-Duart et al. 2022, as in the code of Semantic Pullbacks (evaluate_focus.py), whose draws are repeated: on the
    50,000 validation pictures of ImageNet in the order of their folders, these are its mosaics. The class is drawn
    first, each as likely as another; the two other classes may be one. The first of more mosaics are the same.

    Args:
        labels: the class of each picture.

    Raises:
        InputError: less than two classes.
    """
    by_class = _by_class(labels)
    classes = np.array(sorted(by_class))
    generator = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        target = int(generator.choice(classes))
        others = [int(label) for label in generator.choice(classes[classes != target], size=2, replace=True)]
        own = int(generator.choice(by_class[target]))
        distractors = iter([(int(generator.choice(by_class[label])), label) for label in others])
        tiles = set(generator.choice(4, size=2, replace=False).tolist())
        filled = [(own, target) if tile in tiles else next(distractors) for tile in range(4)]
        sources, shown = zip(*filled, strict=True)
        found.append(Layout(2, 2, sources, shown, target))
    return found


def pairs(labels: Sequence[int], count: int, *, seed: int = 314) -> list[Layout]:
    """Two pictures of different classes side by side, of which the first or the second is asked for.

    Where no picture has a mask, the target's half is one: each object stands where the other is not. `aimed` asks for
    the other class of a pair.

    Args:
        labels: the class of each picture.

    Raises:
        InputError: less than two classes.
    """
    by_class = _by_class(labels)
    classes = np.array(sorted(by_class))
    generator = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        shown = [int(label) for label in generator.choice(classes, size=2, replace=False)]
        sources = [int(generator.choice(by_class[label])) for label in shown]
        found.append(Layout(1, 2, tuple(sources), tuple(shown), shown[int(generator.integers(2))]))
    return found


def composed(
    layouts: Sequence[Layout], load: Load, size: int | tuple[int, int] = 224
) -> tuple[Float[Tensor, "N C H W"], Int[Tensor, "N"], Bool[Tensor, "N H W"]]:
    """(pictures, targets, masks) of layouts, as `backlight.metrics.Case` takes them; `load` as in `Layout.picture`.

    Raises:
        InputError: no layouts, or pictures that are not `[C, h, w]`.
    """
    if not layouts:
        raise InputError("expected at least one layout to compose")
    return (
        torch.stack([layout.picture(load, size) for layout in layouts]),
        torch.tensor([layout.target for layout in layouts]),
        torch.stack([layout.mask(size) for layout in layouts]),
    )


def covering(picture: Float[Tensor, "C h w"], height: int, width: int) -> Float[Tensor, "C H W"]:
    """A picture scaled to cover a box, its proportions kept, and cropped at the centre."""
    if picture.ndim != 3 or 0 in picture.shape:
        raise InputError(f"expected a picture [C, H, W], got {list(picture.shape)}")
    scale = max(height / picture.shape[1], width / picture.shape[2])
    sides = [max(box, round(scale * side)) for box, side in zip((height, width), picture.shape[1:], strict=True)]
    if sides != list(picture.shape[1:]):
        picture = F.interpolate(picture[None], sides, mode="bilinear", align_corners=False, antialias=True)[0]
    top, left = (sides[0] - height) // 2, (sides[1] - width) // 2
    return picture[:, top : top + height, left : left + width]


def _by_class(labels: Sequence[int]) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for index, label in enumerate(labels):
        found.setdefault(int(label), []).append(index)
    if len(found) < 2:
        raise InputError(f"composed pictures need pictures of at least two classes, got {len(found)}")
    return found


def _sides(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size
