"""The figure of a retina's analysis: rates and loadings in time, cells against modes, receptive fields by combination.

After CODEC's figure 8: A, a stretch of the movie with the cells' rates and the loadings of the modes; B, for each site,
correlations of cells with modes, cells in the order of their clusters; C, receptive fields of the cell that a
combination of modes drives most, at several of its frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from backlight.retina.analysis import RetinaAnalysis, SiteModes, loudest
from backlight.retina.combinations import Combination, combinations, examples
from backlight.retina.receptive_fields import cropped, receptive_fields, space_time
from backlight.shapes import Float, Int
from backlight.viz.figures import COLOURS, Sheet

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STRETCH = 300  # frames
GROUPS = ("#B2182B", "#2166AC", "#4D9221", "#C77CFF", "#E69F00", "#4A5560", "#8C510A", "#01665E")
LEFT, WIDTH = 0.8, 9.0  # inches
FIELD, COLUMNS, ROWS = 0.92, 6, 5


def retina_figure(
    analysis: RetinaAnalysis,
    *,
    site: str | None = None,
    start: int | None = None,
    frame_rate: float = 100.0,
    side: int = 20,
    title: str = "",
) -> Figure:
    """The figure of an analysis, of its held-out movie.

    Args:
        site: whose loadings and combinations are drawn; None: the last one.
        start: the first window of the stretch; None: where cells fire most.
        frame_rate: frames a second, for the axes.
        side: pixels of the receptive fields.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    chosen = analysis.sites[site if site is not None else list(analysis.sites)[-1]]
    shown = [one for one in combinations(chosen.loadings) if len(one.frames) > 1][:ROWS]
    below = 2.3 + 1.75 + 1.05
    matrix = 0.5 + 0.18 * analysis.rates.shape[1]
    sheet = Sheet(LEFT + WIDTH + 0.6, 0.5 + below + matrix + 1.3 + max(1, len(shown)) * (FIELD + 0.32) + 0.2)
    order = torch.argsort(chosen.clusters.labels, stable=True)
    begin = _busiest(analysis.rates) if start is None else start
    _stretch(sheet, analysis, chosen, order, slice(begin, begin + STRETCH), frame_rate)
    top = 0.5 + below
    each = (WIDTH - 0.9 * (len(analysis.sites) - 1)) / len(analysis.sites)
    for column, modes in enumerate(analysis.sites.values()):
        _association(sheet, LEFT + column * (each + 0.9), top, each, matrix, modes, order if modes is chosen else None)
    _fields(sheet, analysis, chosen, shown, top + matrix + 1.15, side, frame_rate)
    sheet.title(
        title or f"A retina of {analysis.rates.shape[1]} cells: modes of contributions to surprisal, held-out movie"
    )
    return sheet.figure


def _busiest(rates: Float[Tensor, "n cells"]) -> int:
    """The first window of the stretch in which cells fire most, each relative to its mean."""
    relative = (rates.double() / rates.double().mean(0).clamp(min=1e-9)).clamp(max=10).sum(1)
    sums = torch.cat((torch.zeros(1).double(), relative.cumsum(0)))
    length = min(STRETCH, len(rates))
    return int((sums[length:] - sums[:-length]).argmax())


def _stretch(
    sheet: Sheet,
    analysis: RetinaAnalysis,
    modes: SiteModes,
    order: Int[Tensor, "cells"],
    frames: slice,
    frame_rate: float,
) -> None:
    """Rates of the cells, coloured by their clusters, above the loadings of the modes that are on."""
    rates, loadings = analysis.rates[frames], modes.loadings[frames]
    axes = sheet.axes(LEFT, 0.6, WIDTH, 2.1)
    times = (np.arange(len(rates)) + frames.start) / frame_rate
    for place, cell in enumerate(order.tolist()):
        course = rates[:, cell].numpy() / max(float(rates[:, cell].max()), 1e-9)
        colour = GROUPS[int(modes.clusters.labels[cell]) % len(GROUPS)]
        base = len(order) - place - 1
        axes.fill_between(times, base, base + 0.92 * course, color=colour, linewidth=0, alpha=0.85)
    axes.set(xlim=(times[0], times[-1]), ylim=(0, len(order)))
    axes.set_yticks(np.arange(len(order)) + 0.4, [str(cell) for cell in order.tolist()[::-1]], fontsize=6)
    axes.set_ylabel("cell", fontsize=8)
    axes.set_title("A   rates (each to its peak; colours: clusters) and loadings of modes", fontsize=9.5, loc="left")
    axes.tick_params(axis="x", labelbottom=False)
    axes.spines[["top", "right"]].set_visible(False)
    on = _ordered_modes(modes, most=40)
    lower = sheet.axes(LEFT, 2.85, WIDTH, 1.75)
    top = max(float(loadings[:, on].abs().max()), 1e-9) if len(on) else 1.0
    drawn = loadings[:, on].T.numpy() if len(on) else np.zeros((1, len(rates)))
    extent = (float(times[0]), float(times[-1]), len(drawn), 0.0)
    colours, least = ("Greys", 0.0) if drawn.min() >= 0 else (COLOURS, -top)
    lower.imshow(drawn, aspect="auto", extent=extent, interpolation="nearest", cmap=colours, vmin=least, vmax=top)
    lower.set_xlabel("time (s)", fontsize=8)
    lower.set_ylabel(f"{len(on)} modes\n{modes.site}", fontsize=8)
    lower.set_yticks([])
    for one in (axes, lower):
        one.tick_params(axis="x", labelsize=7)


def _ordered_modes(modes: SiteModes, most: int) -> Int[Tensor, "k"]:
    """The modes that are on most often, in the order of the cell that they go with."""
    alive = modes.alive
    often = (modes.loadings[:, alive] != 0).double().mean(0)
    kept = alive[often.argsort(descending=True, stable=True)[:most]]
    rank = torch.argsort(torch.argsort(modes.clusters.labels, stable=True))
    first = modes.association[:, kept].argmax(0)
    return kept[torch.argsort(rank[first], stable=True)]


def _association(
    sheet: Sheet, left: float, top: float, width: float, height: float, modes: SiteModes, order: Tensor | None
) -> None:
    """Cells, in the order of their clusters, against modes."""
    rows = torch.argsort(modes.clusters.labels, stable=True) if order is None else order
    kept = _ordered_modes(modes, most=60)
    axes = sheet.axes(left, top, width, height)
    values = modes.association[rows][:, kept].numpy()
    values = values if values.size else np.zeros((len(rows), 1))  # no mode is on
    limit = max(0.1, float(np.abs(values).max()))
    drawn = axes.imshow(values, aspect="auto", cmap=COLOURS, vmin=-limit, vmax=limit, interpolation="nearest")
    axes.set_yticks(range(len(rows)), [str(cell) for cell in rows.tolist()], fontsize=6)
    for label, cell in zip(axes.get_yticklabels(), rows.tolist(), strict=True):
        label.set_color(GROUPS[int(modes.clusters.labels[cell]) % len(GROUPS)])
    ends = np.flatnonzero(np.diff(modes.clusters.labels[rows].numpy())) + 0.5
    for end in ends:
        axes.axhline(end, color="black", linewidth=0.8)
    axes.set_xlabel(f"{len(kept)} modes", fontsize=8)
    axes.set_xticks([])
    axes.set_title(f"B   r(rate, loading), {modes.site}: {modes.clusters.count} clusters", fontsize=9.5, loc="left")
    bar = sheet.figure.colorbar(drawn, cax=sheet.axes(left + width + 0.06, top, 0.08, height))
    bar.ax.tick_params(labelsize=6)


def _fields(
    sheet: Sheet,
    analysis: RetinaAnalysis,
    modes: SiteModes,
    shown: Sequence[Combination],
    top: float,
    side: int,
    frame_rate: float,
) -> None:
    """A row a combination: spatial maps at some of its frames, and their courses in time."""
    sheet.text(
        LEFT,
        top - 0.3,
        "C   receptive fields where a combination of modes is on: map in space, course in time",
        fontsize=9.5,
    )
    if not shown:
        sheet.text(LEFT, top + 0.3, "no combination of one to four modes is on in two frames or more", fontsize=8)
    windows = analysis.held_out.windows
    favourites = loudest(analysis.rates)
    for row, one in enumerate(shown):
        above = top + row * (FIELD + 0.32)
        frames = list(examples(one, modes.loadings, COLUMNS, apart=analysis.held_out.frames))
        cell = int(favourites[list(one.frames)].mode().values)
        fields = receptive_fields(analysis.network, windows[frames], [cell])[:, 0]
        found = space_time(fields)
        maps = cropped(found.spatial, side, found.spatial.abs().mean(0))
        names = ", ".join(map(str, one.modes))
        told = f"mode{'s' * (len(one.modes) > 1)} {names}\n{len(one.frames)} frames\ncell {cell}"
        sheet.figure.text(
            0.12 / sheet.width, 1 - (above + FIELD / 2) / sheet.height, told, fontsize=7, va="center", parse_math=False
        )
        for column, frame in enumerate(frames):
            axes = sheet.axes(LEFT + 0.55 + column * (FIELD + 0.12), above, FIELD, FIELD)
            limit = max(float(maps[column].abs().max()), 1e-12)
            axes.imshow(maps[column].numpy(), cmap=COLOURS, vmin=-limit, vmax=limit, interpolation="nearest")
            axes.set_xticks([])
            axes.set_yticks([])
            axes.set_title(f"{frame / frame_rate:.2f} s", fontsize=6.5, pad=2)
        _courses(
            sheet.axes(LEFT + 0.55 + COLUMNS * (FIELD + 0.12) + 0.25, above, 1.6, FIELD), found.temporal, frame_rate
        )


def _courses(axes: Axes, temporal: Float[Tensor, "n F"], frame_rate: float) -> None:
    times = (np.arange(temporal.shape[1]) - temporal.shape[1] + 1) / frame_rate * 1000
    axes.plot(times, temporal.T.numpy(), color="#4A5560", linewidth=0.7, alpha=0.7)
    axes.axhline(0, color="#9AA5B1", linewidth=0.6)
    axes.tick_params(labelsize=6)
    axes.set_yticks([])
    axes.set_xlabel("ms", fontsize=6, labelpad=1)
    axes.spines[["top", "right", "left"]].set_visible(False)
