"""A concept's page: its exemplars, what each is made of in its picture, and the crops."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from backlight.shapes import Float
from backlight.viz.figures import EDGE, TARGET, Array, Sheet, draw_bare_map, draw_image

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SIDE, GAP, HEAD, LABEL = 1.5, 0.12, 0.5, 0.34  # inches


@dataclass(frozen=True)
class ConceptPanel:
    """One exemplar: `picture` `[3, H, W]` in [-1, 1]; `field` `[H, W]`, its receptive field; `box` (x0, y0, x1, y1),
    half-open, around most of it; `crop` `[3, h, w]`; `point` (x, y), where the vector lies, None for the class token;
    `lines`: what stands above, at most two.
    """

    picture: Float[Array, "3 H W"]
    field: Float[Array, "H W"]
    box: tuple[int, int, int, int]
    crop: Float[Array, "3 h w"]
    point: tuple[float, float] | None
    lines: tuple[str, ...] = ()


def concept_figure(panels: Sequence[ConceptPanel], title: str = "") -> Figure:
    """A column for each exemplar: the picture with the box and the vector's place, the field, the crop.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    columns = max(len(panels), 3)
    sheet = Sheet(2 * EDGE + columns * (SIDE + GAP), HEAD + LABEL + 3 * (SIDE + GAP) + EDGE)
    sheet.title(title)
    for place, panel in enumerate(panels):
        left = EDGE + place * (SIDE + GAP)
        for number, line in enumerate(panel.lines[:2]):
            sheet.text(left, HEAD + 0.08 + 0.15 * number, line[:26], fontsize=7)
        tops = [HEAD + LABEL + row * (SIDE + GAP) for row in range(3)]
        axes = sheet.axes(left, tops[0], SIDE, SIDE)
        draw_image(axes, panel.picture)
        _outline(axes, panel)
        draw_bare_map(sheet.axes(left, tops[1], SIDE, SIDE), panel.field)
        draw_image(sheet.axes(left, tops[2], *_fitted(panel.crop)), panel.crop)
    return sheet.figure


def _outline(axes: Axes, panel: ConceptPanel) -> None:
    from matplotlib.patches import Rectangle

    height, width = panel.picture.shape[-2:]
    x0, y0, x1, y1 = panel.box
    axes.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=TARGET, linewidth=1.1))
    if panel.point is not None:
        axes.plot(*panel.point, marker="o", markersize=4, markerfacecolor="white", markeredgecolor=TARGET)
    axes.set(xlim=(0, width), ylim=(height, 0))


def _fitted(crop: Float[Array, "3 h w"]) -> tuple[float, float]:
    """(width, height) in inches of a crop in its proportions."""
    height, width = crop.shape[-2:]
    scale = SIDE / max(height, width)
    return width * scale, height * scale
