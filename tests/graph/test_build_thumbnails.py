"""Pictures of nodes show the part of the image that they come from."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from backlight.contributions.reduction import Layout
from backlight.graph.coded import Coded
from backlight.graph.thumbnails import Thumbnails, crop, middle, png_uri


def coded(site: str, grid: tuple[int, int], channels: int = 2) -> Coded:
    positions = grid[0] * grid[1]
    vectors = torch.ones(1, positions, channels)
    codes = torch.zeros(1, positions, 3)
    return Coded(site, vectors, codes, torch.ones(3, channels), None, Layout("maps"), (channels, *grid))


def network() -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 2, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(32, 2)]
    model = nn.Sequential(*layers)
    with torch.no_grad():
        for layer in model[::2]:
            if isinstance(layer, nn.Conv2d):
                layer.weight.abs_()
    return model.eval()


def test_heat_is_the_mean_field_of_the_positions() -> None:
    picture = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0))
    model = network()
    drawn = Thumbnails(model, picture[None], picture)
    maps = torch.zeros(3, 16)
    maps[0, 0], maps[1, 15], maps[2, 0], maps[2, 15] = 2.0, -3.0, 4.0, 6.0
    maps[2, 5] = 2.9  # less than half of the strongest: left out
    heat = drawn.heat(coded("3", (4, 4)), (4, 4), maps, torch.ones(3, 2))
    assert heat is not None
    reach = 3  # a 3 x 3 convolution of stride 2 over another: 7 x 7, padded by 3
    assert float(heat[0, reach + 1 :].abs().max()) == 0
    assert float(heat[1, : 12 - reach].abs().max()) == 0
    torch.testing.assert_close(heat.flatten(1).sum(1), torch.ones(3))  # biases are shared by norm
    torch.testing.assert_close(heat[2], 0.4 * heat[0] + 0.6 * heat[1])


def test_a_layer_without_fields_shows_its_codes() -> None:
    picture = torch.rand(3, 16, 16)
    drawn = Thumbnails(network(), picture[None], picture)
    maps = torch.zeros(2, 16)
    maps[0, 5] = 1.0
    heat = drawn.heat(coded("2", (4, 4)), (4, 4), maps, torch.ones(2, 2))  # before its activation
    assert heat is not None
    peak = int(heat[0].argmax())
    assert 4 <= peak // 16 < 8
    assert 4 <= peak % 16 < 8
    shown = drawn.fields(coded("2", (4, 4)), (4, 4), maps, torch.ones(2, 2))
    assert shown[1] is None  # nowhere on
    assert drawn.heat(coded("2", (4, 4)), None, maps, torch.ones(2, 2)) is None


def test_crops_hold_the_heat_and_are_dark_elsewhere() -> None:
    heat = torch.zeros(60, 80)
    heat[40:50, 10:20] = 1.0
    picture = np.full((60, 80, 3), 200, np.uint8)
    picture[40:50, 10:20] = (255, 0, 0)
    shown = np.array(crop(picture, heat, 32))
    assert shown.shape == (32, 32, 3)
    assert (shown[16, 16] == (255, 0, 0)).all()
    whole = torch.zeros(60, 80)
    whole[5, 5] = whole[55, 75] = 1.0
    spread = np.array(crop(picture, whole, 30))
    assert spread.max() <= 200  # all of it, dark
    uri = png_uri(crop(picture, heat, 32))
    assert Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).size == (32, 32)


@pytest.mark.parametrize(
    ("mass", "ends"),
    [([0, 0, 1, 0], (2, 3)), ([1] * 10, (1, 9)), ([5, 0, 0, 5], (0, 4)), ([1], (0, 1))],
)
def test_the_middle_of_a_mass(mass: list[int], ends: tuple[int, int]) -> None:
    assert middle(torch.tensor(mass).float()) == ends
