"""The figure of contribution maps: what it shows, and where."""

from __future__ import annotations

import numpy as np
import pytest

from backlight.errors import InputError

pytest.importorskip("matplotlib")

from backlight.viz.contribution_maps import contribution_figure


def test_a_column_for_each_set() -> None:
    image, generator = np.zeros((3, 12, 8), dtype=np.float32), np.random.default_rng(0)
    maps = {name: generator.normal(size=(3, 12, 8)).astype(np.float32) for name in ("first\n+1", "second $x\n-2")}
    masked = dict.fromkeys(maps, image - 1)
    figure = contribution_figure(image, maps, masked, "picture\nnetwork")
    assert [axes.get_title() for axes in figure.axes if axes.get_title()] == list(maps)
    assert len(figure.axes) == 1 + 3 * len(maps)  # the picture; of each set a map, its colour bar, a masked picture
    assert [text.get_text() for text in figure.texts] == ["picture", "network"]
    shown = [axes.images[0].get_array() for axes in figure.axes if axes.images]
    assert np.allclose(shown[0], 0.5)
    assert sum(np.all(one == 0) for one in shown if one.ndim == 3) == len(maps)
    figure.canvas.draw()
    boxes = [axes.get_position() for axes in figure.axes]
    assert all(0 <= box.x0 < box.x1 <= 1 and 0 <= box.y0 < box.y1 <= 1 for box in boxes)


def test_maps_and_masked_pictures_belong_together() -> None:
    image = np.zeros((3, 4, 4), dtype=np.float32)
    with pytest.raises(InputError, match="masked picture"):
        contribution_figure(image, {"a": image}, {"b": image})
    with pytest.raises(InputError, match="masked picture"):
        contribution_figure(image, {}, {})
