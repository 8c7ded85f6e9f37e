"""Figures of attributions: pure functions from arrays to `matplotlib.figure.Figure`, on the Agg canvas, without pyplot.

Maps are signed and zero-centred: red speaks for the target, blue against it, white is zero. `RdBu_r` keeps its two arms
apart under the common kinds of colour blindness. Each map has its own symmetric scale, written on its colour bar.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from backlight.errors import InputError, MissingExtraError
from backlight.shapes import Float

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = Tensor | np.ndarray
Extent = tuple[float, float, float, float]

COLOURS = "RdBu_r"
TARGET, OTHER = "#B2182B", "#9AA5B1"
CLIP = 0.995
CANCELLED = 1e-5  # of the sum of absolute values: well above float32's rounding
EDGE, GAP, SIDE = 0.15, 0.2, 2.5  # inches
HEAD, CELL = 0.65, SIDE + 0.6  # from the top to the first panel, and from panel to panel


@dataclass(frozen=True)
class Chance:
    """A class in a list of predictions: its name, the length of its bar in [0, 1], and whether it is the explained one.

    `label`: what stands at the bar's end; by default the share in per cent.
    """

    name: str
    share: float
    explained: bool = False
    label: str = ""


def signed_map(attribution: Array, clip: float = CLIP) -> tuple[Float[np.ndarray, "H W"], float]:
    """(map in [-1, 1], scale): the sum over channels, divided by the `clip` quantile of its absolute values.

    map * scale is the sum itself, up to what the quantile cuts off. A map of zeros stays zero, with scale 0. Takes
    `[H, W]`, images and feature maps `[C, H, W]`, timm's channels-last maps `[H, W, C]` (told by H = W, another C),
    tokens `[T, C]` (class and register tokens before the square grid are left out) and vectors `[C]`, one position.

    Raises:
        InputError: an array that has no positions to draw, or is not finite.
    """
    values = as_array(attribution)
    if not np.isfinite(values).all():
        raise InputError("a map to draw must be finite")
    values = _positions(values)
    size = np.abs(values)
    scale = float(np.quantile(size, clip)) or float(size.max())
    if scale == 0:
        return np.zeros_like(values), 0.0
    return (values / scale).clip(-1, 1), scale


def _positions(values: np.ndarray) -> np.ndarray:
    """Sum over channels: what is left is `[H, W]`."""
    if values.ndim == 2 and values.shape[0] == values.shape[1]:
        return values
    if values.ndim == 1:
        return _summed(values, 0).reshape(1, 1)
    if values.ndim == 2:
        side = int(np.sqrt(len(values)))
        return _summed(values[len(values) - side**2 :], 1).reshape(side, side)
    if values.ndim == 3:
        height, width, last = values.shape
        return _summed(values, 2 if height == width != last else 0)
    raise InputError(f"cannot draw an attribution of shape {list(values.shape)}: expected [C, H, W], [T, C] or [H, W]")


def _summed(values: np.ndarray, axis: int) -> np.ndarray:
    """The sum, and exactly zero where it is only what rounding leaves of channels that cancel.

    Before a LayerNorm they always do: it takes the mean off, so its gradient sums to zero over channels.
    """
    total = values.sum(axis)
    return np.where(np.abs(total) > CANCELLED * np.abs(values).sum(axis), total, 0)


def explanation_figure(
    image: Float[Array, "3 H W"], maps: Mapping[str, Array], predictions: Sequence[Chance] = (), title: str = ""
) -> Figure:
    """The input, its predictions, and one signed map a method.

    `image`: in [-1, 1]. `maps`: attributions by title, of any shape that `signed_map` takes; coarse ones are enlarged
    to the image without interpolation.

    Raises:
        MissingExtraError: matplotlib is not installed.
        InputError: a map that cannot be drawn.
    """
    columns = 2 if len(maps) == 4 else min(max(len(maps), 1), 3)
    rows = -(-max(len(maps), 1) // columns)
    sheet = Sheet(EDGE + (columns + 1) * (SIDE + GAP), max(HEAD + SIDE + 2.0, HEAD + rows * CELL - 0.2))
    draw_image(sheet.axes(EDGE, HEAD, SIDE, SIDE), image)
    _draw_predictions(sheet.axes(EDGE, HEAD + SIDE + 0.1, SIDE, 1.8), predictions)
    for place, (name, attribution) in enumerate(maps.items()):
        row, column = divmod(place, columns)
        left = EDGE + (column + 1) * (SIDE + GAP)
        axes = draw_map(sheet, left, HEAD + row * CELL, SIDE, attribution, extent_of(image))
        axes.set_title(name, fontsize=10.5, parse_math=False)
    sheet.title(title)
    return sheet.figure


def counterfactual_figure(
    image: Float[Array, "3 H W"],
    perturbed: Float[Array, "3 H W"],
    trajectories: Mapping[str, Sequence[float]],
    title: str = "",
) -> Figure:
    """The input, the perturbed input, their signed difference, and probabilities against the step.

    Images are in [-1, 1]; `trajectories`: `[K + 1]` probabilities by class name, of which the first is the target's.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    sheet = Sheet(EDGE + 3 * (SIDE + GAP) + 0.45 + 3.2, HEAD + CELL - 0.15)
    lefts = [EDGE + place * (SIDE + GAP) for place in range(3)]
    for left, name, shown in zip(lefts, ("input", "perturbed"), (image, perturbed), strict=False):
        axes = sheet.axes(left, HEAD, SIDE, SIDE)
        draw_image(axes, shown)
        axes.set_title(name, fontsize=10.5)
    axes = draw_map(sheet, lefts[2], HEAD, SIDE, as_array(perturbed) - as_array(image), extent_of(image))
    axes.set_title("difference, summed over colours", fontsize=10.5)
    draw_trajectories(sheet.axes(lefts[2] + SIDE + GAP + 0.45, HEAD, 3.0, SIDE), trajectories)
    sheet.title(title)
    return sheet.figure


class Sheet:
    """A figure whose panels are placed in inches from its top left corner; it holds the Agg canvas.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """

    def __init__(self, width: float, height: float) -> None:
        try:
            from matplotlib.backends.backend_agg import FigureCanvasAgg
            from matplotlib.figure import Figure
        except ModuleNotFoundError:
            raise MissingExtraError("matplotlib", "plots") from None
        self.width, self.height = width, height
        self.figure = Figure(figsize=(width, height))
        FigureCanvasAgg(self.figure)

    def axes(self, left: float, top: float, width: float, height: float) -> Axes:
        """New axes."""
        bottom = self.height - top - height
        box = (left / self.width, bottom / self.height, width / self.width, height / self.height)
        return self.figure.add_axes(box)

    def title(self, text: str) -> None:
        """One line at the top left."""
        self.text(EDGE, 0.2, text, fontsize=10.5)

    def text(self, left: float, top: float, text: str, **style: Any) -> None:
        """Text whose middle line lies `top` inches from the top."""
        place = (left / self.width, 1 - top / self.height)
        self.figure.text(*place, text, va="center", parse_math=False, **style)


def draw_image(axes: Axes, image: Float[Array, "3 H W"]) -> None:
    """Draw an image in [-1, 1]."""
    values = ((as_array(image) + 1) / 2).clip(0, 1).transpose(1, 2, 0)
    axes.imshow(values, extent=extent_of(image), interpolation="nearest")
    frame(axes)


def draw_map(
    sheet: Sheet, left: float, top: float, side: float, attribution: Array, extent: Extent, width: float | None = None
) -> Axes:
    """Draw a signed map over `extent`, and below it a colour bar that carries zero and the scale.

    `side`: its height in inches, and its width where `width` is None.
    """
    width = side if width is None else width
    axes = sheet.axes(left, top, width, side)
    drawn, scale = _fill(axes, attribution, extent)
    bar = sheet.figure.colorbar(drawn, cax=sheet.axes(left, top + side + 0.06, width, 0.07), orientation="horizontal")
    bar.set_ticks([-1, 0, 1], labels=[f"−{scale:.2g}", "0", f"+{scale:.2g}"])
    bar.ax.tick_params(labelsize=7.5, length=2, pad=1.5)
    first, _, last = bar.ax.get_xticklabels()
    first.set_horizontalalignment("left")
    last.set_horizontalalignment("right")
    bar.outline.set_linewidth(0.4)  # type: ignore[operator]
    return axes


def draw_bare_map(axes: Axes, attribution: Array) -> float:
    """Draw a signed map without a colour bar of its own. Returns its scale, which belongs beside it."""
    return _fill(axes, attribution, (0.0, 1.0, 1.0, 0.0))[1]


def _fill(axes: Axes, attribution: Array, extent: Extent) -> tuple[Any, float]:
    values, scale = signed_map(attribution)
    drawn = axes.imshow(values, cmap=COLOURS, vmin=-1, vmax=1, extent=extent, interpolation="nearest")
    frame(axes)
    return drawn, scale


def draw_trajectories(axes: Axes, trajectories: Mapping[str, Sequence[float]], legend: bool = True) -> None:
    """Draw probabilities against the number of the step; the first curve stands out."""
    for number, (name, values) in enumerate(trajectories.items()):
        colour, style = (TARGET, "-o") if number == 0 else ("#4A5560", "--s")
        label = _short(name, 24)
        axes.plot(range(len(values)), values, style, color=colour, markersize=3.5, linewidth=1.4, label=label)
    axes.set(ylim=(-0.03, 1.03), xlabel="step", ylabel="probability")
    axes.tick_params(labelsize=8)
    axes.locator_params(axis="x", integer=True)
    axes.grid(alpha=0.25, linewidth=0.5)
    axes.spines[["top", "right"]].set_visible(False)
    if legend:
        key = axes.legend(fontsize=8, frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
        for text in key.get_texts():
            text.set_parse_math(False)


def save_figure(figure: Figure, path: str | os.PathLike[str], kind: str | None = None, dpi: int = 130) -> None:
    """Write a figure as `kind` (png, svg, pdf; by default the path's suffix), without a date in the file."""
    dates: dict[str, dict[str, Any]] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
    kind = kind or os.path.splitext(path)[1][1:]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # a file name in a script the font lacks
        figure.savefig(path, format=kind, dpi=dpi, metadata=dates.get(kind, {}))


def _draw_predictions(axes: Axes, predictions: Sequence[Chance]) -> None:
    axes.set_axis_off()
    axes.set(xlim=(0, 1), ylim=(max(len(predictions), 5) - 0.5, -0.6))
    for place, chance in enumerate(predictions):
        colour = TARGET if chance.explained else OTHER
        weight = "bold" if chance.explained else "normal"
        axes.barh(place + 0.32, chance.share, height=0.22, color=colour)
        axes.barh(place + 0.32, 1, height=0.22, color=colour, alpha=0.12)
        text: dict[str, Any] = {"fontsize": 8.5, "va": "bottom", "fontweight": weight, "parse_math": False}
        axes.text(0, place + 0.18, _short(chance.name), **text)
        axes.text(1, place + 0.18, chance.label or f"{100 * chance.share:.1f} %", ha="right", **text)


def _short(name: str, most: int = 32) -> str:
    return name if len(name) <= most else name[: most - 1].rstrip() + "…"


def frame(axes: Axes) -> None:
    """A thin frame without ticks."""
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set(linewidth=0.4, color="#888888")


def extent_of(image: Array) -> Extent:
    """Of an image `[..., H, W]`, as matplotlib takes it: the first row on top."""
    height, width = image.shape[-2:]
    return (0.0, float(width), float(height), 0.0)


def as_array(values: Array) -> np.ndarray:
    """Floats of a type that numpy has, on the CPU."""
    if isinstance(values, Tensor):
        values = values.detach().to("cpu", torch.float32 if values.dtype != torch.float64 else torch.float64).numpy()
    return values
