"""Figures of masks on pictures, and of class models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from backlight.shapes import Bool, Float, Int
from backlight.viz.figures import EDGE, GAP, HEAD, SIDE, TARGET, Array, Sheet, draw_image, draw_map

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GROUND = "#2166AC"


def segmentation_figure(
    image: Float[Array, "3 H W"],
    saliency: Float[np.ndarray, "H W"],
    seeds: Int[np.ndarray, "H W"],
    mask: Bool[np.ndarray, "H W"],
    box: tuple[int, int, int, int],
    title: str = "",
) -> Figure:
    """The saliency map, its seeds (red foreground, blue background), and the mask with its box on the picture.

    `image`: in [-1, 1]. `box`: (x0, y0, x1, y1), half-open.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    height, width = image.shape[-2:]
    scale = SIDE / max(height, width)
    size = (width * scale, height * scale)
    sheet = Sheet(EDGE + 3 * (size[0] + GAP), HEAD + size[1] + 0.3)
    lefts = [EDGE + place * (size[0] + GAP) for place in range(3)]
    extent = (0.0, float(width), float(height), 0.0)
    draw_map(sheet, lefts[0], HEAD, size[1], saliency[None], extent, size[0])
    for left, colours in zip(lefts[1:], (((seeds > 0, TARGET), (seeds < 0, GROUND)), ((~mask, None),)), strict=True):
        axes = sheet.axes(left, HEAD, *size)
        draw_image(axes, image)
        for region, colour in colours:
            _shade(axes, region, colour)
    _outline(axes, mask, box)
    for left, name in zip(lefts, ("saliency", "seeds", "object"), strict=True):
        sheet.text(left, HEAD - 0.12, name, fontsize=10.5)
    sheet.title(title)
    return sheet.figure


def class_figure(image: Float[Array, "3 H W"], scores: Sequence[float], title: str = "") -> Figure:
    """A class model and its score against the step. `image`: in [-1, 1]; `scores`: `[n_steps + 1]`.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    sheet = Sheet(EDGE + 2 * SIDE + GAP + 0.95, HEAD + SIDE + 0.55)
    draw_image(sheet.axes(EDGE, HEAD, SIDE, SIDE), image)
    axes = sheet.axes(EDGE + SIDE + GAP + 0.7, HEAD, SIDE, SIDE)
    axes.plot(range(len(scores)), scores, color=TARGET, linewidth=1.4)
    axes.set(xlabel="step", ylabel="score")
    axes.tick_params(labelsize=8)
    axes.locator_params(axis="x", integer=True)
    axes.grid(alpha=0.25, linewidth=0.5)
    axes.spines[["top", "right"]].set_visible(False)
    sheet.title(title)
    return sheet.figure


def _shade(axes: Axes, region: Bool[np.ndarray, "H W"], colour: str | None) -> None:
    """A region in a colour, half transparent; None whitens it."""
    from matplotlib.colors import to_rgb

    layer = np.zeros((*region.shape, 4))
    layer[region, :3] = to_rgb(colour or "white")
    layer[region, 3] = 0.55 if colour else 0.75
    height, width = region.shape
    axes.imshow(layer, extent=(0.0, float(width), float(height), 0.0), interpolation="nearest")


def _outline(axes: Axes, mask: Bool[np.ndarray, "H W"], box: tuple[int, int, int, int]) -> None:
    from matplotlib.patches import Rectangle

    if mask.any() and not mask.all():
        height, width = mask.shape
        axes.contour(np.arange(width) + 0.5, np.arange(height) + 0.5, mask, levels=[0.5], colors=TARGET, linewidths=1.0)
    corner, size = (box[0], box[1]), (box[2] - box[0], box[3] - box[1])
    axes.add_patch(Rectangle(corner, *size, fill=False, edgecolor="black", linewidth=1.0, linestyle="--"))
    axes.set(xlim=(0, mask.shape[1]), ylim=(mask.shape[0], 0))
