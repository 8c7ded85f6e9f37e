"""Figures of latents: rows, the mark of the token, what stays of the picture, and a layer's points."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from routed_network import Routed, dictionary_of, routed_image

from backlight.concepts.cafe import Cafe
from backlight.concepts.localisation import localise
from backlight.errors import InputError, MissingExtraError
from backlight.viz.latents import Shown, latent_page, localisation_figure, most_of, shown

matplotlib = pytest.importorskip("matplotlib")


def reading() -> Any:
    rows = torch.tensor([[0.0, 0, 0, 1], [0, 0, 1, 0]], dtype=torch.float64)
    return dictionary_of(rows, torch.tensor([-0.5, -0.5], dtype=torch.float64))


def rectangles(axes: Any) -> list[Any]:
    return [patch for patch in axes.patches if isinstance(patch, matplotlib.patches.Rectangle)]


def test_a_page_marks_the_token_and_shows_where_it_looks() -> None:
    image = routed_image((0, 1), (4, 3))
    found = Cafe(Routed(), reading(), "blocks.0").explain(image, [0, 0])
    rows = shown(found, image, ["a.png", "b.png"])
    assert rows[1].caption.endswith("b.png")
    figure = latent_page(rows, np.array([0.0, 0.0, 1.0, 3.0]), "latent 0")
    assert len(figure.axes) == 2 * 4 + 1
    for panel in figure.axes[:8]:
        assert rectangles(panel)[-1].get_xy() == (1, 0)  # the asker, column 1 of row 0; a patch is one pixel
        assert rectangles(panel)[-1].get_width() == 1
    mask = np.asarray(figure.axes[3].images[-1].get_array())[..., 3]
    assert mask[4, 3] == 0  # the driver is left uncovered
    assert mask[0, 1] > 0.5
    assert "2 of 4 tokens" in figure.axes[-1].get_xlabel()


def test_the_sum_over_tokens_has_no_mark() -> None:
    image = routed_image((0, 1), (4, 3))
    rows = shown(Cafe(Routed(), reading(), "blocks.0", token="sum").explain(image, 0), image)
    assert rows[0].token is None
    assert not rectangles(latent_page(rows).axes[0])


def test_what_holds_most_of_a_map() -> None:
    field = np.array([[0.0, 5.0], [3.0, 2.0]])
    assert most_of(field, 0.5).tolist() == [[False, True], [False, False]]
    assert most_of(field, 0.8).tolist() == [[False, True], [True, False]]
    assert most_of(field, 1.0).tolist() == [[False, True], [True, True]]
    assert not most_of(np.zeros((2, 2))).any()
    assert not most_of(-np.ones((2, 2))).any()


def test_empty_maps_are_drawn_and_no_rows_are_refused() -> None:
    blank = Shown(np.zeros((3, 4, 4)), np.zeros((2, 2)), np.zeros((2, 2)), (0, 1))
    assert len(latent_page([blank], np.zeros(3)).axes) == 5
    with pytest.raises(InputError, match="at least one picture"):
        latent_page([])


def test_a_layer_s_figure_has_a_point_a_latent() -> None:
    images = torch.cat([routed_image((0, 1), (4, 3)), routed_image((3, 3), (0, 0))])
    found = localise(Routed(), reading(), "blocks.0", images, per_latent=2)
    figure = localisation_figure(found, 1)
    points = figure.axes[0].collections[0].get_offsets()
    expected = [[one.activation_patches, one.outside] for one in found.latents]
    assert np.allclose(np.asarray(points), expected)
    assert [text.get_text() for text in figure.axes[0].texts] == ["0"]  # the one that looks away


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    blank = Shown(np.zeros((3, 4, 4)), np.zeros((2, 2)), np.zeros((2, 2)), None)
    with pytest.raises(MissingExtraError, match=r"backlight\[plots\]"):
        latent_page([blank])
