"""Shares of relevance on the object and in its box, and ranks: closed forms, chance, signs, degenerate maps."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from backlight.errors import InputError, UnknownNameError
from backlight.metrics import Case
from backlight.metrics.attribution_localisation import (
    AttributionLocalisation,
    EnergyPointingGame,
    attribution_localisation,
    energy_pointing_game,
)
from backlight.metrics.relevance_rank_accuracy import RelevanceRankAccuracy, relevance_rank_accuracy, strongest

SIDE = 12


def ring() -> Tensor:
    """A mask whose box holds more: a square of 6 without its inner 4, 20 of 36 positions."""
    mask = torch.zeros(1, SIDE, SIDE, dtype=torch.bool)
    mask[:, 3:9, 3:9] = True
    mask[:, 4:8, 4:8] = False
    return mask


def example() -> Tensor:
    """3 on the ring, 2 within it, 5 and -7 outside."""
    found = torch.zeros(1, 1, SIDE, SIDE)
    found[0, 0, 3, 3], found[0, 0, 5, 5], found[0, 0, 0, 0], found[0, 0, 11, 11] = 3, 2, 5, -7
    return found


def test_shares_by_hand() -> None:
    assert attribution_localisation(example(), ring()).item() == pytest.approx(3 / 10)
    assert attribution_localisation(example(), ring(), part="absolute").item() == pytest.approx(3 / 17)
    assert attribution_localisation(example(), ring(), region="box").item() == pytest.approx(5 / 10)
    assert energy_pointing_game(example(), ring()).item() == pytest.approx(5 / 10)
    assert attribution_localisation(example(), ring(), weighted=True).item() == pytest.approx(3 / 10 * 144 / 20)
    assert attribution_localisation(-example(), ring()).item() == 0
    assert energy_pointing_game(example(), ring()).dtype == torch.float64


def test_positions_and_features_differ_where_channels_disagree() -> None:
    maps = torch.zeros(1, 3, SIDE, SIDE)
    maps[0, :, 3, 3] = torch.tensor([4.0, -3, 0])  # 1 in sum
    maps[0, :, 0, 0] = torch.tensor([1.0, 1, 1])
    assert attribution_localisation(maps, ring()).item() == pytest.approx(1 / 4)
    assert attribution_localisation(maps, ring(), unit="feature").item() == pytest.approx(4 / 7)


def test_a_constant_map_scores_the_area_and_1_where_the_area_is_weighed() -> None:
    constant = torch.full((1, 3, SIDE, SIDE), 0.3)
    assert attribution_localisation(constant, ring()).item() == pytest.approx(20 / 144)
    assert energy_pointing_game(constant, ring()).item() == pytest.approx(36 / 144)
    assert attribution_localisation(constant, ring(), weighted=True).item() == pytest.approx(1)
    assert relevance_rank_accuracy(constant, ring()).item() == pytest.approx(20 / 144)


def test_absolute_values_change_which_map_is_better() -> None:
    """Relevance against the class on the background is no fault; absolute values count it as one."""
    sure = torch.zeros(1, 1, SIDE, SIDE)
    sure[0, 0, 3, 3], sure[0, 0, 0, 0] = 1, -9
    vague = torch.zeros(1, 1, SIDE, SIDE)
    vague[0, 0, 3, 3], vague[0, 0, 0, 0] = 1, 1
    maps = torch.stack([sure, vague])
    positive, absolute = (attribution_localisation(maps, ring(), part=part)[:, 0] for part in ("positive", "absolute"))
    assert positive.tolist() == [1, 0.5]
    assert absolute.tolist() == pytest.approx([0.1, 0.5])


def test_no_relevance_and_no_object_are_nan() -> None:
    masks = torch.stack([ring()[0], ring()[0], torch.zeros(SIDE, SIDE).bool(), torch.ones(SIDE, SIDE).bool()])
    maps = torch.cat([torch.zeros(1, 1, SIDE, SIDE), -torch.ones(1, 1, SIDE, SIDE), example(), example()])
    for settings in ({}, {"region": "box"}, {"weighted": True}):
        scores = attribution_localisation(maps, masks, **settings)
        assert scores[:3].isnan().all()
        assert scores[3] == 1
    ranks = relevance_rank_accuracy(maps, masks)
    assert ranks[2].isnan()
    assert ranks[3] == 1


def test_the_true_mask_is_best_and_its_inverse_worst() -> None:
    masks = (torch.rand(20, SIDE, SIDE) > 0.6).index_fill(1, torch.tensor([0]), False)
    maps = torch.stack([masks[:, None].double(), torch.rand(20, 1, SIDE, SIDE).double(), (~masks)[:, None].double()])
    for score in (attribution_localisation, energy_pointing_game, relevance_rank_accuracy):
        true, chance, inverse = score(maps, masks).mean(1)
        assert true == 1
        assert true > chance > inverse
    assert attribution_localisation(maps, masks)[2].max() == 0


@pytest.mark.parametrize("score", [attribution_localisation, energy_pointing_game, relevance_rank_accuracy])
def test_scale_sign_batch_mates_and_methods(score) -> None:
    maps, masks = torch.randn(2, 6, 3, SIDE, SIDE).double(), torch.zeros(6, SIDE, SIDE).bool()
    for number in range(6):
        masks[number, number : number + 4, 2 : 7 + number // 2] = True
    plain = score(maps, masks)
    assert plain.shape == (2, 6)
    assert torch.allclose(score(maps * 1e9, masks), plain, rtol=1e-12)
    assert torch.allclose(score(maps * 1e-9, masks), plain, rtol=1e-12)
    assert (score(-maps, masks) - plain).abs().mean() > 0.05
    mates = maps.clone()
    mates[:, 1:] *= 1e12
    assert torch.equal(score(mates, masks)[:, 0], plain[:, 0])
    alone = torch.stack([score(maps[:, i : i + 1], masks[i : i + 1])[:, 0] for i in range(6)], 1)
    assert torch.equal(alone, plain)
    assert torch.equal(score(maps.flip(1), masks.flip(0)), plain.flip(1))


def test_ranks_by_hand_and_ties_by_their_expected_value() -> None:
    masks = torch.zeros(1, 2, 4, dtype=torch.bool)
    masks[0, 0] = True
    values = torch.tensor([[[[9.0, 1, 8, 2], [7, 3, 3, 0]]]])
    assert relevance_rank_accuracy(values, masks).item() == pytest.approx(2 / 4)  # 9 8 7 and one of two 3s
    values[0, 0, 0, 1] = 3
    assert relevance_rank_accuracy(values, masks).item() == pytest.approx((2 + 1 / 3) / 4)
    assert relevance_rank_accuracy(-values, masks).item() == pytest.approx(4 / 8), "nothing positive: chance"
    assert relevance_rank_accuracy(-values, masks, part="signed").item() == pytest.approx((1 + 2 / 3) / 4)
    assert relevance_rank_accuracy(-values, masks, part="absolute").item() == pytest.approx((2 + 1 / 3) / 4)


def test_the_strongest_sum_to_their_number() -> None:
    values, count = torch.randint(0, 4, (5, 30)).double(), torch.tensor([0, 1, 7, 29, 30])
    chosen = strongest(values, count)
    assert torch.allclose(chosen.sum(-1), count.double())
    assert ((chosen >= 0) & (chosen <= 1)).all()
    for row, number in enumerate(count.tolist()):  # drawing ties by lot
        hits = torch.zeros(30)
        for _ in range(400):
            order = (values[row] + torch.rand(30) * 1e-3).argsort(descending=True)
            hits[order[:number]] += 1 / 400
        assert (hits - chosen[row]).abs().max() < 0.12


def test_classes_and_presets() -> None:
    case = Case(nn.Flatten(), torch.zeros(1, 1, SIDE, SIDE), 0, maps={"a": example()}, masks=ring())
    assert AttributionLocalisation()(case).item() == pytest.approx(0.3)
    assert AttributionLocalisation.preset("quantus")(case).item() == pytest.approx(3 / 17)
    assert AttributionLocalisation.preset("weighted")(case).item() == pytest.approx(0.5 * 4)
    assert EnergyPointingGame()(case).item() == pytest.approx(0.5)
    assert RelevanceRankAccuracy()(case).shape == (1, 1)
    assert AttributionLocalisation().sees_sign
    assert not AttributionLocalisation.preset("quantus").sees_sign
    assert RelevanceRankAccuracy.preset("quantus").sees_sign
    assert not RelevanceRankAccuracy(part="absolute").sees_sign


def test_unknown_settings() -> None:
    with pytest.raises(UnknownNameError, match="region"):
        attribution_localisation(example(), ring(), region="boxes")
    with pytest.raises(UnknownNameError, match="part of a map"):
        attribution_localisation(example(), ring(), part="negative")
    with pytest.raises(UnknownNameError, match="signed"):
        relevance_rank_accuracy(example(), ring(), part="all")
    with pytest.raises(UnknownNameError, match="unit"):
        attribution_localisation(example(), ring(), unit="pixel")
    with pytest.raises(InputError, match="expected attributions"):
        attribution_localisation(example(), torch.ones(1, 3, 3).bool())
