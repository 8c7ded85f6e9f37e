"""Stability: known Lipschitz constants, a literal loop, and what a score may not depend on."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from backlight.errors import InputError
from backlight.methods.saliency import Saliency
from backlight.methods.smooth_grad import SmoothGrad
from backlight.metrics.case import Case
from backlight.metrics.controls import Control
from backlight.metrics.stability import Stability, stability


class Quadratic(nn.Module):
    """f_k(x) = a_k |x|^2 / 2, whose gradient a_k x has the Lipschitz constant |a_k| everywhere."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tensor([1.0, -3.0, 0.5], dtype=x.dtype) * x.square().flatten(1).sum(1, keepdim=True) / 2


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.Tanh(), nn.Flatten(), nn.Linear(6 * 36, 5)).double().eval()


def samples(count: int = 3, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_lipschitz_constant_of_a_quadratic_model() -> None:
    raw = {"normalise": False, "positions": False, "draws": 4}
    found = stability(Saliency(Quadratic()), samples(), [0, 1, 2], **raw)
    assert found.tolist() == pytest.approx([1.0, 3.0, 0.5], rel=1e-12)
    linear = nn.Sequential(nn.Flatten(), nn.Linear(192, 5)).double()
    assert stability(Saliency(linear), samples(), 2, draws=3).tolist() == [0.0] * 3


def test_maps_of_positions_and_of_entries_are_measured_alike() -> None:
    """The sum over three equal channels is three times the map; summed over channels the noise averages out."""
    model, x = network(), samples()
    explain = Saliency(model).attribute

    def of_positions(x: Tensor, target: Any) -> Tensor:
        return explain(x, target).sum(1, keepdim=True)

    def spread(x: Tensor, target: Any) -> Tensor:
        return (of_positions(x, target) / 3).expand(-1, 3, -1, -1)

    found = stability(of_positions, x, 1, draws=3)
    assert torch.allclose(stability(spread, x, 1, draws=3), found, rtol=1e-10)
    assert torch.allclose(stability(explain, x, 1, draws=3), found, rtol=1e-10)
    as_they_come = stability(spread, x, 1, draws=3, positions=False)
    assert torch.allclose(as_they_come, 3**0.5 * found, rtol=1e-10)


@pytest.mark.parametrize("positions", [True, False])
@pytest.mark.parametrize("normalise", [True, False])
def test_a_literal_loop(positions: bool, normalise: bool) -> None:
    model, x, classes, seeds = network(), samples(), [3, 0, 4], [5, 9, 5]
    expected = []
    for row in range(3):
        generator, slopes = torch.Generator().manual_seed(seeds[row]), []
        for _ in range(5):
            moved = x[row] + torch.randn(3, 8, 8, generator=generator) * 0.2
            phi, other = (Saliency(model).attribute(one[None], classes[row])[0] for one in (x[row], moved))
            phi, other = (m.sum(0) if positions else m for m in (phi, other))
            phi, other = (m / m.abs().max() if normalise else m for m in (phi, other))
            slopes.append(float((phi - other).norm() / (x[row] - moved).norm()))
        expected.append(max(slopes))
    settings = {"positions": positions, "normalise": normalise, "draws": 5, "stdev": 0.2}
    found = stability(Saliency(model), x, classes, seed=seeds, batch_size=4, **settings)
    assert found.dtype == torch.float64
    assert found.tolist() == pytest.approx(expected, rel=1e-6)


def test_each_map_is_normalised_by_itself() -> None:
    """A batch mate with a thousand times larger map plays no part."""
    model, x = network(), samples()
    explain = Saliency(model).attribute
    sizes = torch.tensor([1.0, 1000.0, -1e-3]).double()[:, None, None, None]

    def scaled(inputs: Tensor, target: Any) -> Tensor:
        return explain(inputs, target) * sizes[target]

    found = stability(scaled, x, [0, 1, 2], draws=3)
    assert torch.allclose(found, stability(explain, x, [0, 1, 2], draws=3), rtol=1e-10)


def test_batch_mates_order_and_batch_size_play_no_part() -> None:
    model, x, classes = network(), samples(), torch.tensor([3, 0, 4])
    for explain in (Saliency(model), SmoothGrad(model, n_samples=3)):
        whole = stability(explain, x, classes, draws=3)
        for batch_size in (1, 2, 100):
            assert torch.allclose(stability(explain, x, classes, draws=3, batch_size=batch_size), whole, rtol=1e-10)
        turned = stability(explain, x.flip(0), classes.flip(0), draws=3)
        assert torch.allclose(turned.flip(0), whole, rtol=1e-10)
        assert torch.allclose(stability(explain, x[1:2], classes[1:2], draws=3), whole[1:2], rtol=1e-10)
    kept = stability(SmoothGrad(model, n_samples=3), x, classes, draws=3, fresh=False)
    assert (kept < whole).all()


def test_a_zero_map_is_a_constant_one() -> None:
    x = samples()
    assert stability(lambda x, target: torch.zeros_like(x), x, 1, draws=2).tolist() == [0.0] * 3
    assert stability(Control("constant"), x, 1, draws=2).tolist() == [0.0] * 3


def test_the_metric_over_a_case() -> None:
    model, x = network(), samples()
    case = Case(model, x, [1, 2, 0], explainers={"a": Saliency(model), "b": Control("edges")}, seed=3)
    found = Stability(draws=3)(case)
    assert found.shape == (2, 3)
    assert torch.allclose(found[0], stability(Saliency(model), x, [1, 2, 0], draws=3, seed=3))
    assert Stability().draws == 200
    assert not Stability.preset("quantus").positions


def test_what_is_refused() -> None:
    with pytest.raises(InputError, match="stdev must be positive"):
        stability(Saliency(network()), samples(), 1, stdev=0.0)
    with pytest.raises(InputError, match="at least 1 draw"):
        stability(Saliency(network()), samples(), 1, draws=0)
