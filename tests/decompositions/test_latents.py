"""Latents as differentiable functions of rows: the values of `encode`, the gradients of the formulas."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from decomposition_data import planted
from torch import Tensor

from backlight.decompositions import decomposition
from backlight.errors import InputError

ENCODERS: dict[str, dict[str, Any]] = {
    "ReLUSAE": {"epochs": 3, "n_modes": 20},
    "TopKSAE": {"epochs": 3, "n_modes": 20, "k": 4},
    "BatchTopKSAE": {"epochs": 3, "n_modes": 20, "k": 4, "batch_size": 20, "threshold_rate": 0.3},
    "MatryoshkaSAE": {"epochs": 3, "n_modes": 20, "k": 4, "batch_size": 20, "threshold_rate": 0.3},
    "JumpReLUSAE": {"epochs": 3, "n_modes": 20, "target": 4.0, "batch_size": 20},
    "ArchetypalSAE": {"epochs": 3, "n_modes": 20, "k": 4, "points": 16, "batch_size": 20},
    "ThresholdSAE": {"epochs": 3, "n_modes": 20, "threshold": 0.5, "learning_rate": 1e-3},
}
NONE = ("PCA", "KMeans", "NMF", "ClassMeans")


def fitted(name: str, x: Tensor) -> Any:
    return decomposition(name)(**ENCODERS[name]).fit(x)


@pytest.mark.parametrize("name", ENCODERS)
def test_latents_are_encode_at_any_shape(name: str) -> None:
    x, _ = planted(60, channels=12)
    one = fitted(name, x)
    z = one.encode(x)
    assert 0 < float((z != 0).float().mean()) < 1
    torch.testing.assert_close(one.latents(x), z)
    some = torch.tensor([7, 0, 7, 19])
    torch.testing.assert_close(one.latents(x.reshape(3, 4, 5, 12), some), z[:, some].reshape(3, 4, 5, 4))
    torch.testing.assert_close(one.latents(x[5], some), z[5, some])
    assert one.latents(x, torch.tensor([], dtype=torch.long)).shape == (60, 0)
    assert one.latents(x.double(), some).dtype == torch.float32


@pytest.mark.parametrize("name", ENCODERS)
def test_gradients_are_finite_differences(name: str) -> None:
    x, _ = planted(60, channels=12)
    one = fitted(name, x)
    one.state = {key: tensor.double() if tensor.is_floating_point() else tensor for key, tensor in one.state.items()}
    some = torch.tensor([3, 11, 0, 8])
    given = x[:9].double().requires_grad_()
    weight = torch.rand(9, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    value = (one.latents(given, some) * weight).sum()
    (gradient,) = torch.autograd.grad(value, given)
    step = 1e-7  # no latent goes on or off on the way, but by chance
    for row, channel in [(0, 0), (3, 5), (8, 11), (2, 7)]:
        moved = torch.zeros_like(given)
        moved[row, channel] = step
        up, down = ((one.encode(given.detach() + way * moved)[:, some] * weight).sum() for way in (1, -1))
        assert float(gradient[row, channel]) == pytest.approx(float(up - down) / (2 * step), rel=1e-5, abs=1e-7)
    (whole,) = torch.autograd.grad((one.latents(given)[:, some] * weight).sum(), given)
    torch.testing.assert_close(whole, gradient)
    assert gradient.any()


def test_a_latent_that_is_off_has_no_gradient_and_one_that_is_on_its_encoder_row() -> None:
    x, _ = planted(60, channels=12)
    for name, settings in ENCODERS.items():
        if name == "ThresholdSAE":
            continue
        one = decomposition(name)(**settings).fit(x)
        z = one.encode(x)
        for latent in range(20):
            given = x.clone().requires_grad_()
            (gradient,) = torch.autograd.grad(one.latents(given, torch.tensor([latent])).sum(), given)
            row = one.encoder_rows(torch.tensor([latent]))
            torch.testing.assert_close(gradient, (z[:, [latent]] > 0).float() * row)
        assert torch.equal(one.encoder_rows(), one.state["encoder"])


def test_what_cannot_be_asked_is_refused() -> None:
    x, _ = planted(60, channels=12)
    one = fitted("ReLUSAE", x)
    with pytest.raises(InputError, match="call fit"):
        decomposition("ReLUSAE")().latents(x)
    with pytest.raises(InputError, match=r"\[..., 12\]"):
        one.latents(x[:, :5])
    for wrong in (torch.tensor([20]), torch.tensor([3, -1])):
        with pytest.raises(InputError, match="from 0 to 19"):
            one.latents(x, wrong)
    with pytest.raises(InputError, match="no linear encoder"):
        fitted("ThresholdSAE", x).encoder_rows()
    for name in NONE:
        other = decomposition(name)(**({} if name == "ClassMeans" else {"n_modes": 4}))
        other.fit(x, labels=torch.arange(60) % 3)
        with pytest.raises(InputError, match="no encoder"):
            other.latents(x)
