"""Figures of an evaluation: for each metric a dot and an interval an explanation, best first."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from backlight.errors import MissingExtraError
from backlight.evaluation.tables import head, title
from backlight.metrics.controls import is_control

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from backlight.evaluation.evaluation import Evaluation

METHOD, CONTROL = "#2166AC", "#9AA5B1"
ROW, MARGIN, WIDTH = 0.27, 1.1, 6.5  # inches


def metric_figure(evaluation: Evaluation, metric: str) -> Figure:
    """Means and their intervals, the best on top, controls and negatives grey.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise MissingExtraError("matplotlib", "plots") from None
    table = {name: one for name, one in evaluation.table(metric).items() if one.n}
    names = sorted(table, key=lambda name: table[name].mean, reverse=evaluation.higher_is_better(metric))
    figure = Figure(figsize=(WIDTH, MARGIN + ROW * max(len(names), 1)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for place, name in enumerate(names):
        one, colour = table[name], CONTROL if is_control(name) else METHOD
        if not np.isnan(one.low):
            axes.plot([one.low, one.high], [place, place], color=colour, linewidth=1.8, solid_capstyle="butt")
        axes.plot(one.mean, place, "o", color=colour, markersize=5.5)
    axes.set_yticks(range(len(names)), names, fontsize=9, parse_math=False)
    for label, name in zip(axes.get_yticklabels(), names, strict=True):
        label.set_color("#6B7680" if is_control(name) else "black")
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlabel(f"{head(evaluation, metric)}  (mean, 95 % interval)", fontsize=9, parse_math=False)
    axes.tick_params(axis="x", labelsize=8.5)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="#E4E7EA", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.set_title(title(evaluation), fontsize=9.5, loc="left", parse_math=False)
    return figure


def write_figures(evaluation: Evaluation, folder: Path, kind: str = "png") -> list[Path]:
    """A file for each metric that is defined somewhere. Returns the paths."""
    from backlight.evaluation.journal import whole
    from backlight.viz import save_figure

    folder.mkdir(parents=True, exist_ok=True)
    found: list[Path] = []
    for metric in evaluation.metrics:
        if any(one.n for one in evaluation.table(metric).values()):
            name = re.sub(r"[^\w.+-]+", "-", metric).strip("-") or "metric"
            path = folder / f"{name}.{kind}"
            path = path if path not in found else folder / f"{name}-{len(found)}.{kind}"
            with whole(path) as partial:
                save_figure(metric_figure(evaluation, metric), partial, kind)
            found.append(path)
    return found
