"""Results in notebooks: `html_of` is what they show by themselves, `show` draws the figure of one in a line.

from backlight.viz import show
show(found, "cat.jpg", loaded=loaded)                       # an attribution beside its picture
show({"SRD": one, "GradCAM": other}, "cat.jpg", loaded=loaded).save("maps.pdf", "column")
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backlight.errors import InputError
from backlight.viz.report_markup import Markup, escape, tag

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from backlight.viz.styles import Style

DPI = 144  # of pictures in a notebook, which shows them at 72

# which file of this room knows a result; the functions there go by the class's name, in lower case with underscores
_HTML = {
    "rich_display_pictures": "Attribution Perturbation ClassImage Segmentation ContributionMaps LatentFields",
    "rich_display_tables": "Coverage LoadedModel Contributions Decomposition Decomposed Concepts Bank ControlStudy "
    "ControlCurves Evaluation ExplainedText",
    "rich_display_graphs": "ConceptGraph Diagnosis GraphDifference",
}
_FILE = {name: file for file, names in _HTML.items() for name in names.split()}


@dataclass(frozen=True, eq=False)
class Drawing:
    """A figure that notebooks show. `figure`: matplotlib's."""

    figure: Figure

    def save(self, path: str | os.PathLike[str], style: str | Style | None = None) -> Path:
        """Write it as the path's suffix says (png, svg, pdf); `style`: fitted to one of `backlight.viz.styles`."""
        from backlight.viz import styles

        return styles.save(self.figure, path, style)[0]

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        held = io.BytesIO()
        self.figure.savefig(held, format="png", dpi=DPI)
        width, height = self.figure.get_size_inches() * DPI / 2
        return held.getvalue(), {"width": round(width), "height": round(height)}

    def __repr__(self) -> str:
        width, height = self.figure.get_size_inches()
        return f"Drawing({width:.1f} x {height:.1f} inches)"


def html_of(result: Any) -> str:
    """What a result shows in a notebook, as HTML without scripts or styles of its own.

    Raises:
        InputError: a result that has no such display.
    """
    body = _known(result)(result)
    heading = tag("p", tag("b", type(result).__name__), style="margin:0 0 .3em")
    fitting = body.replace('class="figure">', 'style="max-width:100%;height:auto">')  # a page's styles are not there
    return str(tag("div", heading, Markup(fitting), style="max-width:70em"))


def _known(result: Any) -> Callable[[Any], Markup]:
    for kind in type(result).__mro__:
        if kind.__name__ in _FILE:
            file = import_module(f"backlight.viz.{_FILE[kind.__name__]}")
            return getattr(file, _function(kind.__name__))
    raise InputError(f"{type(result).__name__} has no display; there is one of {', '.join(_FILE)}")


def _function(name: str) -> str:
    return "".join(f"_{one.lower()}" if one.isupper() else one for one in name).lstrip("_")


def show(result: Any, image: Any = None, *, loaded: Any = None, title: str = "", **settings: Any) -> Drawing:
    """The figure of a result: one line in a notebook.

    Args:
        result: an `Attribution`, a map, or several by their titles; what `perturb`, `visualise`, `weak_segmentation`,
            `contribute`, `contribution_maps`, `Cafe.explain`, `build_graph`, `diagnose`, `evaluate` or a control's
            `measure` give.
        image: the picture that maps lie on: a path, a PIL image or an array (give `loaded`, which crops it as the
            network sees it), or a tensor: the network's input with `loaded`, else in [-1, 1].
        loaded: the `LoadedModel`, for the picture and the names of classes.
        settings: of the figure: `sample=` of a batch, `metric=` of an evaluation, those of `graph_figure`, ...

    Raises:
        InputError: a result that has no figure; one that needs a picture, without it.
        MissingExtraError: matplotlib is not installed.
    """
    from backlight.viz.rich_display_figures import figure_of

    return Drawing(figure_of(result, image, loaded, title, settings))


def pre(text: str) -> Markup:
    """Words as they are set, lines and all."""
    return tag("pre", escape(text), style="white-space:pre-wrap;margin:.3em 0")
