"""FaithfulnessCorrelation and Fidelity: literal loops, closed forms, and what a score may not depend on."""

from __future__ import annotations

import pytest
import scipy.stats
import torch
from counted_networks import Colours, Linear, drawn
from torch import Tensor

from backlight.errors import InputError, UnknownNameError
from backlight.metrics import Case, FaithfulnessCorrelation, Fidelity, faithfulness_correlation
from backlight.metrics.draws import further, uniform
from backlight.metrics.faithfulness_correlation import drawn_subsets

SIZE = 12


def linear(weight: Tensor) -> Linear:
    """Logits `<w, x>` and 1."""
    return Linear(torch.stack([weight, 0 * weight]), torch.tensor([0.0, 1.0], dtype=weight.dtype))


@pytest.fixture
def net() -> Colours:
    return Colours().double().eval().requires_grad_(False)


@pytest.fixture
def x() -> Tensor:
    return drawn(3, 3, SIZE, SIZE, seed=1)


@pytest.fixture
def maps() -> Tensor:
    return drawn(2, 3, 3, SIZE, SIZE, seed=2)


@pytest.mark.parametrize(("patch", "side"), [(1 / 4, 3), (1 / 2, 6), (5.0, 5)])
@pytest.mark.parametrize("absolute", [True, False])
def test_each_patch_alone_is_set_to_zero(
    absolute: bool, patch: float, side: int, net: Colours, x: Tensor, maps: Tensor
) -> None:
    found = faithfulness_correlation(net, x, maps, [2, 0, 1], patch=patch, absolute=absolute)
    for row, target in enumerate((2, 0, 1)):
        for method in range(2):
            phi = maps[method, row].abs() if absolute else maps[method, row]
            masses, drops = [], []
            for top in range(0, SIZE, side):
                for left in range(0, SIZE, side):
                    moved = x[row].clone()
                    moved[:, top : top + side, left : left + side] = 0
                    masses.append(float(phi[:, top : top + side, left : left + side].sum()))
                    drops.append(float(net(x[row : row + 1])[0, target] - net(moved[None])[0, target]))
            assert abs(float(found[method, row]) - scipy.stats.pearsonr(masses, drops)[0]) < 1e-9


@pytest.mark.parametrize("unit", ["position", "feature"])
@pytest.mark.parametrize("fill", [0.0, "min", "uniform"])
def test_random_subsets_one_at_a_time(fill: float | str, unit: str, net: Colours, x: Tensor, maps: Tensor) -> None:
    settings = {"unit": unit, "subset": 20, "runs": 9, "fill": fill, "absolute": False}
    found = faithfulness_correlation(net, x, maps, 1, seed=[3, 4, 5], **settings)
    chosen = drawn_subsets(x, unit, 20, 9, [3, 4, 5])
    fills = uniform(further([3, 4, 5], 1), (9,), -1.0, 1.0, x)
    for row in range(3):
        masses, drops = [], []
        for run in range(9):
            value = {0.0: 0.0, "min": float(x[row].min()), "uniform": float(fills[row, run])}[fill]
            moved = x[row].reshape(3 if unit == "position" else 1, -1).clone()
            moved[:, chosen[row, run]] = value
            masses.append(float(maps[1, row].reshape(moved.shape)[:, chosen[row, run]].sum()))
            drops.append(float(net(x[row : row + 1])[0, 1] - net(moved.reshape(1, 3, SIZE, SIZE))[0, 1]))
        assert abs(float(found[1, row]) - scipy.stats.pearsonr(masses, drops)[0]) < 1e-9


@pytest.mark.parametrize("unit", ["position", "feature"])
def test_subsets_have_no_repetition_and_reach_everything(unit: str, x: Tensor) -> None:
    chosen = drawn_subsets(x, unit, 100, 40, 0)
    entries = SIZE * SIZE * (3 if unit == "feature" else 1)
    assert chosen.shape == (3, 40, 100)
    assert all(len(set(run.tolist())) == 100 for run in chosen[0])
    assert sorted(set(chosen[0].flatten().tolist())) == list(range(entries))
    assert torch.equal(drawn_subsets(x.bfloat16(), unit, 100, 40, 0), chosen)


def test_on_a_linear_model_value_times_weight_is_faithful(x: Tensor) -> None:
    """f(x) - f(x without S) = sum_S x w where S is set to 0."""
    weight = drawn(3, SIZE, SIZE, seed=8)
    model, relevance = linear(weight), x * weight
    for unit in ("patch", "position", "feature"):
        settings = {"unit": unit, "subset": 30, "runs": 20}
        one = faithfulness_correlation(model, x, relevance, 0, absolute=False, **settings)
        assert torch.allclose(one, torch.ones(3, dtype=torch.float64), atol=1e-12)
        assert torch.allclose(faithfulness_correlation(model, x, -relevance, 0, absolute=False, **settings), -one)


def test_what_does_not_vary_has_no_score(x: Tensor, maps: Tensor, recwarn: pytest.WarningsRecorder) -> None:
    model = linear(drawn(3, SIZE, SIZE))
    for settings in ({}, {"unit": "position", "subset": 7, "runs": 5}, {"unit": "feature", "subset": 7, "runs": 5}):
        assert faithfulness_correlation(model, x, maps, 1, **settings).isnan().all()  # a constant score
        constant = torch.full_like(x, 0.1)
        assert faithfulness_correlation(model, x, constant, 0, **settings).isnan().all()
        mixed = torch.where(torch.arange(3)[:, None, None, None] == 1, constant, x)
        assert faithfulness_correlation(model, x, mixed, 0, **settings).isnan().tolist() == [False, True, False]
    assert not recwarn.list


def test_scale_and_sign(net: Colours, x: Tensor, maps: Tensor) -> None:
    for absolute in (True, False):
        found = faithfulness_correlation(net, x, maps, 0, absolute=absolute)
        assert torch.allclose(faithfulness_correlation(net, x, maps * 1e-9, 0, absolute=absolute), found, atol=1e-9)
        other = faithfulness_correlation(net, x, -maps, 0, absolute=absolute)
        assert torch.allclose(other, found if absolute else -found, atol=1e-12)


def test_all_methods_share_the_forwards_and_batches_are_bounded(net: Colours, x: Tensor, maps: Tensor) -> None:
    faithfulness_correlation(net, x, maps.repeat(5, 1, 1, 1, 1), 0, batch_size=5)
    assert (max(net.batches), sum(net.batches)) == (5, 3 * (16 + 1))
    net.batches.clear()
    faithfulness_correlation(net, x, maps.repeat(5, 1, 1, 1, 1), 0, unit="feature", runs=11, batch_size=4)
    assert (max(net.batches), sum(net.batches)) == (4, 3 * (11 + 1))


def test_the_classes_hold_the_settings_of_the_function(net: Colours, x: Tensor, maps: Tensor) -> None:
    case = Case(net, x, 2, maps={"a": maps[0], "b": maps[1]}, seed=4)
    assert torch.equal(FaithfulnessCorrelation()(case), faithfulness_correlation(net, x, maps, 2, seed=4))
    assert torch.equal(
        Fidelity(subset=50)(case),
        faithfulness_correlation(net, x, maps, 2, unit="position", subset=50, absolute=False, seed=4),
    )
    assert (Fidelity().subset, Fidelity().runs, Fidelity().fill) == (200, 100, 0.0)
    assert not FaithfulnessCorrelation().sees_sign
    assert Fidelity().sees_sign
    quantus = FaithfulnessCorrelation.preset("quantus")
    assert (quantus.unit, quantus.subset, quantus.runs, quantus.fill) == ("feature", 224, 100, "min")
    assert quantus.sees_sign


def test_settings_that_do_not_fit_are_named(net: Colours, x: Tensor, maps: Tensor) -> None:
    with pytest.raises(UnknownNameError, match="patch"):
        faithfulness_correlation(net, x, maps, 0, unit="patches")
    for settings in ({"subset": 145}, {"subset": 0}, {"runs": 1, "subset": 9}):
        with pytest.raises(InputError, match="144 positions"):
            faithfulness_correlation(net, x, maps, 0, unit="position", **settings)
    assert torch.isfinite(faithfulness_correlation(net, x, maps, 0, unit="feature", subset=145)).all()


@pytest.mark.parametrize(
    ("unit", "fill"), [("patch", 0.25), ("patch", "uniform"), ("position", "uniform"), ("feature", "min")]
)
def test_to_first_order_a_gradient_of_a_linear_model_is_faithful(unit: str, fill: float | str) -> None:
    weight = drawn(1, 3, SIZE, SIZE, seed=5)
    x = drawn(2, 3, SIZE, SIZE, seed=6)
    maps = weight.expand_as(x)
    settings = {"unit": unit, "fill": fill, "subset": 9, "runs": 12, "absolute": False}
    score = faithfulness_correlation(linear(weight), x, torch.stack([maps, -maps]), 0, difference=True, **settings)
    assert torch.allclose(score, torch.tensor([[1.0], [-1.0]], dtype=torch.float64).expand(2, 2), atol=1e-10)
    plain = faithfulness_correlation(linear(weight), x, maps, 0, **settings)
    assert (plain < 0.99).all()


def test_a_difference_has_a_sign(net: Colours, x: Tensor) -> None:
    with pytest.raises(InputError, match="absolute=False"):
        faithfulness_correlation(net, x, x, 0, difference=True)
