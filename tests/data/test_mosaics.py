"""Composed pictures: who lies where, the published draws, tiles and masks."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from backlight.data.mosaics import Layout, composed, covering, mosaics, pairs
from backlight.errors import InputError, TargetError

LABELS = [index // 3 for index in range(21)]  # seven classes of three pictures


def flat(index: int) -> torch.Tensor:
    """A picture of one colour, its index."""
    return torch.full((3, 8, 8), float(index))


def test_the_first_published_mosaic_is_rebuilt() -> None:
    """The pickle of the reference's run on ImageNet lists class 461 in the lower tiles, and these pictures."""
    first = mosaics([index // 50 for index in range(50_000)], 1)[0]
    assert first.target == 461
    assert first.sources == (46127, 33937, 23085, 23085)
    assert first.labels == (922, 678, 461, 461)
    assert first.held == (False, False, True, True)


def test_a_mosaic_shows_one_picture_twice_and_two_of_other_classes() -> None:
    found = mosaics(LABELS, 400)
    for layout in found:
        own = {source for source, held in zip(layout.sources, layout.held, strict=True) if held}
        assert sum(layout.held) == 2
        assert len(own) == 1
        assert all(LABELS[source] == label for source, label in zip(layout.sources, layout.labels, strict=True))
    assert Counter(layout.target for layout in found).keys() == set(range(7))
    assert len(Counter(layout.held for layout in found)) == 6, "every choice of two of four tiles occurs"
    in_tile = np.mean([layout.held for layout in found], axis=0)
    assert np.abs(in_tile - 0.5).max() < 0.1


def test_the_first_of_more_are_the_same_and_seeds_differ() -> None:
    assert mosaics(LABELS, 5) == mosaics(LABELS, 9)[:5]
    assert mosaics(LABELS, 5) != mosaics(LABELS, 5, seed=1)
    assert pairs(LABELS, 5) == pairs(LABELS, 9)[:5]


def test_global_generators_are_left_alone() -> None:
    torch.manual_seed(3)
    np.random.seed(3)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    composed(mosaics(LABELS, 3) + mosaics(LABELS, 3), flat, 8)
    pairs(LABELS, 3)
    assert torch.equal(before[0], torch.get_rng_state())
    assert (before[1] == np.random.get_state()[1]).all()


def test_tiles_and_masks_agree() -> None:
    layouts = mosaics(LABELS, 20)
    pictures, targets, masks = composed(layouts, flat, 16)
    assert pictures.shape == (20, 3, 16, 16)
    assert targets.tolist() == [layout.target for layout in layouts]
    assert (masks.flatten(1).sum(1) == 128).all()
    for layout, picture, mask in zip(layouts, pictures, masks, strict=True):
        corners = picture[0, [0, 0, 15, 15], [0, 15, 0, 15]]
        assert corners.tolist() == list(layout.sources)
        shown = {LABELS[int(value)] for value in picture[0][mask].unique()}
        assert shown == {layout.target}
        assert layout.target not in {LABELS[int(value)] for value in picture[0][~mask].unique()}


def test_a_source_is_loaded_once_a_picture() -> None:
    loaded: list[int] = []

    def load(index: int) -> torch.Tensor:
        loaded.append(index)
        return flat(index)

    layout = Layout(2, 2, (4, 9, 4, 12), (1, 3, 1, 4), 1)
    picture = layout.picture(load, 8)
    assert sorted(loaded) == [4, 9, 12]
    assert torch.equal(picture, layout.picture([flat(index) for index in range(21)], 8))


def test_odd_sizes_split_as_quantus_splits_them() -> None:
    mask = Layout(2, 2, (0, 1, 2, 3), (0, 1, 2, 3), 0).mask((7, 9))
    assert mask.nonzero().amax(0).tolist() == [2, 3]


def test_tiles_of_the_pictures_own_size_are_copies_and_others_are_scaled() -> None:
    picture = torch.rand(3, 8, 8)
    assert torch.equal(covering(picture, 8, 8), picture)
    assert torch.equal(covering(picture, 8, 4), picture[:, :, 2:6]), "a half is cropped at the centre, not squashed"
    half = covering(picture, 4, 4)
    assert half.shape == (3, 4, 4)
    assert float(half.mean()) == pytest.approx(float(picture.mean()), abs=0.03)
    assert covering(picture, 3, 11).shape == (3, 3, 11)


def test_pairs_stand_side_by_side_and_either_is_asked_for() -> None:
    found = pairs(LABELS, 200)
    assert all(layout.labels[0] != layout.labels[1] and sum(layout.held) == 1 for layout in found)
    left = np.mean([layout.held[0] for layout in found])
    assert 0.4 < left < 0.6
    pictures, _, masks = composed(found, flat, 8)
    for layout, picture, mask in zip(found, pictures, masks, strict=True):
        assert LABELS[int(picture[0][mask].unique())] == layout.target
        other = layout.aimed(next(label for label in layout.labels if label != layout.target))
        assert torch.equal(other.picture(flat, 8), picture)
        assert torch.equal(other.mask(8), ~mask)


def test_what_cannot_be_composed() -> None:
    with pytest.raises(InputError, match="two classes"):
        mosaics([3, 3, 3], 1)
    with pytest.raises(InputError, match="two classes"):
        pairs([3], 1)
    with pytest.raises(TargetError, match="none of the tiles"):
        mosaics(LABELS, 1)[0].aimed(99)
    with pytest.raises(InputError, match="each tile"):
        Layout(2, 2, (0, 1), (0, 1), 0)
    with pytest.raises(InputError, match="at least one"):
        composed([], flat)
    with pytest.raises(InputError, match="no 2 x 2 tiles"):
        mosaics(LABELS, 1)[0].mask(1)
