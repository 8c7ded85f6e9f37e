"""Figures for papers: at a column's width, with fonts that stay text. Nothing of matplotlib's settings is changed.

    from backlight.viz import styles
    styles.save(figure, "maps.pdf", "column")

The look is set on the figure itself; how files embed fonts is a setting of matplotlib alone, which holds while the
file is written.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backlight.errors import InputError, MissingExtraError, UnknownNameError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# fonts as text: editors and search find the letters (Type 3, matplotlib's default, is refused by some publishers)
FONTS: dict[str, Any] = {"svg.fonttype": "none", "pdf.fonttype": 42, "ps.fonttype": 42}
FAMILIES = {"sans": ["DejaVu Sans"], "serif": ["STIXGeneral", "DejaVu Serif"]}  # both come with matplotlib
KINDS = ("png", "svg", "pdf")


@dataclass(frozen=True)
class Style:
    """`width`: of a figure, in inches; `size`: of letters, in points, `small` of ticks and notes; `dpi`: of PNG."""

    width: float
    size: float = 8.0
    small: float = 6.5
    family: tuple[str, ...] = ("DejaVu Sans",)
    dpi: int = 300
    line: float = 0.6
    fonts: Mapping[str, Any] = field(default_factory=lambda: dict(FONTS))


STYLES = {
    "column": Style(3.25),  # of two: 82.5 mm (IEEE, CVPR, ICML, ACL within a millimetre or two)
    "double": Style(6.75),  # across both columns
    "text": Style(5.5),  # a page of one column (NeurIPS, ICLR)
    "slide": Style(10.0, 14.0, 11.0, line=1.0),
}


def style(name: str | Style, family: str = "sans") -> Style:
    """A style by its name, "column", "double", "text" or "slide"; `family`: "sans" or "serif".

    Raises:
        UnknownNameError: another style or family.
    """
    if isinstance(name, Style):
        return name
    if name not in STYLES:
        raise UnknownNameError("style", name, STYLES)
    if family not in FAMILIES:
        raise UnknownNameError("family of fonts", family, FAMILIES)
    found = STYLES[name]
    return Style(found.width, found.size, found.small, tuple(FAMILIES[family]), found.dpi, found.line)


def fit(figure: Figure, to: str | Style = "column") -> Figure:
    """Bring a figure to a style: its width, its letters. The figure itself is changed, and returned.

    A figure that lays itself out (`layout="constrained"`) keeps its height, and its letters get the style's sizes. The
    panels of others are placed in inches: these are scaled as a whole, letters with them, but not below five points.
    """
    chosen = style(to)
    width, height = figure.get_size_inches()
    texts = [one for one in _texts(figure) if one.get_text()]
    if figure.get_layout_engine() is not None:
        figure.set_size_inches(chosen.width, height)
        largest = max((one.get_fontsize() for one in texts), default=chosen.size)
        for one in texts:
            one.set_fontsize(chosen.size if one.get_fontsize() >= largest else chosen.small)
    else:
        factor = chosen.width / width
        figure.set_size_inches(chosen.width, height * factor)
        for one in texts:
            one.set_fontsize(max(one.get_fontsize() * factor, 5.0))
    for one in texts:
        one.set_fontfamily(list(chosen.family))
    return figure


def save(
    figure: Figure, path: str | os.PathLike[str], to: str | Style | None = "column", kinds: Iterable[str] = ()
) -> list[Path]:
    """Fit a figure to a style and write it with fonts as text. Returns the paths.

    Args:
        to: the style; None: the figure is in its style already.
        kinds: "png", "svg", "pdf", each to a file of the path's name; by default the path's suffix.

    Raises:
        UnknownNameError: a style or a kind of file.
        MissingExtraError: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ModuleNotFoundError:
        raise MissingExtraError("matplotlib", "plots") from None
    from backlight.viz.figures import save_figure

    file = Path(path)
    wanted = list(kinds) or [file.suffix[1:]]
    for kind in wanted:
        if kind not in KINDS:
            raise UnknownNameError("kind of figure", kind, KINDS)
    if not file.name or figure is None:
        raise InputError(f"expected a figure and the path of a file, got {path!r}")
    chosen = style(to or "column")
    if to is not None:
        fit(figure, chosen)
    found = []
    for kind in wanted:
        one = file.with_name(f"{file.name}.{kind}") if kinds else file
        with matplotlib.rc_context(dict(chosen.fonts)):
            save_figure(figure, one, kind, dpi=chosen.dpi)
        found.append(one)
    return found


def _texts(figure: Figure) -> list[Any]:
    from matplotlib.text import Text

    return figure.findobj(Text)
