"""Figures of contribution maps: the picture; of each set of channels its map, and the picture behind its mask."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from backlight.errors import InputError
from backlight.shapes import Float
from backlight.viz.figures import EDGE, GAP, HEAD, SIDE, Array, Sheet, draw_image, draw_map

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = 0.55  # inches, for a second line of the title, and two or three above a map


def contribution_figure(
    image: Float[Array, "3 H W"],
    maps: Mapping[str, Float[Array, "3 H W"]],
    masked: Mapping[str, Float[Array, "3 H W"]],
    title: str = "",
) -> Figure:
    """The picture, and a column for each map: the signed map on its own scale, below it the masked picture.

    `image` and `masked`: in [-1, 1]. Titles of maps may have several lines, `title` two.

    Raises:
        InputError: no maps, or masked pictures under other titles.
        MissingExtraError: matplotlib is not installed.
    """
    if not maps or list(maps) != list(masked):
        raise InputError(f"expected a masked picture for each of the maps {list(maps)}, got {list(masked)}")
    height, width = image.shape[-2:]
    scale = SIDE / max(height, width)
    size = (width * scale, height * scale)
    top = HEAD + TITLE
    below = top + size[1] + 0.4
    sheet = Sheet(EDGE + (len(maps) + 1) * (size[0] + GAP), below + size[1] + 0.15)
    draw_image(sheet.axes(EDGE, top, *size), image)
    extent = (0.0, float(width), float(height), 0.0)
    for column, (name, attribution) in enumerate(maps.items(), 1):
        left = EDGE + column * (size[0] + GAP)
        axes = draw_map(sheet, left, top, size[1], attribution, extent, size[0])
        axes.set_title(name, fontsize=9, parse_math=False)
        draw_image(sheet.axes(left, below, *size), masked[name])
    for line, text in enumerate(title.split("\n")):
        sheet.text(EDGE, 0.2 + 0.24 * line, text, fontsize=10.5)
    return sheet.figure
