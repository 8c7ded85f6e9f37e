"""The figure of insertion curves: a panel a layer, a line an order, controls dashed."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from backlight.errors import InputError
from backlight.viz.figures import Sheet

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#B2182B", "#2166AC", "#1B7837", "#E08214", "#762A83", "#35978F", "#8C510A", "#C51B7D", "#4D4D4D")
GREYS = ("#4A5560", "#7B8794", "#A9B2BB")
LEFT, TOP, SIDE, BETWEEN, BELOW, KEY = 0.65, 0.75, 2.5, 0.5, 0.55, 0.24  # inches
IN_ROW, KEYS = 4, 5


def insertion_figure(
    panels: Mapping[str, tuple[Sequence[float], Mapping[str, Sequence[float] | np.ndarray]]],
    controls: Collection[str] = (),
    title: str = "",
) -> Figure:
    """Curves by panel: the shares of patches, from 0 to 1, and for each order the mean normalised value.

    An order has one colour in all panels. `controls` are grey and dashed.

    Raises:
        MissingExtraError: matplotlib is not installed.
        InputError: no panel, or a curve of another length than its shares.
    """
    if not panels:
        raise InputError("no panel to draw")
    orders = list(dict.fromkeys(name for _, curves in panels.values() for name in curves))
    styles = _styles(orders, controls)
    across, down = min(len(panels), IN_ROW), -(-len(panels) // IN_ROW)
    rows = -(-len(orders) // KEYS)
    width = max(LEFT + across * (SIDE + BETWEEN), 7.5)
    sheet = Sheet(width, TOP + down * (SIDE + BELOW + 0.3) + rows * KEY + 0.1)
    key: dict[str, Any] = {}
    for place, (name, (shares, curves)) in enumerate(panels.items()):
        row, column = divmod(place, IN_ROW)
        axes = sheet.axes(LEFT + column * (SIDE + BETWEEN), TOP + row * (SIDE + BELOW + 0.3), SIDE, SIDE)
        axes.axhline(1, color="#C9D0D6", linewidth=0.8)
        for order, curve in curves.items():
            if len(curve) != len(shares):
                raise InputError(f"a curve of {len(curve)} values at {len(shares)} shares")
            (key[order],) = axes.plot(shares, curve, **styles[order])
        axes.set_title(name, fontsize=9.5, parse_math=False)
        axes.set_xlim(0, 1)
        axes.set_xlabel("share of patches", fontsize=8.5)
        if column == 0:
            axes.set_ylabel("z / z of the whole image", fontsize=8.5)
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    drawn = {name: key[name] for name in orders}
    sheet.figure.legend(
        drawn.values(), drawn, loc="lower left", bbox_to_anchor=(LEFT / sheet.width, 0.01), ncols=KEYS, fontsize=8,
        frameon=False, borderpad=0,
    )  # fmt: skip
    sheet.title(title)
    return sheet.figure


def _styles(orders: Sequence[str], controls: Collection[str]) -> dict[str, dict[str, Any]]:
    """Colours in turn; the signed version of an order has its colour, dotted."""
    found: dict[str, dict[str, Any]] = {}
    bases = list(dict.fromkeys(name.partition(", ")[0] for name in orders if name not in controls))
    grey = 0
    for name in orders:
        if name in controls:
            found[name] = {"color": GREYS[grey % len(GREYS)], "linestyle": "--", "linewidth": 1.2}
            grey += 1
            continue
        base = name.partition(", ")[0]
        style = "-" if base == name else ":"
        found[name] = {"color": COLOURS[bases.index(base) % len(COLOURS)], "linestyle": style, "linewidth": 1.5}
    return found
