"""Quantus's metrics that replace parts in the order of a map, on the same networks, maps and draws."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import backlight
from backlight.engine import Probability
from backlight.metrics import (
    Case,
    FaithfulnessEstimate,
    MonotonicityCorrelation,
    deletion_curve,
    faithfulness_estimate,
    monotonicity_correlation,
)
from backlight.metrics.draws import uniform

assert backlight  # imported before Quantus
quantus = pytest.importorskip("quantus")

STEP = 4
QUIET = {"disable_warnings": True, "display_progressbar": False}


@pytest.fixture
def net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 6, 3), nn.Tanh(), nn.Flatten(), nn.Linear(96, 4)).eval()


@pytest.fixture
def x() -> Tensor:
    return torch.randn(3, 1, 6, 6)


@pytest.fixture
def phi() -> Tensor:
    return torch.randn(3, 1, 6, 6)


TARGETS = torch.tensor([2, 0, 3])


def theirs(metric: Any, net: nn.Module, x: Tensor, phi: Tensor, **settings: Any) -> Tensor:
    """Quantus's scores of maps that are there already."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = metric(net, x.numpy(), TARGETS[: len(x)].numpy(), phi.numpy(), **settings)
    return torch.as_tensor(np.array(found), dtype=torch.float64)


@pytest.fixture
def replayed(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes Quantus fill block after block, draw after draw, with our numbers `[N, blocks * draws]`."""

    def replay(fills: Tensor) -> None:
        columns: Iterator[np.ndarray] = iter(fills.T.double().numpy())
        monkeypatch.setattr(np.random, "uniform", lambda low, high, size: next(columns))

    return replay


@pytest.mark.parametrize("absolute", [True, False])
@pytest.mark.parametrize(("fill", "baseline"), [(0.0, 0.0), ("min", "black"), ("mean", "mean"), ("max", "white")])
def test_faithfulness_estimate(
    net: nn.Module, x: Tensor, phi: Tensor, absolute: bool, fill: Any, baseline: Any
) -> None:
    metric = quantus.FaithfulnessEstimate(abs=absolute, features_in_step=STEP, perturb_baseline=baseline, **QUIET)
    found = faithfulness_estimate(net, x, phi, TARGETS, step=STEP, fill=fill, absolute=absolute)
    assert torch.allclose(found, theirs(metric, net, x, phi), atol=1e-5)


def test_faithfulness_estimate_of_several_channels() -> None:
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Tanh(), nn.Flatten(), nn.Linear(216, 4)).eval()
    x, phi = torch.randn(3, 3, 8, 8), torch.randn(3, 3, 8, 8)
    metric = quantus.FaithfulnessEstimate(abs=True, features_in_step=STEP, perturb_baseline=0.0, **QUIET)
    found = faithfulness_estimate(net, x, phi, TARGETS, blocks=192 // STEP)
    assert torch.allclose(found, theirs(metric, net, x, phi), atol=1e-5)


def test_faithfulness_estimate_by_their_defaults(net: nn.Module, x: Tensor, phi: Tensor) -> None:
    found = FaithfulnessEstimate.preset("quantus")(Case(net, x, TARGETS, maps={"map": phi}))
    assert torch.allclose(found[0], theirs(quantus.FaithfulnessEstimate(**QUIET), net, x, phi), atol=1e-5)


def test_monotonicity_correlation(net: nn.Module, x: Tensor, phi: Tensor, replayed: Any) -> None:
    """In the protocol of the pullback paper, which sets eps to 1e-12."""
    bounds = {"uniform_low": -1.0, "uniform_high": 1.0}
    metric = quantus.MonotonicityCorrelation(
        abs=True, eps=1e-12, nr_samples=10, features_in_step=STEP, perturb_func_kwargs=bounds, **QUIET
    )
    replayed(uniform([1, 2, 3], (90,), -1.0, 1.0, x))
    expected = theirs(metric, net, x, phi, softmax=False)
    found = monotonicity_correlation(net, x, phi, TARGETS, blocks=9, seed=[1, 2, 3])
    assert torch.allclose(found, expected, atol=1e-5)


def test_monotonicity_correlation_by_their_defaults(net: nn.Module, x: Tensor, phi: Tensor, replayed: Any) -> None:
    replayed(uniform(5, (3600,), 0.0, 1.0, x))
    expected = theirs(quantus.MonotonicityCorrelation(**QUIET), net, x, phi)
    found = MonotonicityCorrelation.preset("quantus")(Case(net, x, TARGETS, maps={"map": phi}, seed=5))
    assert torch.allclose(found[0], expected, atol=1e-5)


def test_their_monotonicity_correlation_stops_at_a_score_near_0(x: Tensor, phi: Tensor) -> None:
    """They divide all samples by all scores where only some are above eps; ours needs no such division."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 4, bias=False)).eval()
    x = torch.cat((x[:2], torch.zeros(1, 1, 6, 6)))  # f = 0 at the last
    metric = quantus.MonotonicityCorrelation(nr_samples=2, features_in_step=STEP, **QUIET)
    with pytest.raises(ValueError, match=r"NumPy boolean array indexing|shape mismatch"):
        theirs(metric, net, x, phi, softmax=False)
    assert bool(monotonicity_correlation(net, x, phi, TARGETS, blocks=9).isfinite().all())


def test_ties_are_theirs_to_break_and_ours_to_keep(net: nn.Module, x: Tensor) -> None:
    """Of a map with many equal values their blocks are those of an unstable sort; ours, of the order of the index."""
    phi = torch.randint(0, 3, (3, 1, 6, 6)).float()
    metric = quantus.FaithfulnessEstimate(features_in_step=STEP, perturb_baseline=0.0, **QUIET)
    ours = faithfulness_estimate(net, x, phi, TARGETS, step=STEP, absolute=False)
    separated = phi.flatten(1) - torch.arange(36) * 1e-6  # the order of the index, spelled out
    expected = theirs(metric, net, x, separated.reshape_as(phi))
    assert torch.allclose(ours, expected, atol=1e-3)


@pytest.mark.parametrize("sign", [1, -1])
def test_deletion_of_pixels(net: nn.Module, x: Tensor, phi: Tensor, sign: int) -> None:
    """Pixel-flipping leaves the whole image out of its curve, and scores probabilities."""
    metric = quantus.PixelFlipping(features_in_step=STEP, perturb_baseline="black", **QUIET)
    expected = theirs(metric, net, x, sign * phi)
    lowest = x.amin((1, 2, 3), keepdim=True)
    curve = deletion_curve(net, x, sign * phi, Probability(TARGETS), unit="pixel", steps=9, canvas=lowest)
    assert torch.allclose(curve.scores[:, 1:], expected, atol=1e-5)
    assert torch.allclose(curve.scores[:, 0], net(x).softmax(1)[range(3), TARGETS].double(), atol=1e-6)


@pytest.mark.parametrize(("order", "sign"), [("morf", 1), ("lerf", -1)])
def test_deletion_of_patches(order: str, sign: int) -> None:
    """Region perturbation gives falls instead of scores; the least relevant first is our negative map."""
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Tanh(), nn.Flatten(), nn.Linear(216, 4)).eval()
    x, phi = torch.randn(3, 3, 8, 8), torch.randn(3, 3, 8, 8)
    metric = quantus.RegionPerturbation(patch_size=2, order=order, perturb_baseline="black", **QUIET)
    expected = theirs(metric, net, x, phi, softmax=False)
    lowest = x.amin((1, 2, 3), keepdim=True)
    scores = deletion_curve(net, x, sign * phi, TARGETS, patch=2, steps=None, canvas=lowest).scores
    assert torch.allclose(scores[:, :1] - scores[:, 1:], expected, atol=1e-5)
