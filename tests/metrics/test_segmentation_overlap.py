"""Overlap of segments with masks: closed forms, boxes, ties, GrabCut, colours."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from backlight.errors import InputError, UnknownNameError
from backlight.metrics import Case
from backlight.metrics.relevance_rank_accuracy import relevance_rank_accuracy
from backlight.metrics.segmentation_overlap import SegmentationOverlap, box_overlap, pictures, segmentation_overlap

SIDE = 20


def square(top: int = 4, left: int = 6, size: int = 8, count: int = 1) -> Tensor:
    mask = torch.zeros(count, SIDE, SIDE, dtype=torch.bool)
    mask[:, top : top + size, left : left + size] = True
    return mask


def test_shifted_squares_by_hand() -> None:
    object_, segment = square(), square(left=10)
    maps = segment[:, None].float()
    shared = 8 * 4
    assert segmentation_overlap(maps, object_).item() == pytest.approx(shared / (128 - shared))
    assert segmentation_overlap(maps, object_, shape="box").item() == pytest.approx(shared / (128 - shared))
    assert segmentation_overlap(object_[:, None].float(), object_).item() == 1
    assert segmentation_overlap((~object_)[:, None].float(), object_).item() == 0


def test_a_segment_of_another_size() -> None:
    maps = square(top=6, left=8, size=4)[:, None].float() + torch.rand(1, 1, SIDE, SIDE) * 1e-3
    scores = segmentation_overlap(maps, square(), segment="quantile", quantile=1 - 16 / 400)
    assert scores.item() == pytest.approx(16 / 64)
    boxes = segmentation_overlap(maps, square(), segment="quantile", quantile=1 - 16 / 400, shape="box")
    assert boxes.item() == pytest.approx(16 / 64)
    for hit, expected in ((0.2, 1), (0.25, 0), (0.5, 0)):
        found = segmentation_overlap(maps, square(), segment="quantile", quantile=1 - 16 / 400, hit=hit)
        assert found.item() == expected


def test_at_the_objects_own_area_it_is_a_function_of_the_rank_accuracy() -> None:
    maps, masks = torch.randn(3, 4, 3, SIDE, SIDE), square(count=4)
    ranks = relevance_rank_accuracy(maps, masks)
    assert torch.allclose(segmentation_overlap(maps, masks), ranks / (2 - ranks))


def test_no_relevance_scores_as_chance() -> None:
    """Expected intersection 64 * 64 / 400, over a union of 128 less that."""
    shared = 64 * 64 / 400
    for maps in (torch.zeros(1, 1, SIDE, SIDE), -torch.rand(1, 1, SIDE, SIDE), torch.ones(1, 1, SIDE, SIDE)):
        assert segmentation_overlap(maps, square()).item() == pytest.approx(shared / (128 - shared))
    assert segmentation_overlap(torch.zeros(1, 1, SIDE, SIDE), square(), shape="box").item() == pytest.approx(64 / 400)


def test_order_scale_sign_and_batch_mates() -> None:
    masks = square(count=5)
    true, noise = masks[:, None] + torch.rand(5, 1, SIDE, SIDE), torch.randn(5, 1, SIDE, SIDE)
    maps = torch.stack([true, noise, -true + 2])
    scores = segmentation_overlap(maps, masks)
    assert (scores[0] == 1).all()
    assert scores.mean(1).tolist() == sorted(scores.mean(1).tolist(), reverse=True)
    assert torch.equal(segmentation_overlap(maps * 2.0**40, masks), scores)
    assert not torch.equal(segmentation_overlap(-maps[1], masks), scores[1])
    assert torch.equal(
        segmentation_overlap(-maps[1], masks, part="absolute"), segmentation_overlap(maps[1], masks, part="absolute")
    )
    alone = [segmentation_overlap(maps[:, i : i + 1], masks[i : i + 1]) for i in range(5)]
    assert torch.equal(torch.cat(alone, 1), scores)


def test_empty_and_full_masks() -> None:
    masks = torch.stack([torch.zeros(SIDE, SIDE), torch.ones(SIDE, SIDE)]).bool()
    for settings in ({}, {"segment": "quantile"}, {"shape": "box"}, {"hit": 0.5}):
        scores = segmentation_overlap(torch.rand(2, 1, SIDE, SIDE), masks, **settings)
        assert scores[0].isnan()
        assert scores[1] <= 1
    assert segmentation_overlap(torch.rand(2, 1, SIDE, SIDE), masks)[1] == 1


def test_boxes_that_touch_and_miss() -> None:
    other = torch.cat([square(left=14, size=4), square(left=10), square(), torch.zeros_like(square())])
    assert box_overlap(square().expand(4, -1, -1), other).tolist() == pytest.approx([0, 1 / 3, 1, 0])


def test_colours_of_inputs() -> None:
    x = torch.rand(3, 3, 6, 6).double()
    assert torch.allclose(pictures(2 * x - 1, (0.5,), (0.5,)), x)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    normalised = (x - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    assert torch.allclose(pictures(normalised, mean, std), x, atol=1e-6)
    stretched = pictures(normalised * 5)
    assert stretched.flatten(1).amin(1).tolist() == [0, 0, 0]
    assert stretched.flatten(1).amax(1).tolist() == [1, 1, 1]
    assert torch.equal(pictures(normalised[1:] * 5), stretched[1:]), "each picture by itself"
    assert pictures(torch.rand(1, 1, 4, 4)).shape == (1, 3, 4, 4)
    assert pictures(torch.zeros(1, 1, 4, 4)).abs().max() == 0
    with pytest.raises(InputError, match="1 or 3 channels"):
        pictures(torch.rand(1, 4, 4, 4))


def test_a_cut_finds_the_object_from_a_small_seed() -> None:
    pytest.importorskip("cv2")
    masks = square(count=2)
    red, blue = (torch.tensor(colour)[:, None, None] for colour in ([0.8, -0.6, -0.7], [-0.7, 0.1, 0.5]))
    x = torch.where(masks[:, None], red, blue) + 0.1 * torch.randn(2, 3, SIDE, SIDE)
    steps = torch.arange(SIDE)
    away = (steps[:, None] - 6) ** 2 + (steps - 8) ** 2  # from a place off the object's centre
    seed = torch.exp(-away / 30.0).expand(2, 1, SIDE, SIDE)
    maps = {"seed": seed, "constant": torch.ones(2, 1, SIDE, SIDE)}
    case = Case(nn.Flatten(), x, 0, maps=maps, masks=masks)
    threshold, cut = (SegmentationOverlap(segment=segment)(case) for segment in ("quantile", "cut"))
    assert (cut[0] > 0.9).all(), "colours carry the seed to the object's edge"
    assert (threshold[0] < 0.4).all()
    assert cut[1].isnan().all()
    hits = SegmentationOverlap.preset("simonyan", mean=(0.5,), std=(0.5,))(case)
    assert hits[0].tolist() == [1, 1]
    assert hits[1].isnan().all()


def test_settings() -> None:
    maps = torch.rand(1, 1, SIDE, SIDE)
    assert SegmentationOverlap().sees_sign
    assert not SegmentationOverlap.preset("simonyan").sees_sign
    with pytest.raises(UnknownNameError, match="segment"):
        segmentation_overlap(maps, square(), segment="threshold")
    with pytest.raises(UnknownNameError, match="shape"):
        segmentation_overlap(maps, square(), shape="disc")
    with pytest.raises(InputError, match="images for a cut"):
        segmentation_overlap(maps, square(), segment="cut")
    with pytest.raises(InputError, match="quantile"):
        segmentation_overlap(maps, square(), quantile=1.0)
