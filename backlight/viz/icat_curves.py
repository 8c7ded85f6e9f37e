"""The figure of interlayer insertion and deletion: two panels a network, a line an operator (iERF, Figure 11)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from backlight.viz.insertion import insertion_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Curves = Mapping[str, Sequence[float] | np.ndarray]


def icat_figure(
    panels: Mapping[str, tuple[Curves, Curves]], shares: Sequence[float], controls: Sequence[str] = (), title: str = ""
) -> Figure:
    """Curves by panel, (means, standard errors) of each operator at the shares of the active parents.

    Raises:
        MissingExtraError: matplotlib is not installed.
        InputError: no panel, or a curve of another length than its shares.
    """
    figure = insertion_figure({name: (shares, means) for name, (means, _) in panels.items()}, controls, title)
    for axes, (means, errors) in zip(figure.axes, panels.values(), strict=False):
        lines = axes.get_lines()[-len(means) :]
        for line, mean, error in zip(lines, means.values(), errors.values(), strict=True):
            low, high = np.subtract(mean, error), np.add(mean, error)
            axes.fill_between(shares, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
        axes.set_xlabel("share of the active parents", fontsize=8.5)
        if axes.get_ylabel():
            axes.set_ylabel("alignment / with all parents", fontsize=8.5)
    return figure
