"""The figure of a store's statistics: sparsity, the two signs, dimensions and heads against depth (CODEC, figure 3)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from backlight.contributions.layer_statistics import LayerStatistics, QuantityStatistics, StoreStatistics
from backlight.contributions.statistics import Median
from backlight.contributions.statistics_tables import curve, groups
from backlight.viz.figures import Sheet

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#B2182B", "#2166AC", "#4A5560")
MUTED = "#9AA5B1"
LEFT, TOP, WIDTH, HEIGHT, BETWEEN, BELOW = 0.65, 0.85, 3.3, 2.3, 0.75, 1.25  # inches

Curve = list[tuple[float, float, float]]  # value, low and high, a layer
Read = Callable[[QuantityStatistics], Median | None]


def statistics_figure(statistics: StoreStatistics, title: str = "") -> Figure:
    """A row of panels for each kind of site, medians with their intervals; the paper's curves dashed, where they fit.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    rows = groups(statistics.layers)
    panels = [_sparsity, _signs, *([_dimensions] if statistics.classes > 2 else [])]
    heads = [any(one.heads for layer in group for one in layer.quantities.values()) for group in rows]
    width = LEFT + (len(panels) + any(heads)) * (WIDTH + BETWEEN) - BETWEEN + 0.2
    sheet = Sheet(width, TOP + len(rows) * (HEIGHT + BELOW))
    key: dict[str, Any] = {}
    for row, group in enumerate(rows):
        for column, panel in enumerate([*panels, _heads] if heads[row] else panels):
            left, top = LEFT + column * (WIDTH + BETWEEN), TOP + row * (HEIGHT + BELOW)
            axes = sheet.axes(left, top, WIDTH, HEIGHT)
            panel(axes, group, statistics)
            _finish(axes, group)
            key |= {label: line for line, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    place = (LEFT / sheet.width, 1 - 0.28 / sheet.height)
    sheet.figure.legend(
        key.values(), key, loc="upper left", bbox_to_anchor=place, ncols=4, fontsize=8, frameon=False, borderpad=0
    )
    model = statistics.identity.get("model")
    name = model.get("name") if isinstance(model, dict) else model
    sheet.title(title or " · ".join(str(part) for part in (name, f"{statistics.samples} images") if part))
    return sheet.figure


def _sparsity(axes: Axes, group: Sequence[LayerStatistics], statistics: StoreStatistics) -> None:
    for name, colour in zip(statistics.quantities, COLOURS, strict=False):
        _draw(axes, group, name, colour, lambda one: one.hoyer, label=name)
        if any(layer.quantities[name].sign_correlation.n for layer in group if name in layer.quantities):
            _draw(axes, group, name, colour, lambda one: one.gross_hoyer, style=":", label=f"{name}, gross: P − N")
        _draw_published(axes, group, name, "hoyer", colour)
    axes.set_title("sparsity over channels (Hoyer)", fontsize=9.5)
    axes.set_ylim(bottom=0)


def _signs(axes: Axes, group: Sequence[LayerStatistics], statistics: StoreStatistics) -> None:
    for name, colour in zip(statistics.quantities, COLOURS, strict=False):
        _draw(axes, group, name, colour, lambda one: one.sign_correlation)
        _draw_published(axes, group, name, "sign_correlation", colour)
    axes.axhline(0, color=MUTED, linewidth=0.8)
    axes.set_title("for and against: r(P, −N) over channels", fontsize=9.5)


def _dimensions(axes: Axes, group: Sequence[LayerStatistics], statistics: StoreStatistics) -> None:
    for name, colour in zip(statistics.quantities, COLOURS, strict=False):
        found = [layer.quantities[name].dimensions if name in layer.quantities else None for layer in group]
        places = [place for place, one in enumerate(found) if one is not None]
        known = [one for one in found if one is not None]
        if not known:
            continue
        axes.plot(places, [one.components for one in known], "-o", color=colour, markersize=3.5, linewidth=1.4)
        for place, one in zip(places, known, strict=True):
            if one.halves is not None:
                axes.plot([place, place], one.halves, "_", color=colour, markersize=5, alpha=0.6)
        axes.plot(places, [one.permuted for one in known], ":", color=colour, linewidth=1)
        _draw_published(axes, group, name, "dimensions", colour)
    share = f"{100 * statistics.settings['share']:g} %"
    axes.set_title(f"PCs to {share} of {statistics.classes} class means", fontsize=9.5)
    axes.text(
        0.02, 0.97, "– halves of the images   ··· permuted classes", transform=axes.transAxes, fontsize=7, va="top"
    )
    axes.set_ylim(0, 1.18 * axes.get_ylim()[1])


def _heads(axes: Axes, group: Sequence[LayerStatistics], statistics: StoreStatistics) -> None:
    for name, colour in zip(statistics.quantities, COLOURS, strict=False):
        _draw(axes, group, name, colour, lambda one: one.heads.learned if one.heads else None)
        _draw(axes, group, name, colour, lambda one: one.heads.random if one.heads else None, style=":")
    axes.set_title("sparsity over heads (dotted: random heads)", fontsize=9.5)
    axes.set_ylim(bottom=0)


def _draw(
    axes: Axes,
    group: Sequence[LayerStatistics],
    quantity: str,
    colour: str,
    read: Read,
    style: str = "-o",
    label: str | None = None,
) -> None:
    """Medians where there are some, their intervals as bands."""
    found: Curve = []
    for layer in group:
        one = read(layer.quantities[quantity]) if quantity in layer.quantities else None
        at, low, high = (None, None, None) if one is None else (one.median, one.low, one.high)
        found.append((_number(at), _number(low), _number(high)))  # of few images there is no interval
    middle, lower, upper = np.array(found).T
    if np.isnan(middle).all():
        return
    axes.fill_between(range(len(group)), lower, upper, color=colour, alpha=0.18, linewidth=0)
    axes.plot(
        range(len(group)),
        middle,
        style,
        color=colour,
        markersize=3.5,
        linewidth=1.4,
        label=label,
    )


def _draw_published(axes: Axes, group: Sequence[LayerStatistics], quantity: str, statistic: str, colour: str) -> None:
    known = curve(group, quantity, statistic)
    if known is not None:
        axes.plot(range(len(group)), known[1], "--", color=colour, linewidth=1, label=f"{quantity}, paper")


def _finish(axes: Axes, group: Sequence[LayerStatistics]) -> None:
    names = [layer.site.removesuffix(":input") for layer in group]
    every = -(-len(names) // 24)
    axes.set_xticks(range(0, len(names), every), names[::every], rotation=90, fontsize=7, parse_math=False)
    axes.set_xlim(-0.5, len(names) - 0.5)
    axes.tick_params(axis="y", labelsize=8)
    axes.grid(alpha=0.25, linewidth=0.5)
    axes.spines[["top", "right"]].set_visible(False)


def _number(value: float | None) -> float:
    return np.nan if value is None else value
