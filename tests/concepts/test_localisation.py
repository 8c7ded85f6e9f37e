"""How localised latents are: closed forms of the measures, and a network whose latents are known."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from routed_network import Routed, dictionary_of, routed_image

from backlight.concepts.cafe import Cafe
from backlight.concepts.localisation import (
    centre,
    concentration,
    distances,
    effective_patches,
    entropy,
    localise,
    mean_distance,
    measure,
    offset,
    outside,
    outside_by_chance,
    spread,
)
from backlight.errors import InputError


def point(row: int, column: int, size: tuple[int, int] = (4, 6)) -> torch.Tensor:
    made = torch.zeros(1, *size)
    made[0, row, column] = 2.5
    return made


def test_a_constant_map_is_spread_over_all_patches() -> None:
    flat = torch.full((2, 4, 6), 0.3)
    assert entropy(flat).tolist() == pytest.approx([math.log(24)] * 2)
    assert effective_patches(flat).tolist() == pytest.approx([24.0] * 2)
    assert concentration(flat).abs().max() < 1e-12
    assert centre(flat)[0].tolist() == pytest.approx([1.5, 2.5])
    # the variance of n equally likely integers is (n^2 - 1) / 12
    assert spread(flat).tolist() == pytest.approx([math.sqrt((16 - 1) / 12 + (36 - 1) / 12)] * 2)


def test_a_point_is_on_one_patch() -> None:
    assert entropy(point(1, 4)).tolist() == [0]
    assert effective_patches(point(1, 4)).tolist() == [1]
    assert concentration(point(1, 4)).item() == pytest.approx(1 - 1 / 24)
    assert centre(point(1, 4))[0].tolist() == [1, 4]
    assert spread(point(1, 4)).tolist() == [0]


def test_two_equal_points() -> None:
    pair = point(0, 0) + point(0, 4)
    assert entropy(pair).item() == pytest.approx(math.log(2))
    assert centre(pair)[0].tolist() == [0, 2]
    assert spread(pair).item() == pytest.approx(2)
    at = torch.tensor([[0, 0]])
    assert mean_distance(pair, at).item() == pytest.approx(2)
    assert offset(pair, at).item() == pytest.approx(2)
    assert offset(pair, torch.tensor([[0, 2]])).item() == 0  # wide, but around the place
    assert outside(pair, at, 3.9).item() == pytest.approx(0.5)
    assert outside(pair, at, 4.0).item() == 0


def test_what_lies_nowhere_is_not_measured() -> None:
    nowhere, zeros = torch.tensor([[-1, -1]]), torch.zeros(1, 4, 6)
    for how in (outside, mean_distance, offset):
        assert how(point(1, 1), nowhere).isnan().all()
        assert how(zeros, torch.tensor([[1, 1]])).isnan().all()
    for how in (entropy, effective_patches, spread, concentration):
        assert how(zeros).isnan().all()


def test_chance_is_the_share_of_patches_that_are_far() -> None:
    place = torch.tensor([[0, 0], [2, 3]])
    expected = (distances(place.double(), (4, 6)) > 2).double().mean((1, 2))
    assert outside_by_chance((4, 6), place, 2.0).tolist() == pytest.approx(expected.tolist())
    assert expected[0].item() == pytest.approx(1 - 6 / 24)  # (0, 0..2), (1, 0..1), (2, 0) are near


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0, 1e3, allow_subnormal=False), min_size=12, max_size=12), st.floats(1e-3, 1e3))
def test_measures_do_not_depend_on_scale_sign_or_side(values: list[float], scale: float) -> None:
    maps, place = torch.tensor(values, dtype=torch.float64).reshape(1, 3, 4) + 1e-6, torch.tensor([[1, 2]])
    turned, turned_place = maps.mT, place.flip(1)
    for how in (entropy, spread, concentration):
        assert how(maps).item() == pytest.approx(how(-scale * maps).item(), rel=1e-6, abs=1e-6)
        assert how(maps).item() == pytest.approx(how(turned).item(), rel=1e-6, abs=1e-6)
    for apart in (outside, mean_distance, offset):
        assert apart(maps, place).item() == pytest.approx(apart(turned, turned_place).item(), rel=1e-6, abs=1e-6)
    assert -1e-12 <= entropy(maps).item() <= math.log(12) + 1e-12
    assert 0 <= outside(maps, place).item() <= 1 + 1e-12
    assert offset(maps, place).item() <= mean_distance(maps, place).item() + 1e-9


def latents() -> Any:
    """0 fires where much was written (and looks away), 1 where there is content (and looks there), 2 never."""
    rows = torch.tensor([[0.0, 0, 0, 1], [0, 0, 1, 0], [0, 0, 1, 0]], dtype=torch.float64)
    return dictionary_of(rows, torch.tensor([-0.5, -0.5, -1e3], dtype=torch.float64))


def pictures() -> torch.Tensor:
    return torch.cat([routed_image(*pair) for pair in (((0, 1), (4, 3)), ((3, 3), (0, 0)), ((4, 0), (1, 3)))])


def test_the_latent_that_looks_away_is_told_from_the_one_that_does_not() -> None:
    found = localise(Routed(), latents(), "blocks.0", pictures(), per_latent=2, radius=1.0, batch_size=2)
    assert (found.modes, found.dead, found.skipped, found.images, found.grid) == (3, 1, 0, 3, (5, 5))
    away, here = found.latents
    assert (away.latent, here.latent) == (0, 1)
    assert away.outside is not None
    assert here.outside is not None
    assert away.outside > 0.9
    assert here.outside < 0.05
    assert (away.images, away.shown, away.at_prefix) == (3, 2, 0)
    assert away.frequency == pytest.approx(1 / 25)  # one token an image
    assert away.activation_patches == pytest.approx(1)
    assert [one.latent for one in found.non_localised(5)] == [0, 1]
    assert found.at_class_token() == []
    assert found.summary()["mostly_outside"] == pytest.approx(0.5)


def test_each_latent_is_measured_on_the_images_where_it_is_largest() -> None:
    images = pictures()
    images[1] *= 0.9  # of the three, the least
    found = localise(Routed(), latents(), "blocks.0", images, per_latent=2, latents=[1])
    best = Cafe(Routed(), latents(), "blocks.0").explain(images[[0, 2]], 1)
    (one,) = found.latents
    assert one.z == pytest.approx(float(best.z.mean()))
    assert one.distance == pytest.approx(float(measure(best).distance.mean()))
    assert found.skipped == 1


def test_a_sample_of_latents_is_drawn_with_its_seed() -> None:
    rows = torch.rand(20, 4, dtype=torch.float64)
    model, dictionary = Routed(), dictionary_of(rows)
    told: list[tuple[int, int]] = []

    def drawn(seed: int) -> list[int]:
        settings_: Any = {"count": 5, "per_latent": 1, "seed": seed, "progress": lambda *at: told.append(at)}
        found = localise(model, dictionary, "blocks.0", pictures(), **settings_)
        assert found.skipped == 15
        return [one.latent for one in found.latents]

    assert drawn(0) == drawn(0)
    assert drawn(0) != drawn(1)
    assert told[:5] == [(1, 5), (2, 5), (3, 5), (4, 5), (5, 5)]
    with pytest.raises(InputError, match="latents \\[2\\] are on at no token"):
        localise(model, latents(), "blocks.0", pictures(), latents=[0, 2])
    with pytest.raises(InputError, match="per_latent"):
        localise(model, dictionary, "blocks.0", pictures(), per_latent=0)


def test_tables_are_what_was_measured() -> None:
    found = localise(Routed(), latents(), "blocks.0", pictures(), per_latent=1)
    again = json.loads(json.dumps(found.record(), allow_nan=False))
    assert again["latents"][0]["outside"] == found.latents[0].outside
    assert again["summary"]["dead"] == 1
    lines = found.csv().splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("latent,images,shown,frequency")
    assert found.markdown(1).splitlines()[2].startswith("| 0 | 3 | 4 % | 0 % | 1.0 |")
