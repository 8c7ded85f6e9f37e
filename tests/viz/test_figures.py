"""Figures: what a map shows, and that drawing leaves matplotlib's global state alone."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from backlight.errors import InputError
from backlight.viz import counterfactual_figure, explanation_figure, save_figure, signed_map
from backlight.viz.figures import Chance


def test_map_times_scale_is_the_sum_over_channels() -> None:
    attribution = torch.randn(3, 5, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    values, scale = signed_map(attribution, clip=1.0)
    np.testing.assert_allclose(values * scale, attribution.sum(0).numpy(), atol=1e-12)
    assert np.abs(values).max() == 1


def test_scale_is_a_quantile_so_that_one_outlier_does_not_blank_the_map() -> None:
    values, scale = signed_map(np.concatenate([np.ones(999), [1e6]]).reshape(1, 20, 50))
    assert scale == pytest.approx(1)
    assert values.min() == values.max() == pytest.approx(1)


def test_zero_stays_zero_and_signs_stay() -> None:
    values, scale = signed_map(np.zeros((3, 4, 4)))
    assert scale == 0
    assert not values.any()
    values, _ = signed_map(np.array([[[-2.0, 0.0], [1.0, 2.0]]]))
    np.testing.assert_array_equal(np.sign(values), [[-1, 0], [1, 1]])


def test_sparse_map_falls_back_to_its_maximum() -> None:
    sparse = np.zeros((1, 100, 100))
    sparse[0, 3, 4] = -5
    values, scale = signed_map(sparse)
    assert scale == 5
    assert values[3, 4] == -1


@pytest.mark.parametrize(
    ("shape", "drawn"),
    [((8, 7, 7), (7, 7)), ((7, 7, 8), (7, 7)), ((17, 6), (4, 4)), ((21, 6), (4, 4)), ((9,), (1, 1)), ((6, 6), (6, 6))],
)
def test_positions_of_hidden_sites(shape: tuple[int, ...], drawn: tuple[int, int]) -> None:
    assert signed_map(np.ones(shape))[0].shape == drawn


def test_class_tokens_are_left_out() -> None:
    tokens = np.ones((5, 2))
    tokens[0] = 100
    values, scale = signed_map(tokens, clip=1.0)
    assert scale == 2
    np.testing.assert_array_equal(values, np.ones((2, 2)))


def test_channels_that_cancel_give_zero_and_not_rounding_noise() -> None:
    tokens = torch.randn(16, 384, generator=torch.Generator().manual_seed(0))
    tokens -= tokens.mean(1, keepdim=True)
    assert tokens.sum(1).abs().max() > 0
    values, scale = signed_map(tokens)
    assert scale == 0
    assert not values.any()


@pytest.mark.parametrize("bad", [np.ones((2, 3, 4, 4)), np.full((3, 4, 4), np.nan)])
def test_what_cannot_be_drawn_is_said(bad: np.ndarray) -> None:
    with pytest.raises(InputError):
        signed_map(bad)


@pytest.mark.parametrize("count", [0, 1, 4, 7])
@pytest.mark.parametrize("kind", ["png", "svg", "pdf"])
def test_explanation_figure_is_written_in_every_format(tmp_path, count: int, kind: str) -> None:
    pytest.importorskip("matplotlib")
    image = torch.zeros(3, 16, 16)
    maps = {f"$Method_{number}": torch.randn(3, 16, 16) for number in range(count)}
    figure = explanation_figure(image, maps, [Chance("a cat, $5 and 猫", 0.7, True)], "猫 $x$ {}.png")
    save_figure(figure, tmp_path / f"figure.{kind}")
    assert (tmp_path / f"figure.{kind}").stat().st_size > 1000
    assert "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()


def test_colour_bar_carries_zero_and_the_scale() -> None:
    pytest.importorskip("matplotlib")
    attribution = torch.zeros(3, 4, 4)
    attribution[0] = -2.5
    figure = explanation_figure(torch.zeros(3, 4, 4), {"Saliency": attribution})
    labels = [[text.get_text() for text in axes.get_xticklabels()] for axes in figure.axes]
    assert ["−2.5", "0", "+2.5"] in labels


def test_counterfactual_figure_draws_both_trajectories(tmp_path) -> None:
    pytest.importorskip("matplotlib")
    image = torch.zeros(3, 8, 8)
    figure = counterfactual_figure(image, image + 0.5, {"tiger": [0.0, 0.5, 1.0], "tabby": [1.0, 0.5, 0.0]}, "cat.png")
    curves = figure.axes[-1].get_lines()
    assert [list(curve.get_ydata()) for curve in curves] == [[0, 0.5, 1], [1, 0.5, 0]]
    save_figure(figure, tmp_path / "figure.png")
