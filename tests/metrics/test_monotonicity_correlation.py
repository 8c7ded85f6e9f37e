"""MonotonicityCorrelation against closed forms and a literal loop on the same draws."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from counted_networks import Counted, Linear
from torch import Tensor, nn

from backlight.errors import InputError, UnknownNameError
from backlight.metrics import Case, MonotonicityCorrelation, monotonicity_correlation
from backlight.metrics.draws import uniform

SHAPE = (2, 6, 6)


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


def rank_correlation(a: list[float], b: list[float]) -> float:
    """Without ties."""
    ranks = [np.argsort(np.argsort(values)) for values in (a, b)]
    return float(np.corrcoef(*ranks)[0, 1])


def by_loops(
    net: nn.Module, sample: Tensor, phi: Tensor, step: int, fills: np.ndarray, change: str, absolute: bool
) -> float:
    """The definition at one sample, with Quantus's division, one block and draw at a time."""

    def score(v: Tensor) -> float:
        return float(net(v.reshape(1, *SHAPE))[0, 1].detach())

    values = (phi.abs() if absolute else phi).numpy().ravel()
    order = np.argsort(values, kind="stable")
    whole, masses, changes = score(sample), [], []
    for block, start in enumerate(range(0, len(order), step)):
        chosen, found = order[start : start + step], []
        for number in fills[block]:
            changed = sample.clone().ravel()
            changed[chosen] = float(number)
            found.append(whole - score(changed))
        masses.append(values[chosen].sum())
        changes.append(np.mean(np.square(found)) / whole**2 if change == "square" else np.mean(found))
    return rank_correlation(masses, changes)


@pytest.mark.parametrize(("change", "absolute"), [("square", True), ("drop", False), ("square", False)])
@pytest.mark.parametrize("step", [6, 10])
def test_it_is_its_definition(net: nn.Module, x: Tensor, maps: Tensor, change: str, absolute: bool, step: int) -> None:
    settings = {"change": change, "absolute": absolute, "step": step, "low": -2.0, "high": 3.0}
    found = monotonicity_correlation(net, x, maps, 1, n_draws=3, seed=[4, 5, 6], **settings)
    blocks = -(-72 // step)
    fills = uniform([4, 5, 6], (blocks * 3,), -2.0, 3.0, x).reshape(3, blocks, 3).numpy()
    expected = [
        [by_loops(net, x[row], phi[row], step, fills[row], change, absolute) for row in range(3)] for phi in maps
    ]
    assert found.dtype == torch.float64
    assert torch.allclose(found, torch.tensor(expected, dtype=torch.float64), atol=1e-9)


def test_what_is_monotone_gets_1_and_its_opposite_minus_1() -> None:
    weight = torch.rand(1, *SHAPE, dtype=torch.float64)
    model, x = Linear(weight, 2.0), torch.zeros(1, *SHAPE, dtype=torch.float64)
    settings = {"blocks": 12, "fill": 0.5}  # (f(x) - f(x'))^2 = (sum_S w)^2 / 4
    assert monotonicity_correlation(model, x, weight, 0, **settings).item() == pytest.approx(1)
    assert monotonicity_correlation(model, x, 1 - weight, 0, **settings).item() == pytest.approx(-1)
    # the mean fall is -sum_S w / 2
    assert monotonicity_correlation(model, x, weight, 0, change="drop", **settings).item() == pytest.approx(-1)
    drawn = monotonicity_correlation(model, x, weight, 0, blocks=12, n_draws=500)  # E u^2 = 1/3
    assert drawn.item() > 0.97


def test_the_sign_is_seen_where_falls_are(x: Tensor) -> None:
    weight = torch.randn(1, *SHAPE, dtype=torch.float64)
    model, exact = Linear(weight, 0.3), weight * x
    maps = torch.stack([exact, -exact])
    signed = monotonicity_correlation(model, x, maps, 0, fill=0.0, change="drop", absolute=False, blocks=12)
    assert torch.allclose(signed[0], torch.ones(3, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(signed[1], -torch.ones(3, dtype=torch.float64), atol=1e-12)


def test_who_sees_the_sign_and_nobody_the_scale(net: nn.Module, x: Tensor, maps: Tensor) -> None:
    for metric in (MonotonicityCorrelation(), MonotonicityCorrelation.preset("signed")):
        plain, negative, scaled = (
            metric(Case(net, x, 1, maps={"a": factor * maps[0], "b": factor * maps[1]})) for factor in (1, -1, 1000)
        )
        assert torch.equal(plain, negative) != metric.sees_sign
        assert torch.allclose(plain, scaled, atol=1e-9)


def test_the_scale_of_the_score_does_not_matter(net: Counted, x: Tensor, maps: Tensor) -> None:
    """Quantus divides by f(x)^2 above its `eps` and by 1 below it: no correlation can tell."""
    plain = monotonicity_correlation(net, x, maps, 1)
    net.scale = 2.0**-40
    assert torch.allclose(monotonicity_correlation(net, x, maps, 1), plain, atol=1e-12)


def test_true_mask_above_random_above_inverted() -> None:
    mask = torch.zeros(1, 1, 6, 6, dtype=torch.float64)
    mask[..., 1:4, 2:5] = 1
    model, x = Linear(mask.expand(1, 2, -1, -1)), torch.rand(4, *SHAPE, dtype=torch.float64) + 0.5
    random = torch.rand(4, 1, 6, 6, dtype=torch.float64)
    tables = torch.stack([mask.expand(4, -1, -1, -1), random, (1 - mask).expand(4, -1, -1, -1)])
    scores = monotonicity_correlation(model, x, tables, 0, blocks=12)
    assert bool((scores[0] > 0.7).all())
    assert bool((scores[2] < -0.7).all())
    assert bool((scores[1].abs() < 0.7).all())


def test_a_score_is_its_samples_alone(net: nn.Module, x: Tensor, maps: Tensor) -> None:
    settings = {"blocks": 9, "n_draws": 3}
    whole = monotonicity_correlation(net, x, maps, [0, 1, 2], seed=[5, 6, 7], **settings)
    for batch_size in (1, 7, 1000):
        again = monotonicity_correlation(net, x, maps, [0, 1, 2], seed=[5, 6, 7], batch_size=batch_size, **settings)
        assert torch.allclose(again, whole, atol=1e-10)
    order = [2, 0]
    mates = monotonicity_correlation(net, x[order], maps[:, order], [2, 0], seed=[7, 5], **settings)
    assert torch.allclose(mates, whole[:, order], atol=1e-10)
    alone = monotonicity_correlation(net, x[1:2], maps[1, 1:2], 1, seed=6, **settings)
    assert torch.allclose(alone, whole[1, 1:2], atol=1e-10)
    other = monotonicity_correlation(net, x, maps, [0, 1, 2], seed=[8, 9, 10], **settings)
    assert not torch.allclose(other, whole, atol=1e-3)


def test_forwards_are_the_draws_of_every_block_and_map(net: Counted, x: Tensor, maps: Tensor) -> None:
    state = torch.get_rng_state()
    monotonicity_correlation(net, x, maps, 1, blocks=9, n_draws=4, batch_size=5)
    assert sum(net.batches) == 2 * 3 * 9 * 4 + 3
    assert max(net.batches) == 5
    assert torch.equal(torch.get_rng_state(), state)
    net.batches.clear()
    monotonicity_correlation(net, x, maps, 1, blocks=9, n_draws=4, fill="mean")  # the same at every draw
    assert sum(net.batches) == 2 * 3 * 9 + 3


def test_what_does_not_vary_has_no_correlation(net: nn.Module, x: Tensor) -> None:
    assert bool(monotonicity_correlation(net, x, torch.ones_like(x), 1, blocks=12).isnan().all())
    blind = Linear(torch.zeros(1, *SHAPE, dtype=torch.float64))
    assert bool(monotonicity_correlation(blind, x, torch.randn_like(x), 0).isnan().all())


def test_presets(net: nn.Module, x: Tensor, maps: Tensor) -> None:
    assert MonotonicityCorrelation() == MonotonicityCorrelation.preset("pullbacks")
    quantus = MonotonicityCorrelation.preset("quantus", step=6, n_draws=2)
    case = Case(net, x, [1, 2, 0], maps={"a": maps[0]})
    from backlight.engine import Probability

    expected = monotonicity_correlation(net, x, maps[:1], Probability([1, 2, 0]), step=6, n_draws=2, low=0.0, high=1.0)
    assert torch.equal(quantus(case), expected)


def test_errors(net: nn.Module, x: Tensor, maps: Tensor) -> None:
    with pytest.raises(UnknownNameError, match="drop"):
        monotonicity_correlation(net, x, maps, 1, change="drops")
    with pytest.raises(UnknownNameError, match="position"):
        monotonicity_correlation(net, x, maps, 1, unit="pixel")
    with pytest.raises(InputError, match="1 draw"):
        monotonicity_correlation(net, x, maps, 1, n_draws=0)
    with pytest.raises(InputError, match="2 blocks"):
        monotonicity_correlation(net, x, maps, 1, step=72)
