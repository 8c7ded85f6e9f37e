"""Figures of masks and class models: what is drawn where."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("matplotlib")
from matplotlib.patches import Rectangle

from backlight.viz import class_figure, segmentation_figure


def drawn(figure: object) -> np.ndarray:
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3].astype(int)


@pytest.mark.parametrize("size", [(30, 40), (40, 30), (30, 30)])
def test_the_mask_its_box_and_the_seeds_are_where_they_are(size: tuple[int, int]) -> None:
    mask, seeds = np.zeros(size, bool), np.zeros(size, np.int8)
    mask[5:15, 8:20] = True
    seeds[:4], seeds[-4:] = 1, -1
    saliency = np.random.default_rng(0).random(size)
    figure = segmentation_figure(torch.zeros(3, *size), saliency, seeds, mask, (8, 5, 20, 15), "a title")
    saliency_axes, _, seed_axes, object_axes = figure.axes
    assert saliency_axes.images[0].get_array().shape == size
    red, blue = (image.get_array() for image in seed_axes.images[1:])
    assert np.array_equal(red[..., 3] > 0, seeds > 0)
    assert np.array_equal(blue[..., 3] > 0, seeds < 0)
    assert red[0, 0, 0] > red[0, 0, 2]
    assert blue[-1, -1, 2] > blue[-1, -1, 0]
    assert np.array_equal(object_axes.images[1].get_array()[..., 3] > 0, ~mask)
    (box,) = (patch for patch in object_axes.patches if isinstance(patch, Rectangle))
    assert (box.get_xy(), box.get_width(), box.get_height()) == ((8, 5), 12, 10)
    assert (drawn(figure) < 250).mean() > 0.1


@pytest.mark.parametrize("fill", [True, False])
def test_masks_of_everything_and_nothing_are_drawn(fill: bool) -> None:
    mask = np.full((8, 8), fill)
    box = (0, 0, 8, 8) if fill else (0, 0, 0, 0)
    drawn(segmentation_figure(torch.zeros(3, 8, 8), np.ones((8, 8)), np.zeros((8, 8), np.int8), mask, box))


def test_a_class_model_and_its_scores() -> None:
    figure = class_figure(torch.rand(3, 8, 8) * 2 - 1, [0.0, 1.0, 5.0], "flamingo")
    picture, curve = figure.axes
    assert picture.images[0].get_array().shape == (8, 8, 3)
    assert curve.lines[0].get_ydata().tolist() == [0.0, 1.0, 5.0]
    drawn(figure)
