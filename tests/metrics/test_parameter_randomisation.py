"""ParameterRandomisation and ComplexityRise: closed forms, which weights are drawn anew, and an untouched model."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor, nn

from backlight.errors import InputError, NonFiniteError, UnknownNameError
from backlight.methods.saliency import Saliency
from backlight.methods.smooth_grad import SmoothGrad
from backlight.metrics import random_weights
from backlight.metrics.case import Case
from backlight.metrics.complexity_rise import ComplexityRise, complexity_rise, histogram_entropy
from backlight.metrics.controls import Control, Negative
from backlight.metrics.correlation import pearson
from backlight.metrics.explainers import Explainer, as_explainer
from backlight.metrics.parameter_randomisation import (
    ParameterRandomisation,
    parameter_randomisation,
    randomisation_curve,
)
from backlight.metrics.random_weights import layer_names, layer_seed, randomised_networks


def network() -> nn.Sequential:
    layers = [nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Tanh(), nn.Flatten(), nn.Linear(216, 8), nn.Tanh()]
    model = nn.Sequential(*layers, nn.Linear(8, 5)).double()
    with torch.no_grad():
        model(torch.randn(16, 3, 8, 8).double() + 1)  # running statistics that are not those of a new network
    return model.eval()


def samples(count: int = 3) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def reset(layer: nn.Module, seed: int) -> Any:
    """A new layer of the same kind; its draws are those of single precision."""
    new: Any = deepcopy(layer).float()
    torch.manual_seed(seed)
    new.reset_parameters()
    return new.double()


def changed(network: nn.Module, model: nn.Module) -> set[str]:
    pairs = zip(model.state_dict().items(), network.state_dict().values(), strict=True)
    return {name.rpartition(".")[0] for (name, before), after in pairs if not torch.equal(before, after)}


def test_one_linear_layer_is_the_correlation_of_old_and_new_weights() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 5)).double()
    new = reset(model[1], layer_seed(3, 0))
    old, fresh = (layer.weight.detach().abs().numpy() for layer in (model[1], new))
    found = parameter_randomisation(model, Saliency(model), samples(), [0, 3, 1], seed=3)
    expected = [scipy.stats.spearmanr(old[c], fresh[c])[0] for c in (0, 3, 1)]
    assert found.dtype == torch.float64
    assert found.tolist() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("order", ["top-down", "bottom-up", "independent"])
def test_a_literal_loop_over_layers(order: str) -> None:
    model, x, classes = network(), samples(), [3, 0, 4]
    names = ["0", "1", "4", "6"]
    expected, drawn = [], deepcopy(model)
    for name in names if order == "bottom-up" else names[::-1]:
        drawn = deepcopy(model) if order == "independent" else drawn
        drawn.set_submodule(name, reset(model.get_submodule(name), layer_seed(2, names.index(name))))
        maps = [Saliency(m).attribute(x, classes).flatten(1) for m in (model, drawn)]
        expected.append(pearson(*maps))
    settings: dict[str, Any] = {"order": order, "similarity": "pearson", "absolute": False, "seed": 2}
    found = randomisation_curve(model, Saliency(model), x, classes, **settings)
    assert found.layers == tuple(names if order == "bottom-up" else names[::-1])
    assert torch.allclose(found.similarity, torch.stack(expected, 1), atol=1e-10)
    mean = parameter_randomisation(model, Saliency(model), x, classes, **settings)
    assert torch.allclose(mean, torch.stack(expected).mean(0), atol=1e-10)


def test_each_step_draws_one_layer_more() -> None:
    model, x = network(), samples(1)
    for order, expected in {
        "top-down": [{"6"}, {"6", "4"}, {"6", "4", "1"}, {"6", "4", "1", "0"}],
        "bottom-up": [{"0"}, {"0", "1"}, {"0", "1", "4"}, {"0", "1", "4", "6"}],
        "independent": [{"6"}, {"4"}, {"1"}, {"0"}],
    }.items():
        assert [changed(drawn, model) for _, drawn in randomised_networks(model, x, order)] == expected
    two = [(name, changed(drawn, model)) for name, drawn in randomised_networks(model, x, layers=2)]
    assert two == [("4", {"6", "4"}), ("0", {"6", "4", "1", "0"})]
    assert [name for name, _ in randomised_networks(model, x, layers=99)] == ["6", "4", "1", "0"]


@pytest.mark.parametrize("training", [True, False])
def test_the_model_stays_bit_for_bit(training: bool) -> None:
    model, x = network().train(training), samples()
    before, rng, hooks = state(model), torch.get_rng_state(), [len(m._forward_pre_hooks) for m in model.modules()]
    for order in ("top-down", "independent"):
        assert len(list(randomised_networks(model, x[:1], order))) == 4
    if not training:  # where an explanation moves running means itself
        parameter_randomisation(model, Saliency(model), x, 1)
        complexity_rise(model, Saliency(model), x, 1)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(rng, torch.get_rng_state())
    assert [len(m._forward_pre_hooks) for m in model.modules()] == hooks
    assert all(p.grad is None for p in model.parameters())
    assert model.training == training


def test_a_seed_fixes_the_weights_and_layers_of_one_shape_differ() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(8, 8), nn.Linear(8, 8)).double()
    x = torch.randn(1, 2, 2, 2).double()
    ((_, first),) = randomised_networks(model, x, layers=1, seed=1)
    ((_, again),) = randomised_networks(model, x, layers=1, seed=1)
    ((_, other),) = randomised_networks(model, x, layers=1, seed=2)
    assert torch.equal(first[1].weight, again[1].weight)  # type: ignore[index]
    assert not torch.equal(first[1].weight, other[1].weight)  # type: ignore[index]
    assert not torch.equal(first[1].weight, first[2].weight)  # type: ignore[index]


class Transformer(nn.Module):
    """A class token, scales and attention: parameters that no `reset_parameters` knows. Layers out of order."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, 3)
        self.unused = nn.Linear(2, 2)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.token = nn.Parameter(torch.randn(1, 1, 8) * 3 + 5)
        self.scale = nn.Parameter(torch.full((8,), 1e-2))
        self.embed = nn.Conv2d(3, 8, 4, 4)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.embed(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(len(x), -1, -1), tokens], 1)
        mixed = self.attention(tokens, tokens, tokens, need_weights=False)[0]
        return self.head((tokens + self.scale * mixed)[:, 0])


def test_every_parameter_of_a_transformer_is_drawn_anew_in_the_order_of_calls() -> None:
    model, x = Transformer().eval(), samples(1).float()
    assert layer_names(model, x) == ["", "unused", "embed", "attention", "attention.out_proj", "head"]
    *_, (last, drawn) = randomised_networks(model, x)
    assert last == "(root)"
    for name, value in model.named_parameters():
        new = drawn.get_parameter(name)
        assert not torch.equal(new, value) or not value.any(), name  # attention's biases are zero
    tokens = [drawn.token.detach() for s in range(40) for _, drawn in randomised_networks(model, x, layers=1, seed=s)]
    mean, stdev = float(model.token.detach().mean()), float(model.token.detach().std(correction=0))
    assert float(torch.cat(tokens).mean()) == pytest.approx(mean, abs=0.6)
    assert float(torch.cat(tokens).std()) == pytest.approx(stdev, rel=0.25)


def test_what_a_reset_leaves_out_is_drawn_anew() -> None:
    class Scaled(nn.Linear):
        def __init__(self) -> None:
            super().__init__(192, 5)
            self.scale = nn.Parameter(torch.tensor(3.0))

        def forward(self, x: Tensor) -> Tensor:
            return self.scale * super().forward(x)

    model = nn.Sequential(nn.Flatten(), Scaled())
    drawn = [copy[1] for s in range(50) for _, copy in randomised_networks(model, samples(1).float(), seed=s)]
    scales = torch.stack([layer.scale.detach() for layer in drawn])
    assert scales.isfinite().all()
    assert float(scales.mean()) == pytest.approx(3, abs=1.5)
    assert float(scales.std()) == pytest.approx(3, rel=0.4)  # one entry: its absolute value
    assert all(layer.weight.abs().max() <= 192**-0.5 for layer in drawn)


def test_parametrised_layers_are_drawn_anew() -> None:
    model = nn.Sequential(nn.Flatten(), nn.utils.parametrizations.weight_norm(nn.Linear(192, 5))).double()
    before = model[1].weight.detach().clone()
    *_, (_, drawn) = randomised_networks(model, samples(1))
    now = drawn[1].weight.detach()  # type: ignore[index]
    assert abs(float(torch.corrcoef(torch.stack([before.flatten(), now.flatten()]))[0, 1])) < 0.2
    assert torch.equal(model[1].weight.detach(), before)


def test_maps_that_do_not_know_the_network_score_one() -> None:
    model, x = network(), samples()
    for name in ("edges", "input", "random", "centre"):
        assert parameter_randomisation(model, Control(name), x, 1).tolist() == pytest.approx([1.0] * 3, abs=1e-12)
    assert parameter_randomisation(model, Control("constant"), x, 1).isnan().all()
    assert (parameter_randomisation(model, Saliency(model), x, 1) < 0.7).all()


@pytest.mark.parametrize("factor", [-1.0, 1e3])
def test_scale_and_sign_of_maps_play_no_part(factor: float) -> None:
    model, x = network(), samples()

    class Scaled(Explainer):
        def __init__(self, model: nn.Module) -> None:
            self.model = model

        def __call__(self, inputs: Tensor, target: Any) -> Tensor:
            return factor * Saliency(self.model).attribute(inputs, target)

        def on(self, model: nn.Module) -> Explainer:
            return Scaled(model)

    for settings in ({}, {"absolute": False, "similarity": "pearson"}):
        expected = parameter_randomisation(model, Saliency(model), x, 1, **settings)
        assert torch.allclose(parameter_randomisation(model, Scaled(model), x, 1, **settings), expected, rtol=1e-10)


def test_batch_mates_order_and_batch_size_play_no_part() -> None:
    model, x, classes = network(), samples(), torch.tensor([3, 0, 4])
    for explain in (Saliency(model), SmoothGrad(model, n_samples=2)):
        whole = parameter_randomisation(model, explain, x, classes)
        for batch_size in (1, 2):
            again = parameter_randomisation(model, explain, x, classes, batch_size=batch_size)
            assert torch.allclose(again, whole, rtol=1e-10)
        turned = parameter_randomisation(model, explain, x.flip(0), classes.flip(0))
        assert torch.allclose(turned.flip(0), whole, rtol=1e-10)
        assert torch.allclose(parameter_randomisation(model, explain, x[1:2], classes[1:2]), whole[1:2], rtol=1e-10)


def test_random_networks_that_overflow_have_no_similarity() -> None:
    model, x = network(), samples()

    class Overflowing(Explainer):
        def __init__(self, steps: int = 0) -> None:
            self.steps = steps

        def __call__(self, inputs: Tensor, target: Any) -> Tensor:
            if self.steps and bool((inputs == x[1]).all(-1).all(-1).all(-1).any()):
                raise NonFiniteError("the attribution is not finite")
            return inputs

        def on(self, model: nn.Module) -> Explainer:
            return Overflowing(1)

    found = parameter_randomisation(model, Overflowing(), x, 1)
    assert found.isnan().tolist() == [False, True, False]
    assert complexity_rise(model, Overflowing(), x, 1).isnan().tolist() == [False, True, False]


def test_the_rise_of_complexity() -> None:
    model, x, classes = network(), samples(), [3, 0, 4]
    ((_, drawn),) = randomised_networks(model, x[:1], layers=1, seed=5)

    def entropy(values: Tensor) -> float:
        return float(scipy.stats.entropy(np.histogram(values.numpy(), 30)[0]))

    found = complexity_rise(model, Saliency(model), x, classes, bins=30, seed=5)
    before, after = (Saliency(m).attribute(x, classes) for m in (model, drawn))
    expected = [(entropy(b) - entropy(a)) / entropy(a) for a, b in zip(before, after, strict=True)]
    assert found.tolist() == pytest.approx(expected, abs=1e-12)
    uniform = torch.arange(192.0).reshape(1, 3, 8, 8)
    assert histogram_entropy(uniform, 64).tolist() == pytest.approx([np.log(64)])
    assert complexity_rise(model, Control("edges"), x, 1).tolist() == [0.0] * 3
    assert complexity_rise(model, Control("constant"), x, 1).isnan().all()


def test_the_metrics_over_a_case() -> None:
    model, x = network(), samples()
    explainers = {"a": Saliency(model), "b": Negative(as_explainer(Saliency(model))), "c": Control("edges")}
    case = Case(model, x, explainers=explainers, seed=[4, 5, 6], batch_size=2)
    found = ParameterRandomisation(layers=2)(case)
    assert found.shape == (3, 3)
    assert torch.allclose(found[0], found[1])
    predicted = model(x).argmax(1)
    assert torch.allclose(found[0], parameter_randomisation(model, Saliency(model), x, predicted, layers=2))
    assert found[2].tolist() == pytest.approx([1.0] * 3, abs=1e-12)
    rise = ComplexityRise()(case)
    assert torch.allclose(rise[0], complexity_rise(model, Saliency(model), x, predicted))
    assert ComplexityRise.higher_is_better
    assert not ParameterRandomisation.higher_is_better


def test_what_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = network(), samples()
    with pytest.raises(UnknownNameError, match="close matches: top-down"):
        parameter_randomisation(model, Saliency(model), x, 1, order="topdown")
    with pytest.raises(InputError, match="at least one layer"):
        parameter_randomisation(model, Saliency(model), x, 1, layers=0)
    with pytest.raises(InputError, match="give a Method in place of a function"):
        parameter_randomisation(model, Saliency(model).attribute, x, 1)
    with pytest.raises(InputError, match="at least 1 bin"):
        complexity_rise(model, Saliency(model), x, 1, bins=0)
    monkeypatch.setattr(random_weights, "_redraw", None)
    with pytest.raises(InputError, match="at least one layer"):
        parameter_randomisation(nn.Flatten(), Control("edges"), x, 1)
