"""Quantus's localisation and complexity metrics: the same numbers where it is right, and the places where it is not.

Quantus divides the maps of a batch by their common largest absolute value, and adds a small number to what it divides
by, or to the maps themselves: a sample's score then depends on the samples beside it.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import backlight
from backlight.data.mosaics import composed, mosaics
from backlight.metrics import (
    AttributionLocalisation,
    Case,
    Focus,
    PointingGame,
    RelevanceRankAccuracy,
    Sparseness,
    attribution_localisation,
    focus,
    pointing_game,
    relevance_rank_accuracy,
    sparseness,
)

quantus = pytest.importorskip("quantus")

COUNT, SIDE = 6, 16


@pytest.fixture
def maps() -> Tensor:
    return torch.randn(COUNT, 1, SIDE, SIDE)


@pytest.fixture
def masks() -> Tensor:
    found = torch.zeros(COUNT, SIDE, SIDE, dtype=torch.bool)
    for number in range(COUNT):
        found[number, number : number + 7, 2 : 9 + number] = True
    return found


def theirs(metric: str, maps: Tensor, masks: Tensor | None = None, custom: Any = None, **settings: Any) -> np.ndarray:
    """Quantus's scores of given maps; no network is run."""
    channels = maps.shape[1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        score = getattr(quantus, metric)(disable_warnings=True, **settings)
        found = score(
            model=nn.Identity(),
            x_batch=np.zeros((len(maps), channels, *maps.shape[2:]), np.float32),
            y_batch=np.zeros(len(maps), int),
            a_batch=maps.numpy().copy(),
            s_batch=None if masks is None else masks[:, None].numpy(),
            channel_first=True,
            **({} if custom is None else {"custom_batch": custom}),
        )
    return np.asarray(found, dtype=np.float64)


def case(maps: Tensor, masks: Tensor | None) -> Case:
    return Case(nn.Flatten(), torch.zeros_like(maps), 0, maps={"map": maps}, masks=masks)


# the same numbers


def test_the_quantus_presets(maps: Tensor, masks: Tensor) -> None:
    pairs = [
        (PointingGame, "PointingGame"),
        (AttributionLocalisation, "AttributionLocalisation"),
        (RelevanceRankAccuracy, "RelevanceRankAccuracy"),
        (Sparseness, "Sparseness"),
    ]
    for ours, name in pairs:
        expected = theirs(name, maps, None if name == "Sparseness" else masks)
        found = ours.preset("quantus")(case(maps, masks))[0]
        assert found.numpy() == pytest.approx(expected, abs=1e-5), name


def test_other_settings(maps: Tensor, masks: Tensor) -> None:
    positive = theirs("AttributionLocalisation", maps, masks, abs=False, positive_attributions=True)
    assert attribution_localisation(maps, masks).numpy() == pytest.approx(positive, abs=1e-5)
    absolute = theirs("RelevanceRankAccuracy", maps, masks, abs=True)
    assert relevance_rank_accuracy(maps, masks, part="absolute").numpy() == pytest.approx(absolute, abs=1e-5)
    wide = backlight.metrics.masks.dilated(masks, 2.0)
    assert (pointing_game(maps, masks, tolerance=2.0).numpy() == theirs("PointingGame", maps, wide)).all()
    assert not np.array_equal(theirs("PointingGame", maps, wide), theirs("PointingGame", -maps, wide))
    plain = theirs("Sparseness", maps, normalise=False)
    assert sparseness(maps).numpy() == pytest.approx(plain, abs=1e-5)


def test_focus_and_its_quadrants() -> None:
    """Quantus takes (upper left, upper right, lower left, lower right) as 0 or 1: our layout's tiles."""
    layouts = mosaics([index % 5 for index in range(20)], 8)
    for size in (16, (15, 18)):
        x, targets, masks = composed(layouts, lambda index: torch.rand(3, 8, 8) - 0.5, size)
        maps = torch.randn_like(x)
        held = np.array([layout.held for layout in layouts]).astype(int)
        expected = theirs("Focus", x * maps, custom=held, normalise=False)
        assert focus(x, maps, masks).numpy() == pytest.approx(expected, abs=1e-5)
        built = Case(nn.Flatten(), x, targets, maps={"map": maps, "relevance": x * maps}, masks=masks)
        assert Focus()(built)[0].numpy() == pytest.approx(expected, abs=1e-5)
        assert Focus.preset("quantus")(built)[1].numpy() == pytest.approx(expected, abs=1e-5)


def test_mosaics_of_quantus_have_our_tiles() -> None:
    """Its own mosaics: the tiles that it lists as the target's are those of a layout of the same labels."""
    from quantus.functions.mosaic_func import mosaic_creation

    images = np.arange(12, dtype=np.float32)[:, None, None, None] * np.ones((1, 3, 4, 4), np.float32)
    labels = np.arange(12) % 3
    whole, sources, shown, held, targets = mosaic_creation(images, labels, 2, seed=3)
    for number in range(len(whole)):
        layout = backlight.data.mosaics.Layout(
            2, 2, tuple(map(int, sources[number])), tuple(map(int, shown[number])), int(targets[number])
        )
        assert tuple(map(int, layout.held)) == held[number]
        assert torch.equal(layout.picture(torch.from_numpy(images), 8), torch.from_numpy(whole[number]))


# where Quantus is wrong, and what we say instead


def test_sparseness_of_a_sample_depends_on_the_one_beside_it(maps: Tensor) -> None:
    alone = theirs("Sparseness", maps[:1])
    beside = maps[:2].clone()
    beside[1] *= 1e8
    assert theirs("Sparseness", beside)[0] < 0.2 < alone[0], "divided by the other's largest value, 1e-7 is not small"
    for offset in (0.0, 1e-7):
        scores = sparseness(beside, offset=offset)
        assert torch.equal(scores[:1], sparseness(maps[:1], offset=offset))
    assert sparseness(beside)[0].item() == pytest.approx(alone[0], abs=1e-5)


def test_localisation_of_a_sample_depends_on_the_one_beside_it(maps: Tensor, masks: Tensor) -> None:
    alone = theirs("AttributionLocalisation", maps[:1], masks[:1])
    beside = maps[:2].clone()
    beside[1] *= 1e12
    assert theirs("AttributionLocalisation", beside, masks[:2])[0] < 0.9 * alone[0], "1e-9 is added to the total"
    ours = attribution_localisation(beside, masks[:2], part="absolute")
    assert ours[0].item() == pytest.approx(alone[0], abs=1e-5)


def test_a_sample_beside_a_huge_one_hits_everywhere(maps: Tensor) -> None:
    """Divided by the other's largest value, a single precision map is 0 everywhere: all positions are largest."""
    masks = torch.zeros(2, SIDE, SIDE, dtype=torch.bool)
    beside = maps[:2].clone()
    beside[0] *= 1e-10
    beside[1] *= 1e37
    place = int(beside[0].argmin())
    masks[:, place // SIDE, place % SIDE] = True
    assert theirs("PointingGame", beside, masks)[0] == 1
    assert theirs("PointingGame", beside[:1], masks[:1])[0] == 0
    assert pointing_game(beside, masks, tolerance=0.0)[0] == 0


def test_a_constant_map_always_hits(maps: Tensor, masks: Tensor) -> None:
    constant = maps.clone()
    constant[1:] = 2  # it refuses batches of nothing but constants
    assert (theirs("PointingGame", constant, masks)[1:] == 1).all()
    area = masks.flatten(1).double().mean(1)
    assert torch.allclose(pointing_game(constant, masks, tolerance=0.0)[1:], area[1:])


def test_an_empty_mask_is_a_hit(maps: Tensor) -> None:
    """NaN is written into an array of booleans, where it is True."""
    empty = torch.zeros(COUNT, SIDE, SIDE, dtype=torch.bool)
    assert (theirs("PointingGame", maps, empty) == 1).all()
    assert pointing_game(maps, empty).isnan().all()
    assert np.isnan(theirs("AttributionLocalisation", maps, empty)).all()
    assert attribution_localisation(maps, empty).isnan().all()


def test_a_weighted_pointing_game_fails(maps: Tensor, masks: Tensor) -> None:
    """Weights of a shape that does not fit are written into booleans."""
    with pytest.raises(TypeError, match="boolean array indexing"):
        theirs("PointingGame", maps, masks, weighted=True)


def test_the_weight_of_localisation_depends_on_the_number_of_samples(maps: Tensor, masks: Tensor) -> None:
    """Kohlbrenner et al. divide by the object's share of the area. Quantus multiplies, by its share of all entries of
    the batch but the first two samples'."""
    weighted = {
        number: theirs("AttributionLocalisation", maps[:number], masks[:number], weighted=True) for number in (3, 6)
    }
    assert weighted[3][0] == pytest.approx(4 * weighted[6][0])
    plain = theirs("AttributionLocalisation", maps, masks)
    assert weighted[6] == pytest.approx(plain * masks.flatten(1).sum(1).numpy() / (4 * SIDE**2))
    ours = attribution_localisation(maps, masks, part="absolute", weighted=True).numpy()
    assert ours == pytest.approx(plain / masks.flatten(1).double().mean(1).numpy(), abs=1e-5)


def test_absolute_values_reverse_a_ranking(masks: Tensor) -> None:
    """Its default counts evidence against the class, on the background, as a fault of localisation."""
    sure, vague = torch.zeros(2, COUNT, 1, SIDE, SIDE)
    for number in range(COUNT):
        rows, columns = masks[number].nonzero()[0]
        sure[number, 0, rows, columns] = vague[number, 0, rows, columns] = 1
        sure[number, 0, -1, -1], vague[number, 0, -1, 0] = -3, 1
    assert (theirs("AttributionLocalisation", sure, masks) < theirs("AttributionLocalisation", vague, masks)).all()
    maps = torch.stack([sure, vague])
    positive, absolute = (attribution_localisation(maps, masks, part=part) for part in ("positive", "absolute"))
    assert (positive[0] > positive[1]).all()
    assert (absolute[0] < absolute[1]).all()


def test_signed_shares_above_1_are_dropped_there(masks: Tensor) -> None:
    """Without abs and positive_attributions, negative relevance outside makes the ratio larger than 1, and NaN."""
    maps = torch.where(masks[:, None], 1.0, -0.1)
    assert np.isnan(theirs("AttributionLocalisation", maps, masks, abs=False)).any()
    assert (attribution_localisation(maps, masks) == 1).all()


def test_no_relevance_is_0_there_and_undefined_here(masks: Tensor) -> None:
    nothing = torch.zeros(COUNT, 1, SIDE, SIDE)
    some = torch.cat([nothing[1:], torch.ones(1, 1, SIDE, SIDE)])  # it refuses zeros in all samples of a batch
    assert (theirs("AttributionLocalisation", some, masks)[:-1] == 0).all()
    assert attribution_localisation(nothing, masks).isnan().all()
    assert theirs("Sparseness", some) == pytest.approx(0, abs=1e-6)
    assert sparseness(nothing).isnan().all()
    assert (sparseness(nothing, offset=1e-7) == 0).all()


def test_the_caller_s_maps_are_changed_there(maps: Tensor) -> None:
    """Without abs and normalise, Sparseness adds 1e-7 to the array that it was given."""
    given = maps.abs().numpy().copy()
    before = given.copy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantus.Sparseness(abs=False, normalise=False, disable_warnings=True)(
            model=nn.Identity(),
            x_batch=np.zeros_like(given),
            y_batch=np.zeros(COUNT, int),
            a_batch=given,
            channel_first=True,
        )
    assert (given != before).any()
    kept = maps.clone()
    sparseness(maps, offset=1e-7)
    assert torch.equal(kept, maps)
