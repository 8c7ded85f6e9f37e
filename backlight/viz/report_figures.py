"""The figures of reports as a paper prints them: a row of a picture and its maps, at the width of a style."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from backlight.shapes import Float
from backlight.viz.figures import COLOURS, Array, Sheet, draw_image, extent_of, frame, signed_map
from backlight.viz.styles import Style, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SPACE, TITLE, BELOW, STRIP = 0.06, 0.2, 0.27, 0.05  # inches
MOST = 4  # panels beside each other in a column; half as many again across both


def maps_figure(
    image: Float[Array, "3 H W"],
    maps: Mapping[str, Array],
    to: str | Style = "double",
    caption: str = "input",
) -> Figure:
    """The picture and its signed maps in rows, each map with its scale below, at a style's width and letters.

    `image`: in [-1, 1]; `maps`: of any shape that `signed_map` takes.

    Raises:
        UnknownNameError: a style that there is not. InputError: a map that cannot be drawn.
        MissingExtraError: matplotlib is not installed.
    """
    chosen = style(to)
    count = len(maps) + 1
    across = min(count, MOST if chosen.width < 5 else MOST + 2)
    rows = -(-count // across)
    side = (chosen.width - (across - 1) * SPACE) / across
    side = min(side, 1.9 * chosen.size / 8)
    tall = side * image.shape[-2] / image.shape[-1]
    sheet = Sheet(chosen.width, rows * (TITLE + tall + BELOW))
    for place, (name, attribution) in enumerate([(caption, None), *maps.items()]):
        row, column = divmod(place, across)
        left, top = column * (side + SPACE), TITLE + row * (TITLE + tall + BELOW)
        axes = sheet.axes(left, top, side, tall)
        _text(sheet, left + side / 2, top - TITLE / 2, name, chosen, chosen.size * min(1.0, 16 / max(len(name), 1)))
        if attribution is None:
            draw_image(axes, image)
            continue
        values, scale = signed_map(attribution)
        drawn = axes.imshow(
            values, cmap=COLOURS, vmin=-1, vmax=1, extent=extent_of(image), interpolation="nearest", aspect="auto"
        )
        frame(axes)
        strip = sheet.axes(left, top + tall + 0.04, side, STRIP)
        bar = sheet.figure.colorbar(drawn, cax=strip, orientation="horizontal")
        bar.set_ticks([])
        bar.outline.set_linewidth(0.3)  # type: ignore[operator]
        for x, label, anchor in ((0.0, f"−{scale:.2g}", "left"), (0.5, "0", "center"), (1.0, f"+{scale:.2g}", "right")):
            _text(sheet, left + x * side, top + tall + 0.04 + STRIP + 0.09, label, chosen, chosen.small, anchor)
    return sheet.figure


def _text(sheet: Sheet, left: float, top: float, text: str, chosen: Style, size: float, anchor: str = "center") -> None:
    sheet.text(left, top, text, fontsize=max(size, 5.0), ha=anchor, family=list(chosen.family))
