"""Controls: maps that explain nothing, of each sample alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from backlight.errors import InputError, UnknownNameError
from backlight.methods import method
from backlight.metrics.controls import (
    CONTROLS,
    Control,
    Negative,
    blurred_random_map,
    centre_prior,
    constant_map,
    controls,
    edge_map,
    input_itself,
    is_control,
    random_map,
)
from backlight.metrics.explainers import as_explainer


@pytest.fixture
def x() -> Tensor:
    return torch.randn(3, 2, 32, 48, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", CONTROLS)
def test_a_sample_s_map_is_its_own(name: str, x: Tensor) -> None:
    """Whatever its batch mates, the type and the network; and finite, at the size of the image."""
    control = Control(name, seed=4)
    maps, before = control(x, 0), torch.get_rng_state()
    assert maps.shape in ((3, 2, 32, 48), (3, 1, 32, 48))
    assert maps.isfinite().all()
    assert torch.allclose(control(x[[2, 0]], 1), maps[[2, 0]], atol=1e-7)
    assert torch.allclose(control(x.double(), 0).float(), maps, atol=1e-6)
    assert torch.equal(control.on(nn.Identity())(x, 0), maps)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.allclose(control.reseeded(5)(x, 0), maps) == ("random" not in name)


def test_random_maps(x: Tensor) -> None:
    maps = random_map(x)
    assert abs(float(maps.std()) - 1) < 0.03
    assert abs(float(torch.corrcoef(maps.flatten(1)).triu(1).abs().max())) < 0.1  # other samples, other draws
    assert not torch.equal(maps, random_map(x + 1))


def test_blurred_random_maps(x: Tensor) -> None:
    """Neighbours agree at a distance of a pixel, and no longer at that of the side."""
    flat = blurred_random_map(torch.randn(40, 1, 32, 32))
    near = torch.corrcoef(torch.stack([flat[..., :-1].flatten(), flat[..., 1:].flatten()]))[0, 1]
    far = torch.corrcoef(torch.stack([flat[..., :16].flatten(), flat[..., 16:].flatten()]))[0, 1]
    assert near > 0.9
    assert far.abs() < 0.1
    assert abs(float(flat.mean())) < 0.02
    assert blurred_random_map(x[..., :8, :8]).shape == (3, 2, 8, 8)


def test_maps_of_known_values(x: Tensor) -> None:
    assert torch.equal(constant_map(x), torch.ones_like(x))
    assert torch.equal(input_itself(x), x)
    centre = centre_prior(x)
    assert torch.allclose(centre, centre.flip(-1).flip(-2))
    assert centre[0, 0].argmax() in (15 * 48 + 23, 15 * 48 + 24, 16 * 48 + 23, 16 * 48 + 24)
    assert abs(float(centre[0, 0, 0, 0]) - torch.tensor(-4.0).exp()) < 1e-6  # exp(-(2^2 + 2^2) / 2) at the corners


def test_edges_of_a_step() -> None:
    """Sobel's kernels sum to 4 on each side: 4 steps of height 1 at both columns beside it."""
    x = torch.zeros(1, 3, 9, 9)
    x[:, 1, :, 5:] = 1
    edges = edge_map(x)
    assert torch.allclose(edges[0, 0, :, 4:6], torch.tensor(4.0))
    assert edges.sum() == 4 * 2 * 9
    assert torch.allclose(edge_map(x.mT), edges.mT)
    assert torch.allclose(edge_map(-2 * x), 2 * edges)


def test_the_negative_of_an_explanation(x: Tensor) -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(3 * 30 * 46, 4)).eval()
    smooth = as_explainer(method("SmoothGrad")(model, n_samples=2))
    negative = Negative(smooth)
    assert torch.equal(negative(x, 1), -smooth(x, 1))
    assert torch.equal(negative.reseeded(3)(x, 1), -smooth.reseeded(3)(x, 1))
    other = nn.Sequential(nn.Flatten(), nn.Linear(2 * 32 * 48, 4)).eval()
    assert torch.equal(negative.on(other)(x, 1), -smooth.on(other)(x, 1))


def test_names(x: Tensor) -> None:
    assert list(controls(3)) == [f"control: {name}" for name in CONTROLS]
    assert all(control.seed == 3 for control in controls(3).values())
    assert is_control("control: random")
    assert is_control("minus SoftPullback")
    assert not is_control("SoftPullback")
    with pytest.raises(UnknownNameError, match="edges"):
        Control("edge")
    with pytest.raises(InputError, match=r"\[N, C, H, W\]"):
        Control("input")(x.flatten(1), 0)
