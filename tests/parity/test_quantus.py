"""Quantus 0.6: Infidelity and FaithfulnessCorrelation agree on the same draws; `quantus.evaluate` runs our methods."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import backlight  # noqa: F401  # before quantus
from backlight.errors import InputError, UnknownNameError
from backlight.methods import method
from backlight.metrics import Case, FaithfulnessCorrelation, Infidelity, faithfulness_correlation, infidelity
from backlight.metrics.controls import Control
from backlight.metrics.draws import further
from backlight.metrics.faithfulness_correlation import drawn_subsets
from backlight.metrics.fills import filled
from backlight.metrics.infidelity import filled_sweeps
from backlight.metrics.quantus_adapter import explain_func

warnings.filterwarnings("ignore", category=DeprecationWarning)
quantus = pytest.importorskip("quantus")
SIZE = 16
QUIET = {"disable_warnings": True, "return_aggregate": False}


def network() -> nn.Module:
    torch.manual_seed(4)
    layers = [
        nn.Conv2d(3, 6, 5, stride=2),
        nn.Softplus(),
        nn.Conv2d(6, 6, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(96, 4),
    ]
    return nn.Sequential(*layers).eval()


@pytest.fixture
def net() -> nn.Module:
    return network()


@pytest.fixture
def x() -> Tensor:
    return torch.randn(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def phi() -> Tensor:
    return torch.randn(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(2))


CLASSES = [0, 3, 1]


def theirs(metric: Any, net: nn.Module, x: Tensor, phi: Tensor | None, **settings: Any) -> np.ndarray:
    """The scores of a metric of Quantus."""
    maps = None if phi is None else phi.numpy()
    scores = metric(model=net, x_batch=x.numpy(), y_batch=np.array(CLASSES)[: len(x)], a_batch=maps, **settings)
    return np.asarray(scores)


def replaying(fills: Iterator[np.ndarray]) -> Callable[..., np.ndarray]:
    """A perturbation for Quantus that replaces a patch by the next of our numbers, one a sample."""

    def perturb(arr: np.ndarray, indices: np.ndarray, **_: Any) -> np.ndarray:
        found = arr.copy()
        found[np.arange(len(arr))[:, None], indices] = next(fills)[:, None]
        return found

    return perturb


def sweeps(x: Tensor, sides: list[int], repeats: int, seed: Any) -> Iterator[np.ndarray]:
    """Our numbers in Quantus's order: repeats, sizes, patches."""
    ours = [filled_sweeps("uniform", x, side, repeats, seed, number, -1.0, 1.0) for number, side in enumerate(sides)]
    return (one[:, repeat, patch].numpy() for repeat in range(repeats) for one in ours for patch in range(one.shape[2]))


# ---------------------------------------------------------------------------------------------------- Infidelity


@pytest.mark.parametrize("sides", [[4], [8, 4], [2, 16]])
@pytest.mark.parametrize("seed", [7, [1, 2, 3]])
def test_infidelity_on_the_same_draws(seed: Any, sides: list[int], net: nn.Module, x: Tensor, phi: Tensor) -> None:
    """Cumulative sweeps, without the optimal scale."""
    replay = replaying(sweeps(x, sides, 2, seed))
    metric = quantus.Infidelity(perturb_patch_sizes=sides, n_perturb_samples=2, perturb_func=replay, **QUIET)
    expected = theirs(metric, net, x, phi)
    patches = tuple(float(side) for side in sides)
    found = infidelity(net, x, phi, CLASSES, patches=patches, repeats=2, scaling="none", pooled=False, seed=seed)
    assert np.allclose(found, expected, rtol=1e-5, atol=0)
    assert expected.min() > 1


def test_infidelity_in_quantus_s_defaults(net: nn.Module, x: Tensor, phi: Tensor) -> None:
    """Their ten repeats fill with the sample's least value, and are the same: we sweep once."""
    expected = theirs(quantus.Infidelity(**QUIET), net, x, phi)
    found = Infidelity.preset("quantus")(Case(net, x, CLASSES, maps={"phi": phi}))[0]
    assert np.allclose(found, expected, rtol=1e-5, atol=0)


def test_infidelity_with_the_optimal_scale_as_a_loss_of_quantus(net: nn.Module, x: Tensor, phi: Tensor) -> None:
    """The reference of Semantic Pullbacks puts its scale into Quantus's sweeps; here one size, so one loss a sweep."""

    def scaled(a: np.ndarray, b: np.ndarray, **_: Any) -> np.ndarray:
        beta = (a * b).sum(-1) / (b * b).sum(-1)  # a: falls, b: masses
        return ((beta[:, None] * b - a) ** 2).mean(-1)

    replay = replaying(sweeps(x, [4], 1, 3))
    metric = quantus.Infidelity(perturb_patch_sizes=[4], n_perturb_samples=1, perturb_func=replay, **QUIET)
    metric.loss_func = scaled
    found = infidelity(net, x, phi, CLASSES, patches=(4.0,), repeats=1, seed=3)
    assert np.allclose(found, theirs(metric, net, x, phi), rtol=1e-5, atol=0)


def test_quantus_fails_where_patches_do_not_divide_the_side(net: nn.Module, x: Tensor, phi: Tensor) -> None:
    """It pads the image, and then indexes the one without padding. Ours makes the last patches smaller."""
    with pytest.raises((ValueError, IndexError)):
        theirs(quantus.Infidelity(perturb_patch_sizes=[5], **QUIET), net, x, phi)
    assert infidelity(net, x, phi, CLASSES, patches=(5.0,)).isfinite().all()


def test_quantus_fills_with_the_mean_of_what_it_has_filled_already(net: nn.Module, x: Tensor, phi: Tensor) -> None:
    """The mean of the perturbed image, which moves from patch to patch; ours is the sample's."""
    metric = quantus.Infidelity(perturb_patch_sizes=[4], n_perturb_samples=1, perturb_baseline="mean", **QUIET)
    moved, fills = x.clone(), []
    for top in range(0, SIZE, 4):
        for left in range(0, SIZE, 4):
            fills.append(moved.flatten(1).mean(1))
            moved[:, :, top : top + 4, left : left + 4] = fills[-1][:, None, None, None]
    expected = theirs(metric, net, x, phi)
    replay = replaying(iter([fill.numpy() for fill in fills]))
    metric = quantus.Infidelity(perturb_patch_sizes=[4], n_perturb_samples=1, perturb_func=replay, **QUIET)
    assert np.allclose(theirs(metric, net, x, phi), expected, rtol=1e-4)
    settings: dict[str, Any] = {"patches": (4.0,), "repeats": 1, "scaling": "none"}
    ours = infidelity(net, x, phi, CLASSES, fill="mean", **settings).numpy()
    assert (np.abs(ours / expected - 1) > 1e-3).any()
    means = iter([x.flatten(1).mean(1).numpy()] * 16)
    metric = quantus.Infidelity(perturb_patch_sizes=[4], n_perturb_samples=1, perturb_func=replaying(means), **QUIET)
    assert np.allclose(ours, theirs(metric, net, x, phi), rtol=1e-5)


def test_quantus_divides_by_the_largest_value_of_the_batch(net: nn.Module, x: Tensor, phi: Tensor) -> None:
    """With normalise=True a sample's score depends on its batch mates; with our maps divided alike, it is ours."""
    metric = quantus.Infidelity(normalise=True, **QUIET)
    mates = phi * torch.tensor([1.0, 10.0, 1.0])[:, None, None, None]
    together, alone = theirs(metric, net, x, mates), theirs(metric, net, x[:1], mates[:1])
    assert abs(together[0] / alone[0] - 1) > 0.5
    settings: dict[str, Any] = {"patches": (4.0,), "repeats": 1, "fill": "min", "scaling": "none"}
    for divisor, expected in ((mates.abs().max(), together[0]), (mates[0].abs().max(), alone[0])):
        found = infidelity(net, x[:1], mates[:1] / divisor, CLASSES[:1], **settings)
        assert np.allclose(found, expected, rtol=1e-5)
    optimal = infidelity(net, x, mates, CLASSES)
    assert torch.allclose(optimal[:1], infidelity(net, x[:1], phi[:1], CLASSES[:1]), rtol=1e-5)


# ---------------------------------------------------------------------------------------------------- correlation


@pytest.mark.parametrize("seed", [7, [1, 2, 3]])
@pytest.mark.parametrize(("fill", "baseline"), [("min", "black"), (0.0, 0.0), ("mean", "mean"), ("max", "white")])
def test_faithfulness_correlation_on_the_same_subsets(
    fill: Any, baseline: Any, seed: Any, net: nn.Module, x: Tensor, phi: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = drawn_subsets(x, "feature", 90, 25, seed)
    replay = iter([chosen[row, run].numpy() for run in range(25) for row in range(3)])
    monkeypatch.setattr(np.random, "choice", lambda *_, **__: next(replay))
    metric = quantus.FaithfulnessCorrelation(nr_runs=25, subset_size=90, perturb_baseline=baseline, **QUIET)
    expected = theirs(metric, net, x, phi)
    settings: dict[str, Any] = {"unit": "feature", "subset": 90, "runs": 25, "absolute": False}
    found = faithfulness_correlation(net, x, phi, CLASSES, fill=fill, seed=seed, **settings)
    assert np.allclose(found, expected, rtol=0, atol=1e-5)
    assert np.abs(expected).max() > 0.05


def test_faithfulness_correlation_in_quantus_s_defaults(
    net: nn.Module, x: Tensor, phi: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = drawn_subsets(x, "feature", 224, 100, 0)
    replay = iter([chosen[row, run].numpy() for run in range(100) for row in range(3)])
    monkeypatch.setattr(np.random, "choice", lambda *_, **__: next(replay))
    expected = theirs(quantus.FaithfulnessCorrelation(**QUIET), net, x, phi)
    found = FaithfulnessCorrelation.preset("quantus")(Case(net, x, CLASSES, maps={"phi": phi}))[0]
    assert np.allclose(found, expected, rtol=0, atol=1e-5)


def test_uniform_fills_in_quantus_s_correlation(
    net: nn.Module, x: Tensor, phi: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One number a run and sample, in all of the subset."""
    chosen, fills = drawn_subsets(x, "feature", 90, 25, 5), filled("uniform", x, 25, further(5, 1))
    replay = iter([chosen[row, run].numpy() for run in range(25) for row in range(3)])
    numbers = iter(fills.T.numpy())
    monkeypatch.setattr(np.random, "choice", lambda *_, **__: next(replay))
    monkeypatch.setattr(np.random, "uniform", lambda *_, **__: next(numbers))
    metric = quantus.FaithfulnessCorrelation(nr_runs=25, subset_size=90, perturb_baseline="uniform", **QUIET)
    settings: dict[str, Any] = {"unit": "feature", "subset": 90, "runs": 25, "absolute": False, "fill": "uniform"}
    expected = theirs(metric, net, x, phi)
    assert np.allclose(faithfulness_correlation(net, x, phi, CLASSES, seed=5, **settings), expected, rtol=0, atol=1e-5)


# ---------------------------------------------------------------------------------------------------- the adapter


def test_our_methods_run_in_quantus_evaluate(net: nn.Module, x: Tensor) -> None:
    """Two of our methods on two of its metrics, of which one explains again; scores are those of maps given by hand."""
    metrics = {
        "Infidelity": quantus.Infidelity(n_perturb_samples=1, **QUIET),
        "MaxSensitivity": quantus.MaxSensitivity(nr_samples=2, lower_bound=0.1, **QUIET),
    }
    methods = {"soft": explain_func("SoftPullback"), "ig": explain_func("IntegratedGradients", n_steps=4)}
    found = quantus.evaluate(metrics, methods, net, x.numpy(), np.array(CLASSES), explain_func_kwargs={})
    for name, made in (("soft", method("SoftPullback")(net)), ("ig", method("IntegratedGradients")(net, n_steps=4))):
        maps = made.attribute(x, CLASSES)
        assert np.allclose(found[name]["Infidelity"], theirs(metrics["Infidelity"], net, x, maps), rtol=1e-6)
        assert np.shape(found[name]["MaxSensitivity"]) == (3,)
        assert np.min(found[name]["MaxSensitivity"]) > 1e-3
    assert np.abs(np.subtract(found["soft"]["Infidelity"], found["ig"]["Infidelity"])).max() > 1e-3


def test_randomised_networks_are_explained_and_not_the_first_one(net: nn.Module, x: Tensor) -> None:
    """Quantus's MPRT gives other networks to `explain_func`, and its correlations fall below 1."""
    explain, called = explain_func("Saliency"), []

    def noting(model: nn.Module, inputs: np.ndarray, targets: np.ndarray, **settings: Any) -> np.ndarray:
        maps = explain(model, inputs, targets, **settings)
        expected = method("Saliency")(model).attribute(torch.as_tensor(inputs), torch.as_tensor(targets))
        assert np.allclose(maps, expected, atol=1e-7)
        called.append(float(sum(parameter.detach().double().sum() for parameter in model.parameters())))
        return maps

    before = {name: value.clone() for name, value in net.state_dict().items()}
    metric = quantus.MPRT(disable_warnings=True)
    scores = metric(net, x.numpy(), np.array(CLASSES), None, explain_func=noting)
    assert len(set(called)) == len(scores) == 4  # the network, and three with one layer more randomised
    assert np.allclose(scores.pop("original"), 1)
    assert all(np.max(values) < 0.999 for values in scores.values())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_the_adapter_on_arrays(net: nn.Module, x: Tensor) -> None:
    inputs, targets = x.numpy().astype(np.float64), np.array(CLASSES)
    soft = method("SoftPullback")(net).attribute(x, CLASSES).numpy()
    for one in (1, 2, 64):
        assert np.allclose(explain_func("SoftPullback", batch_size=one)(net, inputs, targets), soft, atol=1e-7)
    other = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE * SIZE, 4)).eval()  # the call's network is explained
    assert np.allclose(explain_func(method("SoftPullback")(other))(net, inputs, targets, device="cpu"), soft, atol=1e-7)
    summed = explain_func("SoftPullback", sum_channels=True)(net, inputs, targets, method="named by quantus")
    assert summed.shape == (3, 1, SIZE, SIZE)
    assert np.allclose(summed, soft.sum(1, keepdims=True), atol=1e-6)
    wider = explain_func("SoftPullback")(net, inputs, targets, temperature=3.0)
    assert np.allclose(wider, method("SoftPullback")(net, temperature=3.0).attribute(x, CLASSES).numpy(), atol=1e-7)
    assert not np.allclose(wider, soft)
    assert np.allclose(explain_func(Control("input"))(net, inputs, targets), inputs, atol=1e-6)
    assert explain_func("GradCAM", layer="2")(net, inputs, targets).shape == (3, 1, SIZE, SIZE)
    assert explain_func("Saliency")(network().double(), x.numpy(), targets).dtype == np.float32


def test_what_the_adapter_cannot_do_is_named(net: nn.Module, x: Tensor) -> None:
    with pytest.raises(UnknownNameError, match="SoftPullback"):
        explain_func("SoftPulback")
    with pytest.raises(UnknownNameError, match="n_steps"):
        explain_func("IntegratedGradients", n_step=3)(net, x.numpy(), np.array(CLASSES))
    with pytest.raises(InputError, match="n_steps"):
        explain_func(method("Saliency")(net), n_steps=3)
    with pytest.raises(InputError, match="n_steps"):
        explain_func(Control("input"))(net, x.numpy(), np.array(CLASSES), n_steps=3)
