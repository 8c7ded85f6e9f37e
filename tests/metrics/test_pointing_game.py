"""The pointing game: hits and misses at known distances, ties, signs, empty masks."""

from __future__ import annotations

import math

import pytest
import torch
from jaxtyping import TypeCheckError
from torch import Tensor, nn

from backlight.errors import InputError, UnknownNameError
from backlight.metrics import Case
from backlight.metrics.masks import boxed, boxes, dilated
from backlight.metrics.pointing_game import PointingGame, pointing_game


def peaks(*places: tuple[int, int], side: int = 21) -> Tensor:
    """Maps of zeros with a 1 at a place each."""
    maps = torch.zeros(len(places), 1, side, side)
    for number, (row, column) in enumerate(places):
        maps[number, 0, row, column] = 1
    return maps


def square(count: int = 1, side: int = 21) -> Tensor:
    masks = torch.zeros(count, side, side, dtype=torch.bool)
    masks[:, 8:12, 8:12] = True
    return masks


def test_on_the_object_beside_it_and_within_the_tolerance() -> None:
    places = [(8, 8), (11, 11), (7, 8), (4, 9), (4, 4), (11, 16)]
    away = [0, 0, 1, 4, math.hypot(4, 4), 5]
    for tolerance in (0.0, 1.0, 4.0, 5.0, 5.7):
        scores = pointing_game(peaks(*places), square(len(places)), tolerance=tolerance)
        assert scores.tolist() == [float(distance <= tolerance) for distance in away]
    assert scores.dtype == torch.float64


def test_the_tolerance_is_a_disc_or_a_part_of_the_side() -> None:
    masks = torch.rand(3, 17, 24) > 0.98
    rows, columns = torch.meshgrid(torch.arange(17), torch.arange(24), indexing="ij")
    for radius in (1.0, 2.5, 6.0, 100.0):
        for mask, wide in zip(masks, dilated(masks, radius), strict=True):
            inside = mask.nonzero().float()
            here = torch.stack([rows, columns], -1).reshape(-1, 2).float()
            near = torch.cdist(here, inside).amin(1).reshape(17, 24)
            assert torch.equal(wide, near <= radius)
    one, fraction = (pointing_game(peaks((4, 9)), square(), tolerance=t) for t in (4.0, 4 / 21))
    assert one == fraction == 1
    assert pointing_game(peaks((4, 9)), square(), tolerance=3 / 21) == 0


def test_ties_count_by_their_share() -> None:
    maps = peaks((8, 8)) + peaks((0, 0)) + peaks((0, 5)) + peaks((11, 11))
    assert pointing_game(maps, square(), tolerance=0.0).item() == 0.5
    assert pointing_game(maps, square(), tolerance=0.0, ties="any").item() == 1
    assert pointing_game(peaks((0, 0)), square(), ties="any", tolerance=0.0).item() == 0


@pytest.mark.parametrize("value", [0.0, 1.0, -2.0])
def test_a_constant_map_does_not_hit(value: float) -> None:
    maps = torch.full((1, 3, 21, 21), value)
    assert pointing_game(maps, square(), tolerance=0.0).item() == pytest.approx(16 / 441)
    assert pointing_game(maps, square(), tolerance=0.0, ties="any").item() == 1, "what Quantus says of it"


def test_channels_are_summed_with_their_signs() -> None:
    maps = torch.zeros(1, 3, 21, 21)
    maps[0, 0, 0, 0], maps[0, 1, 0, 0] = 5, -5  # nothing in sum
    maps[0, 2, 9, 9] = 1
    assert pointing_game(maps, square(), tolerance=0.0) == 1
    assert pointing_game(-maps, square(), tolerance=0.0) < 1


def test_the_sign_and_not_the_scale_is_seen() -> None:
    maps = torch.randn(2, 4, 3, 21, 21)
    masks = torch.rand(4, 21, 21) > 0.5
    plain = pointing_game(maps, masks, tolerance=0.0)
    for scale in (1e-12, 3.7, 1e12):
        assert torch.equal(pointing_game(maps * scale, masks, tolerance=0.0), plain)
    assert not torch.equal(pointing_game(-maps, masks, tolerance=0.0), plain)
    assert PointingGame().sees_sign


def test_the_true_mask_points_better_than_chance_and_its_inverse_worse() -> None:
    masks = square(60)
    true, chance, inverse = masks[:, None].double(), torch.rand(60, 1, 21, 21), (~masks)[:, None].double()
    scores = pointing_game(torch.stack([true, chance.double(), inverse]), masks, tolerance=2.0).mean(1)
    assert scores[0] == 1
    assert scores[0] > scores[1] > scores[2]
    assert scores[1] == pytest.approx(52 / 441, abs=0.12)


def test_empty_and_full_masks() -> None:
    masks = torch.stack([torch.zeros(21, 21), torch.ones(21, 21), torch.zeros(21, 21)]).bool()
    masks[2, 0, 0] = True
    scores = pointing_game(peaks((3, 3), (3, 3), (20, 20)), masks)
    assert scores[0].isnan()
    assert scores[1:].tolist() == [1, 0]


def test_a_sample_scores_the_same_alone_and_a_method_too() -> None:
    maps, masks = torch.randn(3, 5, 3, 21, 21), torch.rand(5, 21, 21) > 0.7
    together = pointing_game(maps, masks, tolerance=1.0)
    assert together.shape == (3, 5)
    for method in range(3):
        alone = [pointing_game(maps[method, i : i + 1], masks[i : i + 1], tolerance=1.0) for i in range(5)]
        assert torch.equal(torch.cat(alone), together[method])


def test_boxes() -> None:
    masks = torch.zeros(3, 6, 9, dtype=torch.bool)
    masks[0, 2, 3] = masks[0, 4, 7] = True
    masks[2] = True
    assert boxes(masks).tolist() == [[3, 2, 8, 5], [0, 0, 0, 0], [0, 0, 9, 6]]
    assert boxed(masks).flatten(1).sum(1).tolist() == [15, 0, 54]
    assert boxed(masks)[0, 2:5, 3:8].all()


def test_the_class_reads_maps_and_masks_of_a_case() -> None:
    case = Case(
        nn.Flatten(), torch.randn(2, 1, 21, 21), 0, maps={"on": peaks((9, 9), (9, 9)), "off": peaks((0, 0), (0, 0))},
        masks=square(2),
    )  # fmt: skip
    assert PointingGame(tolerance=2.0)(case).tolist() == [[1, 1], [0, 0]]
    assert PointingGame.preset("quantus").settings() == {"tolerance": 0.0, "ties": "any"}
    assert PointingGame().tolerance == 15
    with pytest.raises(InputError, match="give masks"):
        PointingGame()(Case(nn.Flatten(), torch.randn(2, 1, 21, 21), 0, maps={"on": peaks((9, 9), (9, 9))}))


def test_what_cannot_be_scored() -> None:
    with pytest.raises(InputError, match="at least 0 pixels"):
        pointing_game(peaks((0, 0)), square(), tolerance=-1.0)
    with pytest.raises(InputError, match=r"got \[1, 1, 21, 21\]"):
        pointing_game(peaks((0, 0)), square(side=20), tolerance=0.0)
    with pytest.raises(InputError, match="expected attributions"):
        pointing_game(peaks((0, 0)), square(2))
    with pytest.raises(InputError, match="expected maps"):
        pointing_game(peaks((0, 0))[0], square())
    assert pointing_game(peaks((0, 0)) * torch.nan, square(), ties="any").isnan().all()
    for masks in (square().float(), square().long(), square()[0], square()[None]):
        with pytest.raises((InputError, TypeCheckError)):
            pointing_game(peaks((0, 0)), masks)
    with pytest.raises(UnknownNameError, match="way with ties"):
        pointing_game(peaks((0, 0)), square(), ties="al")
