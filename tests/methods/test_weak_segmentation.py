"""Weak segmentation: seeds, components and boxes in closed form, discs on clutter, degenerate maps, photographs."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import backlight
from backlight.data import sample_image
from backlight.errors import BacklightError, InputError, MissingExtraError, UnknownNameError
from backlight.methods.weak_segmentation import (
    bounding_box,
    largest_component,
    quantile_seeds,
    saliency_map,
    weak_segmentation,
)

cv2 = pytest.importorskip("cv2")


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / (a | b).sum())


def disc(height: int, width: int, row: float, column: float, radius: float) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width]
    return (rows - row) ** 2 + (columns - column) ** 2 <= radius**2


def scene(height: int = 90, width: int = 120) -> tuple[np.ndarray, np.ndarray]:
    """(picture, object): a red disc with texture on a blue-green ground with texture."""
    generator = np.random.default_rng(0)
    shape = disc(height, width, 40, 70, 25)
    picture = np.where(shape[..., None], (200, 60, 40), (40, 110, 150)) + generator.normal(0, 12, (height, width, 3))
    return picture.clip(0, 255).astype(np.uint8), shape


def spot(size: tuple[int, int], row: float, column: float, spread: float) -> np.ndarray:
    """A map that is large about a point, and nowhere constant."""
    rows, columns = np.mgrid[: size[0], : size[1]]
    return np.exp(-((rows - row) ** 2 + (columns - column) ** 2) / (2 * spread**2))


def test_seeds_are_the_quantiles() -> None:
    values = np.random.default_rng(1).permutation(100 * 100).reshape(100, 100) / 1e4
    seeds = quantile_seeds(values)
    assert (seeds == 1).sum() == 500
    assert (seeds == -1).sum() == 3000
    assert values[seeds == 1].min() > values[seeds == 0].max()
    assert values[seeds == -1].max() < values[seeds == 0].min()
    other = quantile_seeds(values, foreground=0.5, background=0.0)
    assert ((other == 1).sum(), (other == -1).sum()) == (5000, 1)


@pytest.mark.parametrize(("zeros", "front", "back"), [(0.97, 300, 9700), (0.5, 500, 5000)])
def test_seeds_of_a_map_of_mostly_zeros(zeros: float, front: int, back: int) -> None:
    values = np.zeros(10_000)
    count = round(10_000 * (1 - zeros))
    values[:count] = np.arange(1, count + 1)
    seeds = quantile_seeds(values.reshape(100, 100))
    assert ((seeds == 1).sum(), (seeds == -1).sum()) == (front, back)


def test_seeds_of_a_map_with_a_plateau_on_top() -> None:
    values = np.ones((10, 10))
    values[0] = 0
    seeds = quantile_seeds(values)
    assert (seeds[1:] == 1).all()
    assert (seeds[0] == -1).all()


def test_the_largest_component_touches_by_corners_too() -> None:
    mask = np.zeros((6, 8), bool)
    mask[0, 0] = mask[1, 1] = mask[2, 2] = True  # one component by its corners
    mask[4, 5:7] = True
    assert np.argwhere(largest_component(mask)).tolist() == [[0, 0], [1, 1], [2, 2]]
    assert bounding_box(largest_component(mask)) == (0, 0, 3, 3)
    assert not largest_component(np.zeros((3, 3), bool)).any()
    assert largest_component(np.ones((3, 3), bool)).all()


def test_boxes_are_half_open_columns_first() -> None:
    mask = np.zeros((6, 8), bool)
    mask[2:5, 1:7] = True
    assert bounding_box(mask) == (1, 2, 7, 5)
    assert mask[2:5, 1:7].all()
    mask[:] = False
    mask[5, 7] = True
    assert bounding_box(mask) == (7, 5, 8, 6)
    assert bounding_box(np.zeros((2, 2), bool)) == (0, 0, 0, 0)


def test_reductions() -> None:
    value = torch.tensor([[[1.0, -4.0]], [[-3.0, 1.0]], [[1.0, 1.0]]])  # [3, 1, 2]
    assert saliency_map(value, (1, 2)).tolist() == [[3.0, 4.0]]
    assert saliency_map(value, (1, 2), "positive").tolist() == [[0.0, 0.0]]
    one = torch.tensor([[2.0, -5.0]])
    assert saliency_map(one, (1, 2)).tolist() == saliency_map(one[None, None], (1, 2)).tolist() == [[2.0, 0.0]]
    assert saliency_map(one.numpy(), (1, 2), "magnitude").tolist() == [[2.0, 5.0]]
    assert saliency_map(torch.ones(3, 7, 7).half(), (20, 30)).shape == (20, 30)
    with pytest.raises(UnknownNameError, match="magnitude"):
        saliency_map(one, (1, 2), "magnitud")


@pytest.mark.parametrize("settings", [{}, {"fixed_seeds": True}, {"n_iterations": 4}])
@pytest.mark.parametrize("size", [(90, 120), (7, 7)])
def test_a_disc_is_found_from_a_blurred_spot_of_any_size(size: tuple[int, int], settings: dict) -> None:
    picture, shape = scene()
    row, column = 40 * size[0] / 90, 70 * size[1] / 120
    saliency = spot(size, row, column, 12 * size[0] / 90)
    found = weak_segmentation(picture, saliency, **settings)
    assert overlap(found.mask, shape) > 0.97
    assert found.from_cut
    left, top, right, bottom = found.box
    assert max(abs(left - 45), abs(right - 96), abs(top - 15), abs(bottom - 66)) <= 2
    assert found.seeds.shape == found.saliency.shape == found.mask.shape == (90, 120)
    seeds_alone = overlap(largest_component(found.seeds > 0), shape)
    assert overlap(found.mask, shape) > seeds_alone + 0.3


def test_pictures_of_every_kind_and_maps_of_every_shape_agree() -> None:
    picture, _ = scene()
    saliency = torch.from_numpy(spot((90, 120), 40, 70, 12))
    whole = weak_segmentation(picture, saliency)
    tensor = torch.from_numpy(picture).permute(2, 0, 1) / 255
    for image in (tensor, Image.fromarray(picture), picture / 255):
        assert np.array_equal(weak_segmentation(image, saliency).mask, whole.mask)
    for value in (saliency[None], saliency[None, None], -saliency.repeat(3, 1, 1), saliency.numpy()):
        assert np.array_equal(weak_segmentation(picture, value).mask, whole.mask)


def test_it_is_deterministic_and_leaves_generators_alone() -> None:
    picture, _ = scene()
    saliency = spot((90, 120), 40, 70, 40) + 0.2 * np.random.default_rng(3).random((90, 120))
    first = weak_segmentation(picture, saliency)

    def drawn() -> list[float]:
        values = np.zeros(2)
        cv2.randu(values, 0.0, 1.0)
        return [*values, *np.random.rand(2), *torch.rand(2).tolist()]

    def seeded() -> None:
        cv2.setRNGSeed(9)
        np.random.seed(9)
        torch.manual_seed(9)

    seeded()
    expected = drawn()
    seeded()
    second = weak_segmentation(picture, saliency)
    assert drawn() == expected
    assert np.array_equal(first.mask, second.mask)
    assert first.box == second.box


def test_large_pictures_are_cut_small_and_masks_come_back_large() -> None:
    picture, shape = scene()
    large = np.asarray(Image.fromarray(picture).resize((1200, 900), Image.Resampling.NEAREST))
    found = weak_segmentation(large, spot((90, 120), 40, 70, 12), longest=120)
    expected = np.asarray(Image.fromarray(shape).resize((1200, 900), Image.Resampling.NEAREST))
    assert found.mask.shape == found.seeds.shape == found.saliency.shape == (900, 1200)
    assert overlap(found.mask, expected) > 0.95


def test_without_foreground_the_seeds_stand_in() -> None:
    """One grey everywhere: the models cannot tell, and the cut is empty or all; nothing fails."""
    grey = np.full((40, 40, 3), 128, np.uint8)
    saliency = spot((40, 40), 20, 20, 6)
    found = weak_segmentation(grey, saliency)
    assert found.mask.any()
    if not found.from_cut:
        assert np.array_equal(found.mask, largest_component(found.seeds > 0))
    # seeds that look like the ground: the cut gives them to the ground
    picture, _ = scene()
    lost = weak_segmentation(picture, spot((90, 120), 80, 10, 3))
    assert lost.mask.any()


def test_an_empty_cut_falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    from backlight.methods import weak_segmentation as module

    monkeypatch.setattr(module, "_cut", lambda pixels, seeds, *rest: np.zeros(seeds.shape, bool))
    found = weak_segmentation(scene()[0], spot((90, 120), 40, 70, 12))
    assert not found.from_cut
    assert np.array_equal(found.mask, largest_component(found.seeds > 0))


@pytest.mark.parametrize("shape", [(1, 2), (2, 3), (5, 1)])
def test_tiny_pictures(shape: tuple[int, int]) -> None:
    picture = np.random.default_rng(0).integers(0, 255, (*shape, 3), dtype=np.uint8)
    found = weak_segmentation(picture, np.arange(shape[0] * shape[1], dtype=float).reshape(shape))
    assert found.mask.shape == shape
    assert found.mask.any()


@pytest.mark.parametrize(
    ("attribution", "settings", "said"),
    [
        (torch.zeros(1, 8, 8), {}, "constant"),
        (-torch.rand(1, 8, 8), {}, "constant"),  # nothing speaks for the class
        (torch.full((8, 8), torch.nan), {}, "finite"),
        (torch.rand(2, 3, 8, 8), {}, "of one picture"),
        (torch.rand(8), {}, "of one picture"),
        (torch.rand(8, 8), {"foreground": 0.2}, "background < foreground"),
        (torch.rand(8, 8), {"n_iterations": 0}, "n_iterations"),
    ],
)
def test_what_does_not_fit_is_said(attribution: Tensor, settings: dict, said: str) -> None:
    with pytest.raises(InputError, match=said):
        weak_segmentation(scene()[0], attribution, **settings)
    with pytest.raises(InputError, match=r"\[3, H, W\]"):
        weak_segmentation(torch.rand(8, 8), torch.rand(8, 8))


def test_without_opencv_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(MissingExtraError, match="segmentation"):
        weak_segmentation(scene()[0], spot((90, 120), 40, 70, 12))


def test_a_photograph_by_two_methods() -> None:
    try:
        loaded = backlight.load("efficientnet_lite0")
        photograph = sample_image("chelsea")
    except BacklightError as error:
        pytest.skip(str(error))
    view = loaded.preprocessing.image(photograph)
    x = loaded.preprocessing.normalise(view)[None]
    for name in ("ClassSaliency", "SoftPullback"):
        value = getattr(backlight, name)(loaded.model).attribute(x, 282)
        found = backlight.weak_segmentation(view, value)
        assert found.mask.shape == (224, 224)
        assert found.from_cut
        assert 0.02 < found.mask.mean() < 0.98
        x0, y0, x1, y1 = found.box
        assert found.mask[y0:y1, x0:x1].sum() == found.mask.sum()


def test_the_seed_decides_where_colours_are_many() -> None:
    pytest.importorskip("skimage")
    picture = np.array(sample_image("coffee").resize((150, 100)))
    saliency = spot((100, 150), 50, 75, 30) + 0.3 * np.random.default_rng(3).random((100, 150))
    areas = [int(weak_segmentation(picture, saliency, seed=seed).mask.sum()) for seed in (0, 0, 1, 2, 3)]
    assert areas[0] == areas[1]
    assert len(set(areas)) > 1
