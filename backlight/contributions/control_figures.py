"""Figures of control: accuracy against the fraction of channels, and how specific each direction is at each site."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from backlight.contributions.control_curves import ControlCurves
from backlight.contributions.control_directions import RANDOM
from backlight.contributions.control_statistics import ControlStatistics
from backlight.contributions.control_tables import published_relative
from backlight.errors import MissingExtraError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {
    "mode of contributions": "#D6604D",
    "mode of activations": "#2166AC",
    "mean contribution": "#F4A582",
    "mean activation": "#92C5DE",
    "contrast of contributions": "#8C510A",
    "contrast of activations": "#762A83",
    "best channels by contributions": "#E3A33A",
    "best channels by activations": "#5AAE61",
    RANDOM: "#8A949E",
}
OTHERS = ("#111111", "#1B7837", "#C51B7D")
WIDTH, HEIGHT, ROW = 3.3, 2.5, 0.16  # inches
PUBLISHED = "#111111"


def curve_figure(curves: ControlCurves, **settings: Any) -> Figure:
    """A row a site, a column an action: target solid, off-target dashed, with intervals (CODEC, figure 6D).

    Args:
        settings: of `ControlStatistics`.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    statistics = ControlStatistics(curves, **settings)
    rows, columns = len(curves.places), len(curves.actions) * 2
    figure = _figure(WIDTH * columns + 0.4, HEIGHT * rows + 0.9)
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    for row, place in zip(grid, curves.places, strict=True):
        for a, action in enumerate(curves.actions):
            for side, what in enumerate(("target", "off-target")):
                ax = row[2 * a + side]
                for direction in curves.directions:
                    _curve(ax, statistics, place, direction, action, side)
                ax.set_title(f"{place}: {action}, {what}", fontsize=8.5, loc="left", parse_math=False)
                _plain(ax)
    for ax in grid[-1]:
        ax.set_xlabel("share of channels", fontsize=8.5)
    for ax in grid[:, 0]:
        ax.set_ylabel("accuracy after / before" if statistics.measure == "ratio" else "accuracy", fontsize=8.5)
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    return figure


def _curve(ax: Axes, statistics: ControlStatistics, place: str, direction: str, action: str, side: int) -> None:
    grid, band = np.array(statistics.curves.grid), statistics.band(place, direction, action, side)
    colour = colour_of(statistics.curves, direction)
    style = "--" if direction == RANDOM else "-"
    ax.plot(grid, band.mean, style, color=colour, linewidth=1.5, marker="o", markersize=2.5, label=direction)
    ax.fill_between(grid, band.low, band.high, color=colour, alpha=0.13, linewidth=0)


def area_figure(curves: ControlCurves, kind: str = "relative", **settings: Any) -> Figure:
    """A panel an action: each direction's difference of areas at each site, with its interval (CODEC, figure 6E).

    Args:
        kind: "relative", which the paper plots, or "absolute". settings: of `ControlStatistics`.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    statistics = ControlStatistics(curves, **settings)
    count = len(curves.directions)
    figure = _figure(4.4 * len(curves.actions) + 0.8, 1.4 + (ROW * count + 0.2) * len(curves.places))
    panels = figure.subplots(1, len(curves.actions), squeeze=False, sharey=True)[0]
    for ax, action in zip(panels, curves.actions, strict=True):
        for p, place in enumerate(curves.places):
            for d, direction in enumerate(curves.directions):
                found = getattr(statistics.areas(place, direction, action), kind)
                at, colour = p + (d - (count - 1) / 2) * 0.8 / count, colour_of(curves, direction)
                ax.plot([found.low, found.high], [at, at], color=colour, linewidth=1.6, solid_capstyle="butt")
                ax.plot(found.value, at, "o", color=colour, markersize=4, label=None if p else direction)
                told = published_relative(curves, place, direction, action) if kind == "relative" else None
                if told is not None:
                    ax.plot(told, at, "|", color=PUBLISHED, markersize=8)
        ax.axvline(0, color="#B9C0C7", linewidth=0.9, zorder=0)
        ax.set_yticks(range(len(curves.places)), curves.places, fontsize=8, parse_math=False)
        ax.set_title(action, fontsize=9, loc="left")
        name = "(target - off) / off" if kind == "relative" else "target - off"
        ax.set_xlabel(f"area, {name}; 95 % interval", fontsize=8.5)
        _plain(ax)
    panels[0].set_ylim(len(curves.places) - 0.45, -0.55)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    return figure


def colour_of(curves: ControlCurves, direction: str) -> str:
    """The same colour for a direction in all figures."""
    unknown = [name for name in curves.directions if name not in COLOURS]
    return COLOURS.get(direction) or OTHERS[unknown.index(direction) % len(OTHERS)]


def _figure(width: float, height: float) -> Figure:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise MissingExtraError("matplotlib", "plots") from None
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _plain(ax: Axes) -> None:
    ax.tick_params(labelsize=7.5)
    ax.grid(color="#E4E7EA", linewidth=0.7)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
