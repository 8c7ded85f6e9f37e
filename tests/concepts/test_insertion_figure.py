"""The figure of insertion curves."""

from __future__ import annotations

import pytest

from backlight.errors import InputError
from backlight.viz.insertion import insertion_figure

pytest.importorskip("matplotlib")


def test_a_panel_a_layer_and_a_line_an_order() -> None:
    curves = {"AttnLRP": [0, 0.8, 1.2], "AttnLRP, signed": [0, 0.9, 1], "Random": [0, 0.2, 1]}
    figure = insertion_figure({f"blocks.{n}": ([0, 0.5, 1], curves) for n in range(5)}, ["Random"], "a title")
    assert len(figure.axes) == 5
    (key,) = figure.legends
    lines = dict(zip([text.get_text() for text in key.get_texts()], key.get_lines(), strict=True))
    assert list(lines) == list(curves)
    assert lines["AttnLRP"].get_color() == lines["AttnLRP, signed"].get_color() != lines["Random"].get_color()
    assert lines["Random"].get_linestyle() == "--"
    for axes in figure.axes:
        drawn = [line for line in axes.lines if len(line.get_xdata()) == 3]
        assert [list(line.get_ydata()) for line in drawn] == list(curves.values())
        box = axes.get_position()
        assert 0 <= box.x0 < box.x1 <= 1
        assert 0 < box.y0 < box.y1 < 1


def test_what_cannot_be_drawn() -> None:
    with pytest.raises(InputError, match="no panel"):
        insertion_figure({})
    with pytest.raises(InputError, match="3 values at 2"):
        insertion_figure({"a": ([0, 1], {"x": [0, 1, 2]})})
