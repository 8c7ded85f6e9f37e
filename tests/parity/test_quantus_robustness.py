"""Metrics that run a method again, and completeness: Quantus's numbers on the same draws, and where it differs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from backlight.methods.saliency import Saliency
from backlight.metrics import random_weights
from backlight.metrics.completeness_error import completeness_error
from backlight.metrics.complexity_rise import complexity_rise
from backlight.metrics.draws import generators
from backlight.metrics.max_sensitivity import max_sensitivity
from backlight.metrics.neighbours import Noise, normal_noise, uniform_noise
from backlight.metrics.parameter_randomisation import parameter_randomisation, randomisation_curve
from backlight.metrics.random_logit import random_logit
from backlight.metrics.random_weights import randomised_networks
from backlight.metrics.stability import stability

quantus = pytest.importorskip("quantus")  # after backlight, which lets torchvision import beside any build of torch
QUIET: dict[str, Any] = {"disable_warnings": True, "display_progressbar": False}
CLASSES = np.array([3, 0, 4, 1])


@pytest.fixture(autouse=True)
def _numpy_as_it_was() -> Iterator[None]:
    state = np.random.get_state()
    yield
    np.random.set_state(state)


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.Tanh(), nn.Flatten(), nn.Linear(6 * 36, 8), nn.Tanh(), nn.Linear(8, 5))


def samples(count: int = 4) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def explain(model: nn.Module, inputs: Any, targets: Any, **settings: Any) -> np.ndarray:
    x = torch.as_tensor(np.asarray(inputs), dtype=torch.float32)
    return Saliency(model).attribute(x, torch.as_tensor(targets)).numpy()


def replayed(noise: Noise, seed: int, shape: tuple[int, ...]) -> Callable[..., np.ndarray]:
    """A `perturb_func` of Quantus that adds our draws."""
    sources: list[torch.Generator] = []

    def perturb(arr: np.ndarray, indices: np.ndarray, **settings: Any) -> np.ndarray:
        if not sources:
            sources.extend(generators(seed, len(arr)))
        return arr + np.stack([noise(shape, source).numpy().ravel() for source in sources])

    return perturb


def theirs(metric: Any, model: nn.Module, x: Tensor, classes: Any = CLASSES, **settings: Any) -> np.ndarray:
    settings = {"explain_func": explain, "batch_size": 4, **settings}
    found = metric(model=model, x_batch=x.numpy(), y_batch=classes[: len(x)], channel_first=True, **settings)
    return np.asarray(found)


def test_max_sensitivity() -> None:
    model, x = network().eval(), samples()
    perturb = replayed(uniform_noise(0.2), 7, (3, 8, 8))
    expected = theirs(quantus.MaxSensitivity(nr_samples=6, perturb_func=perturb, **QUIET), model, x)
    found = max_sensitivity(Saliency(model), x, CLASSES, draws=6, radius=0.2, seed=7)
    assert found.numpy() == pytest.approx(expected, rel=1e-5)
    defaults = quantus.MaxSensitivity(**QUIET)
    assert (defaults.nr_samples, defaults.normalise, defaults.abs) == (200, False, False)
    assert defaults.perturb_func.keywords["lower_bound"] == 0.2


def lipschitz(x: Tensor, **settings: Any) -> np.ndarray:
    perturb = replayed(normal_noise(0.1), 7, (3, 8, 8))
    metric = quantus.LocalLipschitzEstimate(nr_samples=6, perturb_func=perturb, **settings, **QUIET)
    return theirs(metric, MODEL, x)


MODEL = network().eval()


def test_stability_of_one_sample() -> None:
    x = samples(1)
    found = stability(Saliency(MODEL), x, CLASSES[:1], draws=6, positions=False, seed=7)
    assert found.numpy() == pytest.approx(lipschitz(x), rel=1e-5)


def test_stability_of_a_batch_of_raw_maps() -> None:
    x = samples()
    found = stability(Saliency(MODEL), x, CLASSES, draws=6, positions=False, normalise=False, seed=7)
    assert found.numpy() == pytest.approx(lipschitz(x, normalise=False), rel=1e-5)


def test_quantus_normalises_by_the_largest_entry_of_the_batch() -> None:
    """A sample's score then depends on its batch mates; ours is that of Quantus on the sample alone."""
    x = samples()
    x[1] *= 20  # saturates the network: a map of small entries
    found = stability(Saliency(MODEL), x, CLASSES, draws=6, positions=False, seed=7).numpy()
    assert abs(lipschitz(x) / found - 1).max() > 0.1
    assert lipschitz(x[:1]) == pytest.approx(found[:1], rel=1e-5)


def recorded(calls: list[np.ndarray]) -> Callable[..., np.ndarray]:
    def explain_and_record(model: nn.Module, inputs: Any, targets: Any, **settings: Any) -> np.ndarray:
        calls.append(np.asarray(targets))
        return explain(model, inputs, targets)

    return explain_and_record


def test_random_logit_by_pearson() -> None:
    x, calls = samples(), []
    similarity = quantus.similarity_func.correlation_pearson
    metric = quantus.RandomLogit(num_classes=5, similarity_func=similarity, **QUIET)
    expected = theirs(metric, MODEL, x, explain_func=recorded(calls))
    assert (calls[-1] != CLASSES).all()
    found = random_logit(Saliency(MODEL), x, CLASSES, torch.from_numpy(calls[-1]))
    assert found.numpy() == pytest.approx(expected, abs=1e-5)


def test_quantus_draws_the_same_other_classes_for_every_batch() -> None:
    x, calls = samples().repeat(2, 1, 1, 1), []
    metric = quantus.RandomLogit(num_classes=1000, **QUIET)
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 1000)).eval()
    theirs(metric, model, x, np.zeros(8, int), explain_func=recorded(calls))
    assert np.array_equal(calls[1], calls[3])
    seeds = list(range(8))
    ours = random_logit(Saliency(model), x, 0, 1000, seed=seeds)
    assert not torch.allclose(ours[:4], ours[4:])


def test_quantus_takes_the_structural_similarity_of_flattened_maps() -> None:
    """Its windows of 7 run along rows, over their ends and into the next channel: neighbours above count for nothing.

    Ours is that of the picture: it does not change where rows and columns are exchanged, theirs does.
    """
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 144, 5)).eval()
    turned = nn.Sequential(nn.Flatten(), nn.Linear(3 * 144, 5)).eval()
    smooth = torch.arange(12.0)[None, :] + torch.zeros(5, 3, 12, 12)
    weights = smooth + torch.randn(5, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        model[1].weight.copy_(weights.flatten(1))
        turned[1].weight.copy_(weights.transpose(2, 3).flatten(1))
    x, calls = torch.randn(4, 3, 12, 12), []
    metric = quantus.RandomLogit(num_classes=5, **QUIET)
    flat, flat_turned = (theirs(metric, one, x, explain_func=recorded(calls)) for one in (model, turned))
    others = torch.from_numpy(calls[-1])
    found, found_turned = (
        random_logit(Saliency(one), x, CLASSES, others, similarity="ssim").numpy() for one in (model, turned)
    )
    assert found == pytest.approx(found_turned, abs=1e-6)
    assert abs(flat - flat_turned).max() > 0.01


@pytest.fixture
def _seeded_as_in_quantus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random_weights, "layer_seed", lambda seed, number: seed + 1)


@pytest.mark.usefixtures("_seeded_as_in_quantus")
@pytest.mark.parametrize("order", ["top-down", "bottom-up", "independent"])
def test_parameter_randomisation(order: str) -> None:
    x = samples()
    metric = quantus.MPRT(layer_order=order.replace("-", "_"), **QUIET)
    settings = {"model": MODEL, "x_batch": x.numpy(), "y_batch": CLASSES, "explain_func": explain}
    expected = metric(**settings, channel_first=True)
    found = randomisation_curve(MODEL, Saliency(MODEL), x, CLASSES, order=order, seed=42)
    curve = dict(zip(found.layers, found.similarity.T, strict=True))
    assert list(expected) == ["original", *curve] if order != "independent" else set(expected) == {"original", *curve}
    for layer, similarity in curve.items():
        assert similarity.numpy() == pytest.approx(np.asarray(expected[layer]), abs=1e-5)


@pytest.mark.usefixtures("_seeded_as_in_quantus")
def test_the_average_of_quantus_counts_the_untouched_network() -> None:
    """Its similarity, 1, is one of the L + 1 values that are averaged."""
    x = samples()
    metric = quantus.MPRT(return_average_correlation=True, **QUIET)
    expected = theirs(metric, MODEL, x)
    found = parameter_randomisation(MODEL, Saliency(MODEL), x, CLASSES, seed=42)
    assert ((3 * found + 1) / 4).numpy() == pytest.approx(expected, abs=1e-5)


def test_quantus_leaves_out_parameters_and_repeats_weights() -> None:
    """Attention keeps its projections, class tokens stay, and layers of one shape get the same random weights."""

    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.token = nn.Parameter(torch.randn(1, 1, 8))
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
            self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.cat([self.token.expand(len(x), -1, -1), x.flatten(2).transpose(1, 2)], 1)
            return self.second(self.first(self.attention(x, x, x, need_weights=False)[0][:, 0]))

    model = Tokens().eval()
    wrapped = quantus.helpers.utils.get_wrapped_model(model, channel_first=True, softmax=False)
    before = torch.get_rng_state()
    *_, (_, drawn) = wrapped.get_random_layer_generator(order="top_down", seed=42)
    assert not torch.equal(before, torch.get_rng_state())  # it seeds the global generator
    assert torch.equal(drawn.attention.in_proj_weight, model.attention.in_proj_weight)
    assert torch.equal(drawn.token, model.token)
    assert torch.equal(drawn.first.weight, drawn.second.weight)
    *_, (_, ours) = randomised_networks(model, torch.randn(1, 8, 4, 4))
    attention: Any = ours.attention
    assert not torch.equal(attention.in_proj_weight, model.attention.in_proj_weight)
    assert not torch.equal(ours.token, model.token)  # type: ignore[arg-type]
    assert not torch.equal(ours.first.weight, ours.second.weight)  # type: ignore[arg-type,union-attr]


@pytest.mark.usefixtures("_seeded_as_in_quantus")
def test_the_rise_of_complexity() -> None:
    x = samples()
    metric = quantus.EfficientMPRT(**QUIET)
    maps = explain(MODEL, x, CLASSES)
    expected = theirs(metric, MODEL, x, a_batch=maps)
    found = complexity_rise(MODEL, Saliency(MODEL), x, CLASSES, seed=42)
    assert found.numpy() == pytest.approx(expected, abs=1e-5)


def test_completeness_is_an_error_of_exactly_zero() -> None:
    """Quantus compares sums with `==`: on whole numbers that is our error of 0; rounding fails it, ours is small."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 5)).eval()
    with torch.no_grad():
        model[1].weight.copy_(torch.randint(-3, 4, (5, 192)))
        model[1].bias.copy_(torch.arange(5.0))
    x = torch.randint(-3, 4, (4, 3, 8, 8)).float()
    x[:, 0, 0, 0] = -3  # the baseline of Quantus is each sample's smallest entry
    maps = Saliency(model).attribute(x, torch.from_numpy(CLASSES)) * (x + 3)
    maps[2, 0, 0, 0] += 1
    metric = quantus.Completeness(normalise=False, **QUIET)
    found = completeness_error(model, x, maps, CLASSES, baseline="min", error="absolute")
    assert found.tolist() == [0, 0, 1, 0]
    assert theirs(metric, model, x, a_batch=maps.numpy()).tolist() == [True, True, False, True]
    x, maps = x / 7, maps / 7
    assert not theirs(metric, model, x, a_batch=maps.numpy()).all()
    rounded = completeness_error(model, x, maps, CLASSES, baseline="min", error="absolute")
    assert rounded.numpy() == pytest.approx(np.array([0, 0, 1 / 7, 0]), abs=1e-5)
