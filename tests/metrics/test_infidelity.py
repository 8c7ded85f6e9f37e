"""Infidelity: literal loops of the protocols, closed forms, identities, and what a score may not depend on."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from counted_networks import Colours, Linear, drawn
from torch import Tensor, nn

from backlight.errors import InputError, UnknownNameError
from backlight.metrics import Case, Infidelity, infidelity
from backlight.metrics.draws import further
from backlight.metrics.infidelity import drawn_corners, filled_sweeps, squared, swept
from backlight.metrics.scorer import Scorer

SIZE = 16


def linear(weight: Tensor) -> Linear:
    """Logits `<w, x>` and `-<w, x>`."""
    return Linear(torch.stack([weight, -weight]))


@pytest.fixture
def net() -> Colours:
    return Colours().double().eval().requires_grad_(False)


@pytest.fixture
def x() -> Tensor:
    return drawn(3, 3, SIZE, SIZE, seed=1)


@pytest.fixture
def maps() -> Tensor:
    return drawn(2, 3, 3, SIZE, SIZE, seed=2)


def reference(net: nn.Module, x: Tensor, phi: Tensor, target: int, sides: list[int], fills: list[Tensor]) -> float:
    """One sample, as the reference of Semantic Pullbacks measures it: sweeps, and one scale for all perturbations."""
    masses, drops = [], []
    for side, fill in zip(sides, fills, strict=True):
        for repeat in range(len(fill)):
            moved, number = x.clone(), 0
            for top in range(0, x.shape[1], side):
                for left in range(0, x.shape[2], side):
                    moved[:, top : top + side, left : left + side] = fill[repeat, number]
                    masses.append(float((phi * (x - moved)).sum()))
                    drops.append(float(net(x[None])[0, target] - net(moved[None])[0, target]))
                    number += 1
    square = sum(a * a for a in masses)
    beta = sum(a * b for a, b in zip(masses, drops, strict=True)) / (square or 1.0)
    return sum((beta * a - b) ** 2 for a, b in zip(masses, drops, strict=True)) / len(masses)


def test_the_protocol_of_the_paper_s_code(net: Colours, x: Tensor, maps: Tensor) -> None:
    """Five sweeps over patches of half and of a quarter of the side: 100 perturbed inputs."""
    found = infidelity(net, x, maps, [0, 1, 3])
    fills = [filled_sweeps("uniform", x, side, 5, 0, number, -1.0, 1.0) for number, side in enumerate((8, 4))]
    assert [fill.shape for fill in fills] == [(3, 5, 4), (3, 5, 16)]
    for row, target in enumerate((0, 1, 3)):
        for method in range(2):
            expected = reference(net, x[row], maps[method, row], target, [8, 4], [fill[row] for fill in fills])
            assert abs(float(found[method, row]) / expected - 1) < 1e-9
    assert all(float(fill.min()) > -1 and float(fill.max()) < 1 and float(fill.std()) > 0.4 for fill in fills)


@pytest.mark.parametrize("side", [5, 6, 16])
def test_smaller_patches_at_the_border(side: int, net: Colours, x: Tensor, maps: Tensor) -> None:
    found = infidelity(net, x, maps[0], 1, patches=(float(side),), repeats=2, seed=3)
    fills = filled_sweeps("uniform", x, side, 2, 3, 0, -1.0, 1.0)
    for row in range(3):
        expected = reference(net, x[row], maps[0, row], 1, [side], [fills[row]])
        assert abs(float(found[row]) - expected) < 1e-9 * (1 + expected)


def test_independent_squares_one_at_a_time(net: Colours, x: Tensor, maps: Tensor) -> None:
    settings = {"cumulative": False, "repeats": 2, "squares": 7, "patches": (1 / 4,), "seed": 5, "scaling": "none"}
    found = infidelity(net, x, maps, 2, **settings)
    corners = drawn_corners(x, 4, 14, further(5, 0))
    fills = filled_sweeps("uniform", x[..., :1, :14], 1, 1, further(5, 1), 0, -1.0, 1.0)[:, 0]
    for row in range(3):
        errors = []
        for number in range(14):
            (top, left), moved = corners[row, :, number].tolist(), x[row].clone()
            moved[:, top : top + 4, left : left + 4] = fills[row, number]
            drop = net(x[row][None])[0, 2] - net(moved[None])[0, 2]
            errors.append(float(((maps[1, row] * (x[row] - moved)).sum() - drop) ** 2))
        assert abs(float(found[1, row]) / (sum(errors) / 14) - 1) < 1e-9


def test_squares_reach_every_place_and_stay_inside(x: Tensor) -> None:
    corners = drawn_corners(x, 13, 2000, 0)
    assert sorted(set(corners.flatten().tolist())) == [0, 1, 2, 3]
    counts = torch.bincount(corners[0, 0])
    assert counts.min() > 400
    assert drawn_corners(x, SIZE, 5, 0).abs().max() == 0


def test_the_weights_of_a_linear_model_are_faithful(x: Tensor) -> None:
    weight = drawn(3, SIZE, SIZE, seed=8)
    model = linear(weight)
    own = weight.expand_as(x)
    for settings in ({}, {"cumulative": False}, {"scaling": "none"}, {"fill": "min"}, {"pooled": False}):
        assert infidelity(model, x, own, 0, **settings).max() < 1e-20, settings
    assert infidelity(model, x, 3 * own, 0).max() < 1e-20  # any scale
    assert infidelity(model, x, 3 * own, 0, scaling="none").min() > 1


def masses_and_drops(net: nn.Module, x: Tensor, maps: Tensor) -> tuple[Tensor, Tensor]:
    """Of the default perturbations."""
    scorer = Scorer(net, x, 1)
    parts = [
        swept(scorer, maps, side, filled_sweeps("uniform", x, side, 5, 0, number, -1.0, 1.0))
        for number, side in enumerate((8, 4))
    ]
    return tuple(torch.cat(both, -1) for both in zip(*parts, strict=True))  # type: ignore[return-value]


def test_it_is_the_drops_second_moment_times_a_sine(net: Colours, x: Tensor, maps: Tensor) -> None:
    """E[b^2] (1 - cos^2(a, b)); and of the map 0 E[b^2], which is the largest score that there is."""
    a, b = masses_and_drops(net, x, maps)
    cosine = nn.functional.cosine_similarity(a, b.expand_as(a), dim=-1)
    moment = b.square().mean(-1)
    found = infidelity(net, x, maps, 1)
    assert torch.allclose(found, moment * (1 - cosine**2), rtol=1e-9)
    assert torch.allclose(infidelity(net, x, torch.zeros_like(x), 1), moment, rtol=1e-12)
    assert (found < moment).all()
    signed = infidelity(net, x, maps, 1, scaling="positive")
    assert torch.allclose(signed, moment * (1 - cosine.clamp(min=0) ** 2), rtol=1e-9)
    assert (cosine < 0).any()
    assert (cosine > 0).any()


@pytest.mark.parametrize("factor", [1e-12, 1e-3, 7.0, 1e9])
def test_scale_does_not_matter_and_sign_only_where_it_is_seen(
    factor: float, net: Colours, x: Tensor, maps: Tensor
) -> None:
    for settings in ({}, {"cumulative": False, "squares": 4}, {"pooled": False}, {"scaling": "positive"}):
        found = infidelity(net, x, maps, 1, **settings)
        assert torch.allclose(infidelity(net, x, factor * maps, 1, **settings), found, rtol=1e-8), settings
        other = infidelity(net, x, -factor * maps, 1, **settings)
        assert torch.allclose(other, found, rtol=1e-8) == (settings.get("scaling") != "positive")
    assert not torch.allclose(
        infidelity(net, x, maps, 1, scaling="none"), infidelity(net, x, factor * maps, 1, scaling="none")
    )


def test_each_size_has_its_mean_where_sizes_are_not_pooled(net: Colours, x: Tensor, maps: Tensor) -> None:
    settings: dict[str, Any] = {"scaling": "none", "repeats": 2}
    apart = infidelity(net, x, maps, 1, patches=(8.0, 4.0), pooled=False, **settings)
    large = infidelity(net, x, maps, 1, patches=(8.0,), **settings)
    both = infidelity(net, x, maps, 1, patches=(8.0, 4.0), **settings)
    small = (both * 40 - large * 8) / 32
    assert torch.allclose(apart, (large + small) / 2, rtol=1e-9)


def test_maps_of_one_channel_stand_for_all(net: Colours, x: Tensor, maps: Tensor) -> None:
    found = infidelity(net, x, maps[:, :, :1], 0)
    assert torch.allclose(found, infidelity(net, x, maps[:, :, :1].expand_as(maps), 0), rtol=1e-12)
    assert torch.allclose(infidelity(net, x, maps[0], 0), infidelity(net, x, maps, 0)[0], rtol=1e-12)


def test_all_methods_share_the_forwards_and_batches_are_bounded(net: Colours, x: Tensor, maps: Tensor) -> None:
    infidelity(net, x, maps.repeat(5, 1, 1, 1, 1), 0, batch_size=7)
    assert max(net.batches) == 7
    assert sum(net.batches) == 3 * (100 + 1)


def test_half_precision_maps_are_summed_in_double(net: Colours, x: Tensor) -> None:
    weight = drawn(3, SIZE, SIZE, seed=8).bfloat16()
    model = linear(weight.double())
    assert infidelity(model, x, weight.expand_as(x), 0).max() < 1e-20


def test_networks_in_half_precision_are_scored(net: Colours, x: Tensor, maps: Tensor) -> None:
    found = infidelity(net.bfloat16(), x.bfloat16(), maps, 0, patches=(1 / 2,), repeats=2)
    exact = infidelity(net.double(), x.bfloat16().double(), maps, 0, patches=(1 / 2,), repeats=2)
    assert found.dtype == torch.float64
    assert (found - exact).abs().max() < 0.05 * exact.max() + 1e-3


def test_squares_of_one_sample_by_hand(x: Tensor) -> None:
    """The sums over rectangles that stand in for sums over squares."""
    model, maps = linear(drawn(3, SIZE, SIZE)), drawn(4, 1, 3, SIZE, SIZE)
    corners, fills = torch.tensor([[[0, 13, 5], [13, 0, 6]]]), torch.tensor([[0.5, -1.0, 0.0]], dtype=torch.float64)
    masses, drops = squared(Scorer(model, x[:1], 0), maps, 3, corners, fills)
    for number, (top, left) in enumerate(corners[0].T.tolist()):
        piece = (..., slice(top, top + 3), slice(left, left + 3))
        for method in range(4):
            expected = (maps[method, 0][piece] * (x[0][piece] - fills[0, number])).sum()
            assert torch.allclose(masses[method, 0, number], expected, atol=1e-12)
        assert torch.allclose(drops[0, number], (model.weight[0][piece] * (x[0][piece] - fills[0, number])).sum())


def test_the_class_holds_the_settings_of_the_function(net: Colours, x: Tensor, maps: Tensor) -> None:
    case = Case(net, x, 2, maps={"a": maps[0], "b": maps[1]}, seed=4)
    assert torch.equal(Infidelity()(case), infidelity(net, x, maps, 2, seed=4))
    assert torch.equal(
        Infidelity.preset("text")(case),
        infidelity(net, x, maps, 2, seed=4, cumulative=False, repeats=1, squares=50),
    )
    assert torch.equal(
        Infidelity.preset("quantus")(case),
        infidelity(net, x, maps, 2, patches=(4.0,), repeats=1, fill="min", scaling="none", pooled=False),
    )
    assert not Infidelity().sees_sign
    assert Infidelity.preset("signed").sees_sign
    assert not Infidelity.higher_is_better


def test_settings_that_do_not_fit_are_named(net: Colours, x: Tensor, maps: Tensor) -> None:
    with pytest.raises(UnknownNameError, match="optimal"):
        infidelity(net, x, maps, 0, scaling="optimum")
    for settings in ({"repeats": 0}, {"patches": ()}, {"squares": 0}, {"patches": (17.0,)}, {"patches": (0.0,)}):
        with pytest.raises(InputError):
            infidelity(net, x, maps, 0, **settings)
