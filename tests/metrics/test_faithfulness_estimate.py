"""FaithfulnessEstimate against closed forms and a literal loop; blocks of the order of a map."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from counted_networks import Counted, Linear
from torch import Tensor, nn

from backlight.errors import InputError, UnknownNameError
from backlight.metrics import Case, FaithfulnessEstimate, faithfulness_estimate
from backlight.metrics.blocks import blocks_of_ranks, features, map_blocks, ordered_blocks
from backlight.metrics.draws import uniform

SIZE = 8
SHAPE = (2, SIZE, SIZE)


@pytest.fixture
def net() -> Counted:
    return Counted().double().eval()


@pytest.fixture
def x() -> Tensor:
    return torch.randn(3, *SHAPE, dtype=torch.float64)


@pytest.fixture
def maps(x: Tensor) -> Tensor:
    """Of two methods."""
    return torch.randn(2, *x.shape, dtype=torch.float64)


def by_loops(net: nn.Module, x: Tensor, phi: Tensor, target: int, step: int, absolute: bool, position: bool) -> list:
    """The definition, one sample, block and forward at a time."""
    scores = []
    for sample, a in zip(x, phi.expand_as(x), strict=True):
        values = (a.abs() if absolute else a).numpy()
        unit_values = values.sum(0).ravel() if position else values.ravel()
        order = np.argsort(-unit_values, kind="stable")
        masses, drops = [], []
        for start in range(0, len(order), step):
            chosen = order[start : start + step]
            changed = sample.clone().reshape(len(sample) if position else 1, -1)
            changed[:, chosen] = 0.0
            whole, without = (float(net(v.reshape(1, *sample.shape))[0, target].detach()) for v in (sample, changed))
            masses.append(unit_values[chosen].sum())
            drops.append(whole - without)
        scores.append(np.corrcoef(masses, drops)[0, 1])
    return scores


@pytest.mark.parametrize("absolute", [True, False])
@pytest.mark.parametrize(("unit", "step"), [("feature", 8), ("feature", 30), ("position", 5)])
def test_it_is_its_definition(net: nn.Module, x: Tensor, maps: Tensor, absolute: bool, unit: str, step: int) -> None:
    found = faithfulness_estimate(net, x, maps, 1, step=step, unit=unit, absolute=absolute)
    expected = [by_loops(net, x, phi, 1, step, absolute, unit == "position") for phi in maps]
    assert found.shape == (2, 3)
    assert found.dtype == torch.float64
    assert torch.allclose(found, torch.tensor(expected), atol=1e-9)


def test_the_exact_map_of_a_linear_model_gets_1(x: Tensor) -> None:
    weight = torch.randn(4, *SHAPE, dtype=torch.float64)
    model, contributions = Linear(weight, 0.3), weight[2] * x
    signed = faithfulness_estimate(model, x, torch.stack([contributions, -contributions]), 2, absolute=False)
    assert torch.allclose(signed, torch.tensor([[1.0], [-1.0]], dtype=torch.float64).expand(2, 3), atol=1e-12)

    evidence = Linear(weight.abs(), 0.3)  # nothing speaks against it: absolute values are the values
    found = faithfulness_estimate(evidence, x.abs(), weight[2].abs() * x.abs(), 2)
    assert torch.allclose(found, torch.ones_like(found), atol=1e-12)


def test_absolute_values_deny_the_exact_map_of_a_linear_model() -> None:
    # contributions 4, -3, 2, -1: the falls are these, the masses 4, 3, 2, 1
    weight = torch.tensor([4.0, -3.0, 2.0, -1.0], dtype=torch.float64).reshape(1, 1, 2, 2)
    model, x = Linear(weight), torch.ones(1, 1, 2, 2, dtype=torch.float64)
    expected = np.corrcoef([4, 3, 2, 1], [4, -3, 2, -1])[0, 1]
    assert expected < 0.5
    assert faithfulness_estimate(model, x, weight, 0, blocks=4).item() == pytest.approx(expected)
    assert faithfulness_estimate(model, x, weight, 0, blocks=4, absolute=False).item() == pytest.approx(1)


def test_who_sees_the_sign_and_nobody_the_scale(net: nn.Module, x: Tensor, maps: Tensor) -> None:
    for settings in ({}, {"unit": "position"}, FaithfulnessEstimate.presets["signed"]):
        metric = FaithfulnessEstimate(**settings)
        plain, negative, scaled = (
            metric(Case(net, x, 1, maps={"a": factor * maps[0], "b": factor * maps[1]})) for factor in (1, -1, 1000)
        )
        assert torch.equal(plain, negative) != metric.sees_sign
        assert torch.allclose(plain, scaled, atol=1e-9)


def test_true_mask_above_random_above_inverted() -> None:
    mask = torch.zeros(1, 1, SIZE, SIZE, dtype=torch.float64)
    mask[..., 2:6, 1:5] = 1
    model = Linear(mask.expand(1, 2, -1, -1))
    x = torch.rand(4, *SHAPE, dtype=torch.float64) + 0.5
    random = torch.rand(4, 1, SIZE, SIZE, dtype=torch.float64)
    tables = torch.stack([mask.expand(4, -1, -1, -1), random, (1 - mask).expand(4, -1, -1, -1)])
    for unit in ("feature", "position"):
        scores = faithfulness_estimate(model, x, tables, 0, blocks=8, unit=unit)
        assert bool((scores[0] > 0.9).all())
        assert bool((scores[2] < -0.9).all())
        assert bool((scores[1].abs() < 0.85).all())


def test_a_score_is_its_samples_alone(net: nn.Module, x: Tensor, maps: Tensor) -> None:
    settings = {"fill": "uniform", "blocks": 10}
    whole = faithfulness_estimate(net, x, maps, [0, 1, 2], seed=[5, 6, 7], **settings)
    for batch_size in (1, 7, 1000):
        again = faithfulness_estimate(net, x, maps, [0, 1, 2], seed=[5, 6, 7], batch_size=batch_size, **settings)
        assert torch.allclose(again, whole, atol=1e-10)
    order = [2, 0]
    mates = faithfulness_estimate(net, x[order], maps[:, order], [2, 0], seed=[7, 5], **settings)
    assert torch.allclose(mates, whole[:, order], atol=1e-10)
    alone = faithfulness_estimate(net, x[1:2], maps[1, 1:2], 1, seed=6, **settings)
    assert alone.shape == (1,)
    assert torch.allclose(alone, whole[1, 1:2], atol=1e-10)
    other = faithfulness_estimate(net, x, maps, [0, 1, 2], seed=[5, 6, 8], **settings)
    assert torch.allclose(other[:, :2], whole[:, :2], atol=1e-10)
    assert not torch.allclose(other[:, 2], whole[:, 2], atol=1e-3)


def test_forwards_are_one_a_block_and_map_and_one_a_sample(net: Counted, x: Tensor, maps: Tensor) -> None:
    state = torch.get_rng_state()
    faithfulness_estimate(net, x, maps, 1, blocks=16, batch_size=5, fill="uniform")
    assert sum(net.batches) == 2 * 3 * 16 + 3
    assert max(net.batches) == 5
    assert torch.equal(torch.get_rng_state(), state)


def test_a_map_of_one_channel_is_that_of_all(net: nn.Module, x: Tensor, maps: Tensor) -> None:
    flat = maps[:, :, :1]
    for unit in ("feature", "position"):
        found = faithfulness_estimate(net, x, flat, 1, unit=unit, step=8)
        same = faithfulness_estimate(net, x, flat.expand_as(maps), 1, unit=unit, step=8)
        assert torch.equal(found, same)


def test_what_does_not_vary_has_no_correlation(net: nn.Module, x: Tensor) -> None:
    constant = faithfulness_estimate(net, x, torch.ones_like(x), 1, step=8)
    assert bool(constant.isnan().all())
    zeros = faithfulness_estimate(net, x * 0, torch.randn_like(x), 1)
    assert bool(zeros.isnan().all())  # nothing is there to remove


def test_ties_keep_the_order_of_their_index() -> None:
    phi = torch.tensor([1.0, 2.0, 1.0, 2.0, 1.0, 0.0]).reshape(1, 1, 1, 2, 3)
    down = ordered_blocks(phi, features, 3, absolute=False, descending=True)
    assert down.numbers.flatten().tolist() == [1, 0, 1, 0, 2, 2]
    assert down.masses.flatten().tolist() == [4, 2, 1]
    up = ordered_blocks(phi, features, 3, absolute=False, descending=False)
    assert up.numbers.flatten().tolist() == [0, 2, 1, 2, 1, 0]
    assert up.masses.flatten().tolist() == [1, 2, 4]


@pytest.mark.parametrize(("units", "blocks", "step"), [(150528, 48, None), (10, 4, None), (3, 48, None), (10, None, 4)])
def test_sizes_of_blocks(units: int, blocks: int | None, step: int | None) -> None:
    sizes = blocks_of_ranks(units, blocks, step).bincount()
    assert sizes.sum() == units
    if step is None:
        assert len(sizes) == min(blocks or units, units)
        assert sizes.max() - sizes.min() <= 1
    else:
        assert sizes.tolist() == [4, 4, 2]
    if units == 150528:
        assert set(sizes.tolist()) == {3136}


def test_many_blocks_are_numbered_right() -> None:
    phi = torch.arange(300.0).flip(0).reshape(1, 1, 3, 10, 10)
    numbers = ordered_blocks(phi, features, None, 1, absolute=False, descending=True).numbers
    assert numbers.flatten().tolist() == list(range(300))
    assert map_blocks(phi, "feature", 256, None, absolute=False, descending=True).numbers.max() == 255


def test_presets() -> None:
    assert FaithfulnessEstimate() == FaithfulnessEstimate.preset("pullbacks")
    quantus = FaithfulnessEstimate.preset("quantus", step=16)
    assert (quantus.step, quantus.fill, quantus.absolute) == (16, "min", False)


def test_errors(net: nn.Module, x: Tensor, maps: Tensor) -> None:
    with pytest.raises(UnknownNameError, match="position"):
        faithfulness_estimate(net, x, maps, 1, unit="positions")
    with pytest.raises(UnknownNameError, match="uniform"):
        faithfulness_estimate(net, x, maps, 1, fill="unifrom")
    for settings in ({"blocks": 0}, {"step": 0}, {"blocks": -3}):
        with pytest.raises(InputError, match="at least 1"):
            faithfulness_estimate(net, x, maps, 1, **settings)
    with pytest.raises(InputError, match="at least 2 blocks"):
        faithfulness_estimate(net, x, maps, 1, blocks=1)


def test_a_block_gets_its_samples_draw(net: nn.Module, x: Tensor, maps: Tensor) -> None:
    """A block is filled with its own number of the sample's, whichever method it belongs to."""
    fills = uniform(3, (4,), -1.0, 1.0, x)
    found = faithfulness_estimate(net, x, maps, 1, blocks=4, fill="uniform", seed=3, absolute=False)
    ordered = map_blocks(maps, "feature", 4, None, absolute=False, descending=True)
    with torch.no_grad():
        for method in range(2):
            for row in range(3):
                drops = []
                for block in range(4):
                    inside = ordered.numbers[method, row].reshape(SHAPE) == block
                    changed = torch.where(inside, fills[row, block], x[row])
                    drops.append(float(net(x[row : row + 1])[0, 1] - net(changed[None])[0, 1]))
                expected = np.corrcoef(ordered.masses[method, row].numpy(), drops)[0, 1]
                assert found[method, row].item() == pytest.approx(expected, abs=1e-9)
