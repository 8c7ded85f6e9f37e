"""Figures of what modes mean: correlations, coverage, and sheets of a mode's samples and channels."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from backlight.contributions.modes import Level, Modes
from backlight.errors import MissingExtraError
from backlight.shapes import Float

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from torch import Tensor

COLOURS = {"modes": "#2166AC", "contributions": "#D6604D", "activations": "#7A8691", "gradients": "#5AAE61"}
CHANCE = "#B9C0C7"
SIDE, GAP, LABEL, BARS = 1.15, 0.12, 0.34, 2.3  # inches
TOP_CHANNELS, BINS = 10, 24

Picture = Callable[[str], "Float[Tensor, '3 H W']"]


def correlation_figure(modes: Modes, name: str) -> Figure:
    """Histograms of each column's largest r, of modes, channels and chance, and their medians (CODEC, figure 5A, B).

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    level = modes.levels[name]
    figure = _figure(7.2, 3.2)
    axes = figure.subplots(1, 2, sharex=True)
    shown = {"modes": level.modes} | level.channels
    for place, (ax, kind) in enumerate(zip(axes, ("strongest", "held_out"), strict=True)):
        pairs = [(title, getattr(one, kind)[one.alive].numpy()) for title, one in shown.items()]
        dealt = level.modes.dealt[:, level.modes.alive].flatten().numpy()
        drawn = np.concatenate([values for _, values in pairs] + ([dealt] if kind == "strongest" else []))
        low, high = (drawn.min(), drawn.max()) if len(drawn) else (0.0, 1.0)  # nothing is alive, or was dealt
        bins = np.linspace(low, high + 1e-9, BINS + 1)
        for title, values in pairs:
            label = title if title == "modes" else f"channels ({title})"
            _histogram(ax, values, bins, COLOURS.get(title, "#000000"), label)
        if kind == "strongest" and len(dealt):
            _histogram(ax, dealt, bins, CHANCE, "modes, masks dealt at random")
        ax.set_xlabel("largest r with a mask" if not place else "the same, on other samples", fontsize=9)
        _plain(ax)
    axes[0].set_ylabel("share of columns", fontsize=9)
    axes[1].legend(*axes[0].get_legend_handles_labels(), fontsize=7.5, frameon=False)
    figure.suptitle(f"{modes.site}: {len(level.concepts)} {name}; lines: medians", fontsize=9.5, x=0.01, ha="left")
    return figure


def coverage_figure(modes: Modes, name: str) -> Figure:
    """The mean r of a class's k-th best mode, and of a mode's k-th best class; channels beside them.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    level = modes.levels[name]
    figure = _figure(7.2, 3.0)
    axes = figure.subplots(1, 2)
    shown = {"modes": level} | {title: Level(level.concepts, one) for title, one in level.channels.items()}
    for title, one in shown.items():
        label = title if title == "modes" else f"channels ({title})"
        for ax, curve in zip(axes, one.coverage(), strict=True):
            ax.plot(
                np.arange(1, len(curve) + 1), curve, color=COLOURS.get(title, "#000000"), label=label, linewidth=1.5
            )
    for ax, what in zip(axes, (f"k-th best column of one of the {name}", f"k-th best of the {name}"), strict=True):
        ax.axhline(0, color="#C8CED4", linewidth=0.8)
        ax.set_xlabel(what, fontsize=9)
        _plain(ax)
    axes[0].set_xscale("log")
    axes[0].set_ylabel("mean r", fontsize=9)
    axes[1].legend(fontsize=7.5, frameon=False)
    figure.suptitle(f"{modes.site}: coverage", fontsize=9.5, x=0.01, ha="left")
    return figure


def exemplar_sheet(modes: Modes, chosen: list[int], picture: Picture | None = None, title: str = "") -> Figure:
    """A row for each mode: its samples with the largest loadings, and its top channels.

    `picture`: a sample's image in [-1, 1] by its name; without it, names stand in the place of pictures.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    from backlight.viz.figures import Sheet

    columns = modes.exemplars.samples.shape[1]
    row = SIDE + LABEL + 0.3
    sheet = Sheet(0.25 + columns * (SIDE + GAP) + 0.5 + BARS, 0.45 + row * max(len(chosen), 1))
    sheet.title(title or f"{modes.site}: modes, the samples on which they are largest, and their top channels")
    for place, mode in enumerate(chosen):
        top = 0.45 + place * row
        sheet.text(0.1, top + 0.08, _heading(modes, mode), fontsize=9, fontweight="bold")
        for column, (sample, loading) in enumerate(
            zip(modes.exemplars.samples[mode].tolist(), modes.exemplars.loadings[mode].tolist(), strict=True)
        ):
            if loading == 0:
                break
            left = 0.1 + column * (SIDE + GAP)
            axes = sheet.axes(left, top + 0.22, SIDE, SIDE)
            _draw_sample(axes, modes, sample, picture)
            sheet.text(left, top + 0.22 + SIDE + 0.1, f"{loading:.3g} {modes.label(sample)}"[:22], fontsize=7)
        bars = sheet.axes(0.1 + columns * (SIDE + GAP) + 0.55, top + 0.22, BARS - 0.35, SIDE)
        _draw_channels(bars, modes.channels(mode, TOP_CHANNELS))
    return sheet.figure


def _heading(modes: Modes, mode: int) -> str:
    """ "mode 12, active on 3.2 %: dog.n.01 r .62 (other samples .58, chance .11)"; no chance where none was dealt."""
    name, one = modes.level.best_concepts(mode, 1)[0][0], modes.level.modes
    chance = f", chance {one.chance[mode]:.2f}" if len(one.dealt) else ""
    rest = f"r {one.strongest[mode]:.2f} (other samples {one.held_out[mode]:.2f}{chance})"
    return f"mode {mode}, active on {100 * modes.exemplars.active[mode]:.3g} %: {name} {rest}"


def _draw_sample(axes: Axes, modes: Modes, sample: int, picture: Picture | None) -> None:
    from backlight.viz.figures import draw_image

    if picture is not None:
        draw_image(axes, picture(modes.names[sample]))
        return
    axes.set(xticks=[], yticks=[])
    name = modes.names[sample]
    lines = "\n".join(name[start : start + 14] for start in range(0, min(len(name), 56), 14))
    axes.text(0.5, 0.5, lines, ha="center", va="center", fontsize=7, parse_math=False)
    axes.spines[:].set_color("#C8CED4")


def _draw_channels(axes: Axes, channels: list[tuple[str, float]]) -> None:
    names, weights = [name for name, _ in channels], [weight for _, weight in channels]
    axes.barh(range(len(names)), weights, color=[COLOURS["modes"] if one > 0 else "#B2182B" for one in weights])
    axes.set_yticks(range(len(names)), names, fontsize=6)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.tick_params(axis="x", labelsize=6.5, length=2, pad=1)
    axes.tick_params(axis="y", length=0, pad=1)
    axes.locator_params(axis="x", nbins=4)
    axes.spines[["top", "right"]].set_visible(False)


def _histogram(axes: Axes, values: np.ndarray, bins: np.ndarray, colour: str, label: str) -> None:
    shares = np.full(len(values), 1 / max(len(values), 1))
    if colour in (CHANCE, COLOURS["modes"]):
        axes.hist(values, bins.tolist(), weights=shares, histtype="stepfilled", color=colour, alpha=0.18)
    axes.hist(values, bins.tolist(), weights=shares, histtype="step", color=colour, linewidth=1.4, label=label)
    if len(values):
        axes.axvline(float(np.median(values)), color=colour, linewidth=1, linestyle=":")


def _plain(axes: Axes) -> None:
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def _figure(width: float, height: float) -> Figure:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise MissingExtraError("matplotlib", "plots") from None
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure
