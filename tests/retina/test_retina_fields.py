"""Receptive fields against closed forms and finite differences; clusters, agreement and combinations of modes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from backlight.errors import InputError, ModelError
from backlight.models.retina import RetinaNetwork
from backlight.retina.clusters import agreement, cell_modes, cluster_cells, cluster_rows, standardised
from backlight.retina.combinations import combinations, examples
from backlight.retina.receptive_fields import cropped, receptive_fields, space_time
from backlight.retina.simulator import RetinaSimulator


class _Exponential(nn.Module):
    """rate_c = exp(w_c . x): its field is w_c rate_c."""

    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        self.weights = nn.Parameter(weights)

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("nfhw,cfhw->nc", x, self.weights).exp()


def test_fields_in_closed_form() -> None:
    weights = torch.randn(3, 2, 4, 5).double() / 6
    network = _Exponential(weights).eval()
    x = torch.randn(7, 2, 4, 5).double()
    found = receptive_fields(network, x, batch_size=3)
    expected = network(x).detach()[:, :, None, None, None] * weights
    torch.testing.assert_close(found, expected)
    chosen = receptive_fields(network, x, [2, 0], batch_size=7)
    torch.testing.assert_close(chosen, expected[:, [2, 0]])
    assert network.weights.grad is None
    assert not x.requires_grad
    with pytest.raises(InputError, match="from 0 to 2"):
        receptive_fields(network, x, [3])
    with pytest.raises(ModelError, match="training"):
        receptive_fields(network.train(), x)


def test_fields_of_simulator_and_network_by_differences() -> None:
    simulator = RetinaSimulator(["ON", "motion"], size=(7, 7), frames=10, subunit=0.6, pool=1.2).double().eval()
    network = RetinaNetwork(2, frames=10, size=(7, 7), channels=(2, 2), kernels=(3, 3)).double().eval()
    x = torch.randn(2, 10, 7, 7).double()
    away = torch.randn(10, 7, 7).double()
    for one in (simulator, network):
        fields = receptive_fields(one, x)
        with torch.no_grad():
            step = (one(x + 1e-6 * away) - one(x - 1e-6 * away)) / 2e-6
        torch.testing.assert_close((fields * away).sum((2, 3, 4)), step, rtol=1e-4, atol=1e-7)


def test_space_time_of_products_and_sums() -> None:
    course = torch.tensor([0.0, 1.0, -3.0, 0.5]).double()
    space = torch.randn(5, 6).double()
    product = course[:, None, None] * space
    found = space_time(product)
    assert float(found.share) == pytest.approx(1)
    assert float(found.temporal[2]) > 0
    torch.testing.assert_close(found.spatial, -space / space.norm())
    torch.testing.assert_close(found.strength * found.temporal[:, None, None] * found.spatial, product)
    two_lobes = space_time(torch.tensor([0.0, 1.0, 0.3, -0.6, 0.2]).double()[:, None, None] * space)
    torch.testing.assert_close(two_lobes.spatial, -space / space.norm())  # of the later lobe, which is high enough
    first, second = torch.linalg.qr(torch.randn(4, 2).double())[0].T
    one, two = torch.linalg.qr(torch.randn(30, 2).double())[0].T.unflatten(1, (5, 6))
    both = space_time(3 * first[:, None, None] * one + 2 * second[:, None, None] * two)
    assert float(both.share) == pytest.approx(9 / 13)
    assert float(both.strength) == pytest.approx(3)
    nothing = space_time(torch.zeros(2, 4, 5, 6))
    assert torch.equal(nothing.spatial, torch.zeros(2, 5, 6))
    assert torch.equal(nothing.share, torch.zeros(2))
    raised = space_time(product + 5, centred=True)
    centred = space_time(product - product.mean())
    torch.testing.assert_close(raised.spatial, centred.spatial)


def test_crops_stay_inside() -> None:
    maps = torch.zeros(2, 10, 12)
    maps[:, 1, 11] = -4
    assert cropped(maps, 4).shape == (2, 4, 4)
    assert float(cropped(maps, 4)[0, 1, 3]) == -4
    assert cropped(maps, 11).shape == (2, 10, 11)


def test_cells_fall_into_the_clusters_they_are_made_of() -> None:
    draw = torch.Generator().manual_seed(0)
    truth = torch.arange(3).repeat(6)
    patterns = torch.randn((3, 8), generator=draw)[truth] + 0.1 * torch.randn((18, 8), generator=draw)
    patterns[:, 5] = 0.2  # says nothing
    found = cluster_cells(patterns)
    assert found.count == 3
    assert set(found.silhouettes) == set(range(2, 9))
    assert max(found.silhouettes, key=lambda k: found.silhouettes[k]) == 3
    same = agreement(found.labels, truth)
    assert same.index == pytest.approx(1)
    assert abs(same.chance_mean) < 0.05
    assert same.chance_high < 0.3
    assert torch.equal(found.labels, cluster_cells(patterns).labels)
    assert len(cluster_rows(patterns, 3).unique()) == 3
    bright = patterns * 10 ** torch.linspace(0, 4, 18)[:, None]  # length says nothing
    assert agreement(cluster_rows(bright, 3), cluster_rows(patterns, 3)).index == pytest.approx(1)
    alike = cluster_cells(torch.ones(5, 3))
    assert (alike.count, alike.silhouettes) == (1, {})
    assert cluster_cells(torch.randn(2, 3)).count == 1
    with pytest.raises(InputError, match="from 2 to 4 clusters"):
        cluster_cells(torch.randn(5, 3), counts=[5])


def test_chance_in_time_keeps_persistence() -> None:
    """Two slow groupings that have nothing to do with each other: shifts know how much they agree by chance."""
    draw = torch.Generator().manual_seed(1)
    slow = [torch.randint(0, 2, (12,), generator=draw).repeat_interleave(50) for _ in range(2)]
    found = agreement(slow[0], slow[1], in_time=True)
    shuffled = agreement(slow[0], slow[1])
    assert found.chance_high > 3 * shuffled.chance_high
    assert agreement(slow[0], 1 - slow[0], in_time=True).index == pytest.approx(1)
    with pytest.raises(InputError, match="as many labels"):
        agreement(slow[0], slow[1][1:])


def test_association_and_standardised() -> None:
    rates = torch.randn(40, 2)
    loadings = torch.stack((rates[:, 0] * 2 + 1, torch.zeros(40), -rates[:, 1]), 1)
    found = cell_modes(rates, loadings)
    torch.testing.assert_close(found[[0, 1], [0, 2]], torch.tensor([1.0, -1.0]).double())
    assert found[:, 1].tolist() == [0, 0]
    x = torch.tensor([[1.0, 0.1], [3.0, 0.1], [5.0, 0.1]])
    expected = torch.tensor([[-(1.5**0.5), 0], [0, 0], [1.5**0.5, 0]]).double()
    torch.testing.assert_close(standardised(x), expected, atol=1e-7, rtol=0)


def test_combinations_are_exact_sets() -> None:
    on = [{0}, {0, 2}, {0, 2}, set(), {1}, {0, 2}, {0, 1, 2}, {0}, {1}]
    loadings = torch.zeros(len(on), 3)
    for frame, modes in enumerate(on):
        loadings[frame, list(modes)] = 0.9
    loadings[0, 1] = 0.01  # not above the threshold
    found = combinations(loadings)
    assert [(one.modes, one.frames) for one in found] == [
        ((0, 2), (1, 2, 5)),
        ((0,), (0, 7)),
        ((1,), (4, 8)),
        ((0, 1, 2), (6,)),
    ]
    some = combinations(loadings, sizes=(2, 2), where=torch.arange(9) != 2, top=1)
    assert [(one.modes, one.frames) for one in some] == [((0, 2), (1, 5))]
    with pytest.raises(InputError, match="fewest, most"):
        combinations(loadings, sizes=(3, 2))
    loadings[5] *= 2
    assert examples(found[0], loadings, apart=1) == (5, 1, 2)
    assert examples(found[0], loadings, apart=2) == (5, 1)
    assert examples(found[0], loadings, most=1, apart=2) == (5,)
