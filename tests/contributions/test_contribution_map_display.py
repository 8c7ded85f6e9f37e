"""The display of contribution maps against NumPy and SciPy, step by step."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from backlight.contributions.map_display import DISPLAYS, Display, display_mask, map_masks, masked, median_filter
from backlight.contributions.maps import contribution_maps
from backlight.errors import InputError, UnknownNameError


def literal_median(image: np.ndarray, size: int) -> np.ndarray:
    """Pixel by pixel: NumPy's symmetric border, windows sorted, the upper of two middle values."""
    before = size // 2
    padded = np.pad(image, (before, size - 1 - before), mode="symmetric")
    found = np.empty_like(image)
    for row in range(image.shape[0]):
        for column in range(image.shape[1]):
            found[row, column] = np.sort(padded[row : row + size, column : column + size], axis=None)[size * size // 2]
    return found


def literal_mask(values: np.ndarray, display: str) -> np.ndarray:
    if display == "paper":
        image = literal_median(np.where(values > 0, values, 0).mean(0), 4)
    else:
        image = np.mean([literal_median(np.abs(colour), 4) for colour in values], axis=0)
    image = (image - image.min()) / (image.max() - image.min())
    return np.clip(7 * image, 0, 1)


@settings(max_examples=25, deadline=None)
@given(
    height=st.integers(4, 9),
    width=st.integers(4, 9),
    size=st.integers(1, 5),
    seed=st.integers(0, 99),
    whole=st.booleans(),
)
def test_median_filter(height: int, width: int, size: int, seed: int, whole: bool) -> None:
    image = np.random.default_rng(seed).normal(size=(height, width))
    image = np.round(image) if whole else image  # ties
    found = median_filter(torch.tensor(image), size).numpy()
    assert np.array_equal(found, literal_median(image, size))


def test_median_filter_is_scipys() -> None:
    scipy = pytest.importorskip("scipy.ndimage")
    image = np.random.default_rng(0).normal(size=(3, 2, 11))
    for size in (1, 2, 3, 4, 7):  # larger than the image, too
        expected = np.stack([scipy.median_filter(one, size) for one in image])
        assert np.array_equal(median_filter(torch.tensor(image), size).numpy(), expected)


@pytest.mark.parametrize("display", DISPLAYS)
def test_presets_step_by_step(display: str) -> None:
    maps = np.random.default_rng(1).normal(size=(2, 3, 10, 8))
    found = display_mask(torch.tensor(maps), display).numpy()
    for one, mask in zip(maps, found, strict=True):
        assert np.allclose(mask, literal_mask(one, display), atol=1e-14)
    assert found.min() == 0
    assert found.max() == 1


def test_presets_differ_in_sign_and_order() -> None:
    """Evidence against, which only the reference's display shows; one colour's speck, which only the filter removes."""
    maps = torch.zeros(3, 12, 12)
    maps[:, 2:8, 2:8] = -1.0
    maps[:, 8:, 8:] = 0.5
    paper, reference = display_mask(maps, "paper"), display_mask(maps, "reference")
    assert paper[4, 4] == 0
    assert reference[4, 4] == 1
    assert paper[10, 10] == 1


def test_maps_of_nothing_mask_everything() -> None:
    assert display_mask(torch.zeros(3, 6, 6)).sum() == 0
    assert display_mask(-torch.rand(3, 6, 6), "paper").sum() == 0


def test_masked_pictures() -> None:
    images, masks = torch.rand(2, 3, 4, 4) * 2 - 1, torch.rand(5, 2, 4, 4)
    found = masked(images, masks)
    assert found.shape == (5, 2, 3, 4, 4)
    assert torch.allclose(found[1, 0, 2], images[0, 2] * masks[1, 0])
    black = masked(images[0], torch.zeros(4, 4), ground=-1.0)
    assert torch.all(black == -1)
    assert torch.allclose(masked(images[0], torch.ones(4, 4), ground=-1.0), images[0])


def test_maps_of_a_network() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.relu(self.conv(x)).mean((2, 3)))

    model, x = Net(), torch.randn(2, 3, 8, 8)
    maps = contribution_maps(model, x, "conv", [[0, 1], [3]], 0)
    assert maps.positive is not None
    found = map_masks(maps)
    assert found.shape == (2, 2, 8, 8)
    assert torch.equal(found, display_mask(maps.positive, "paper"))
    assert torch.equal(map_masks(maps, "reference"), display_mask(maps.total, "reference"))
    whole = contribution_maps(model, x, "conv", [[0, 1], [3]], 0, split=False)
    assert torch.equal(map_masks(whole, "reference")[0, 0], display_mask(whole.total[0, 0], "reference"))
    with pytest.raises(InputError, match="split=True"):
        map_masks(whole)


def test_errors() -> None:
    with pytest.raises(UnknownNameError, match="paper"):
        display_mask(torch.zeros(3, 6, 6), "papr")
    with pytest.raises(UnknownNameError, match="absolute"):
        Display("absolut")
    with pytest.raises(InputError, match="contrast"):
        Display(contrast=0.0)
