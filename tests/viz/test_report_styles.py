"""Figures at a paper's widths: letters stay letters, and matplotlib's settings stay what they were."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")

import matplotlib
import torch
from matplotlib.text import Text

from backlight.errors import UnknownNameError
from backlight.viz import maps_figure, styles


def test_settings_are_left_alone_and_letters_are_letters(tmp_path: Path) -> None:
    before = dict(matplotlib.rcParams)
    figure = maps_figure(torch.zeros(3, 8, 8), {"one $map$": torch.randn(3, 8, 8)}, "column")
    written = styles.save(figure, tmp_path / "a.b", None, ["svg", "pdf", "png"])
    assert dict(matplotlib.rcParams) == before
    svg, pdf, _ = (path.read_bytes() for path in written)
    assert b"one $map$</text>" in svg
    assert b"/Type3" not in pdf
    assert b"/CIDFontType2" in pdf
    assert [path.name for path in written] == ["a.b.svg", "a.b.pdf", "a.b.png"]


@pytest.mark.parametrize(("name", "width"), [("column", 3.25), ("double", 6.75), ("text", 5.5)])
def test_widths(name: str, width: float, tmp_path: Path) -> None:
    figure = maps_figure(torch.zeros(3, 8, 8), {str(n): torch.randn(3, 8, 8) for n in range(5)}, name)
    (path,) = styles.save(figure, tmp_path / "one.svg", None)
    (shown,) = re.findall(r'<svg[^>]* width="([\d.]+)pt"', path.read_text())
    assert float(shown) == pytest.approx(72 * width)


def test_scale_of_a_map_is_below_it() -> None:
    one = torch.zeros(1, 4, 4)
    one[0, 1, 1] = -3.0
    figure = maps_figure(torch.zeros(3, 4, 4), {"m": one})
    texts = {text.get_text() for text in figure.findobj(Text)}
    assert {"−3", "0", "+3", "m", "input"} <= texts or {"−2.8", "+2.8"} & texts


def test_a_style_that_there_is_not() -> None:
    with pytest.raises(UnknownNameError, match="double"):
        styles.style("dubble")
    assert styles.style("column", "serif").family[0] == "STIXGeneral"
