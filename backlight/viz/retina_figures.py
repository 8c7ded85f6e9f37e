"""The figure of a retina's analysis: rates and loadings in time, cells against modes, receptive fields by combination.

After CODEC's figure 8: A, a stretch of the movie with the cells' rates and the loadings of the modes; B, for each site,
correlations of cells with modes, cells in the order of their clusters; C, receptive fields of the cell that a
combination of modes drives most, at several of its frames; D, those of several cells in one frame of a mode.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from backlight.retina.analysis import RetinaAnalysis, SiteModes, loudest
from backlight.retina.clusters import standardised
from backlight.retina.combinations import Combination, combinations, examples
from backlight.retina.receptive_fields import cropped, receptive_fields, space_time
from backlight.shapes import Float, Int
from backlight.viz.figures import COLOURS, Sheet

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STRETCH = 300  # frames
GROUPS = ("#B2182B", "#2166AC", "#4D9221", "#C77CFF", "#E69F00", "#4A5560", "#8C510A", "#01665E")
LEFT, WIDTH, GAP = 0.8, 9.0, 1.2  # inches
FIELD, COLUMNS, ROWS = 0.92, 6, 5
STEP = FIELD + 0.32  # from row to row


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
    below = 2.3 + 1.75 + 0.95
    matrix = 0.5 + 0.18 * analysis.rates.shape[1]
    fields = 0.5 + below + matrix + 1.0
    mates = fields + max(1, len(shown)) * STEP + 0.45
    sheet = Sheet(LEFT + WIDTH + 0.6, mates + (FIELD + 0.3 if shown else -0.3))
    order = torch.argsort(chosen.clusters.labels, stable=True)
    told = analysis.held_out.about.get("types", [])
    names = [f"{told[i]} {i}" if i < len(told) else str(i) for i in range(analysis.rates.shape[1])]
    begin = _busiest(analysis.rates) if start is None else start
    _stretch(sheet, analysis, chosen, order, slice(begin, begin + STRETCH), frame_rate, names)
    top = 0.5 + below
    each = (WIDTH - GAP * (len(analysis.sites) - 1)) / len(analysis.sites)
    for column, modes in enumerate(analysis.sites.values()):
        groups = matched(modes.clusters.labels, chosen.clusters.labels)
        _association(sheet, LEFT + column * (each + GAP), top, each, matrix, modes, groups, names)
    _fields(sheet, analysis, chosen, shown, fields, side, frame_rate, names)
    if shown:
        _mates(sheet, analysis, chosen, shown[0], mates, frame_rate, names)
    what = "contributions to surprisal" if chosen.decomposed.quantity == "contributions" else "activations"
    sheet.title(title or f"A retina of {analysis.rates.shape[1]} cells: modes of {what}, held-out movie")
    return sheet.figure


def matched(labels: Int[Tensor, "cells"], others: Int[Tensor, "cells"]) -> Int[Tensor, "cells"]:
    """The same clusters under the numbers of those of `others` that they share most cells with, the largest first.

    Clusters without a counterpart get the lowest numbers that are free. What was apart stays apart.
    """
    shared = torch.zeros(int(labels.max()) + 1, int(others.max()) + 1, dtype=torch.long)
    shared.index_put_((labels, others), torch.ones_like(labels), accumulate=True)
    given: dict[int, int] = {}
    for place in torch.argsort(shared.flatten(), descending=True, stable=True).tolist():
        own, other = divmod(place, shared.shape[1])
        if shared[own, other] > 0 and own not in given and other not in given.values():
            given[own] = other
    free = (number for number in range(sum(shared.shape)) if number not in {*given.values()})
    return torch.tensor([given[own] if own in given else next(free) for own in range(len(shared))])[labels]


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
    names: Sequence[str],
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
    axes.set_yticks(np.arange(len(order)) + 0.4, [names[cell] for cell in order.tolist()[::-1]], fontsize=6)
    axes.set_title("A   rates (each to its peak; colours: clusters) and loadings of modes", fontsize=9.5, loc="left")
    axes.tick_params(axis="x", labelbottom=False)
    axes.spines[["top", "right"]].set_visible(False)
    on = _ordered_modes(modes, 40, modes.clusters.labels)
    lower = sheet.axes(LEFT, 2.85, WIDTH, 1.75)
    top = max(float(loadings[:, on].abs().max()), 1e-9) if len(on) else 1.0
    drawn = loadings[:, on].T.numpy() if len(on) else np.zeros((1, len(rates)))
    extent = (float(times[0]), float(times[-1]), len(drawn), 0.0)
    colours, least = ("Greys", 0.0) if drawn.min() >= 0 else (COLOURS, -top)
    image = lower.imshow(
        drawn, aspect="auto", extent=extent, interpolation="nearest", cmap=colours, vmin=least, vmax=top
    )
    bar = sheet.figure.colorbar(image, cax=sheet.axes(LEFT + WIDTH + 0.06, 2.85, 0.08, 1.75))
    bar.ax.tick_params(labelsize=6)
    lower.set_xlabel("time (s)", fontsize=8)
    lower.set_ylabel(f"{len(on)} of {len(modes.alive)} modes\n{modes.site}", fontsize=8, labelpad=8)
    lower.set_yticks([])
    for one in (axes, lower):
        one.tick_params(axis="x", labelsize=7)


def _ordered_modes(modes: SiteModes, most: int, groups: Int[Tensor, "cells"]) -> Int[Tensor, "k"]:
    """The modes that are on most often, in the order of the cell that they go with; `groups`: of the cells."""
    alive = modes.alive
    often = (modes.loadings[:, alive] != 0).double().mean(0)
    kept = alive[often.argsort(descending=True, stable=True)[:most]]
    rank = torch.argsort(torch.argsort(groups, stable=True))
    first = modes.association[:, kept].argmax(0)
    return kept[torch.argsort(rank[first], stable=True)]


def _association(
    sheet: Sheet,
    left: float,
    top: float,
    width: float,
    height: float,
    modes: SiteModes,
    groups: Int[Tensor, "cells"],
    names: Sequence[str],
) -> None:
    """Cells, in the order of their clusters, against modes. `groups`: the clusters, numbered as in the other panels."""
    rows = torch.argsort(groups, stable=True)
    kept = _ordered_modes(modes, 60, groups)
    axes = sheet.axes(left, top, width, height)
    values = modes.association[rows][:, kept].numpy()
    values = values if values.size else np.zeros((len(rows), 1))  # no mode is on
    limit = max(0.1, float(np.abs(values).max()))
    drawn = axes.imshow(values, aspect="auto", cmap=COLOURS, vmin=-limit, vmax=limit, interpolation="nearest")
    axes.set_yticks(range(len(rows)), [names[cell] for cell in rows.tolist()], fontsize=6)
    for label, cell in zip(axes.get_yticklabels(), rows.tolist(), strict=True):
        label.set_color(GROUPS[int(groups[cell]) % len(GROUPS)])
    ends = np.flatnonzero(np.diff(groups[rows].numpy())) + 0.5
    for end in ends:
        axes.axhline(end, color="black", linewidth=0.8)
    axes.set_xlabel(f"{len(kept)} of {len(modes.alive)} modes that are on", fontsize=8)
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
    names: Sequence[str],
) -> None:
    """A row a combination: spatial maps at some of its frames, and their courses in time."""
    height, width = (min(side, one) for one in analysis.held_out.stimulus.shape[1:])
    said = f"maps of {height} x {width} pixels, each to its peak, and courses in time"
    sheet.text(LEFT, top - 0.3, f"C   receptive fields where a combination of modes is on: {said}", fontsize=9.5)
    if not shown:
        sheet.text(LEFT, top + 0.3, "no combination of one to four modes is on in two frames or more", fontsize=8)
    windows = analysis.held_out.windows
    favourites = loudest(analysis.rates)
    for row, one in enumerate(shown):
        above = top + row * STEP
        frames = list(examples(one, modes.loadings, COLUMNS, apart=analysis.held_out.frames))
        cell = int(favourites[list(one.frames)].mode().values)
        fields = receptive_fields(analysis.network, windows[frames], [cell])[:, 0]
        found = space_time(fields)
        maps = cropped(found.spatial, side, found.spatial.abs().mean(0))
        sheet.text(0.12, above + FIELD / 2, f"{_named(one)}\n{len(one.frames)} frames\n{names[cell]}", fontsize=7)
        for column, frame in enumerate(frames):
            axes = sheet.axes(LEFT + 0.55 + column * (FIELD + 0.12), above, FIELD, FIELD)
            _map(axes, maps[column], f"{frame / frame_rate:.2f} s")
        _courses(
            sheet.axes(LEFT + 0.55 + COLUMNS * (FIELD + 0.12) + 0.25, above, 1.6, FIELD), found.temporal, frame_rate
        )


def _mates(
    sheet: Sheet,
    analysis: RetinaAnalysis,
    modes: SiteModes,
    one: Combination,
    top: float,
    frame_rate: float,
    names: Sequence[str],
) -> None:
    """The cells that fire most, relative to their own, in the strongest frame of a combination: whole maps."""
    frame = examples(one, modes.loadings, 1)[0]
    cells = standardised(analysis.rates)[frame].topk(min(COLUMNS, analysis.rates.shape[1])).indices.tolist()
    found = space_time(receptive_fields(analysis.network, analysis.held_out.windows[frame : frame + 1], cells)[0])
    said = f"D   receptive fields of the cells that fire most at {frame / frame_rate:.2f} s: maps of the whole stimulus"
    sheet.text(LEFT, top - 0.3, said, fontsize=9.5)
    sheet.text(0.12, top + FIELD / 2, _named(one), fontsize=7)
    for column, cell in enumerate(cells):
        _map(sheet.axes(LEFT + 0.55 + column * (FIELD + 0.12), top, FIELD, FIELD), found.spatial[column], names[cell])
    _courses(sheet.axes(LEFT + 0.55 + COLUMNS * (FIELD + 0.12) + 0.25, top, 1.6, FIELD), found.temporal, frame_rate)


def _named(one: Combination) -> str:
    """Its modes, two on a line."""
    numbers = [f"{mode}," for mode in one.modes[:-1]] + [str(one.modes[-1])]
    lines = [" ".join(numbers[i : i + 2]) for i in range(0, len(numbers), 2)]
    return f"mode{'s' * (len(one.modes) > 1)} " + "\n".join(lines)


def _map(axes: Axes, values: Float[Tensor, "h w"], name: str) -> None:
    limit = max(float(values.abs().max()), 1e-12)
    axes.imshow(values.numpy(), cmap=COLOURS, vmin=-limit, vmax=limit, interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_title(name, fontsize=6.5, pad=2)


def _courses(axes: Axes, temporal: Float[Tensor, "n F"], frame_rate: float) -> None:
    times = (np.arange(temporal.shape[1]) - temporal.shape[1] + 1) / frame_rate * 1000
    axes.plot(times, temporal.T.numpy(), color="#4A5560", linewidth=0.7, alpha=0.7)
    axes.axhline(0, color="#9AA5B1", linewidth=0.6)
    axes.tick_params(labelsize=6)
    axes.set_yticks([])
    axes.set_xlabel("ms", fontsize=6, labelpad=1)
    axes.spines[["top", "right", "left"]].set_visible(False)
