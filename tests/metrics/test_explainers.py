"""Captum's attributions as explainers that are run again: with other draws, one sample at a time, on other networks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from backlight.engine.targets import Logit
from backlight.errors import InputError
from backlight.metrics.explainers import as_explainer
from backlight.metrics.max_sensitivity import max_sensitivity
from backlight.metrics.parameter_randomisation import parameter_randomisation
from backlight.metrics.random_logit import random_logit

captum = pytest.importorskip("captum.attr")
pytestmark = pytest.mark.filterwarnings(
    "ignore:Input Tensor 0 did not", "ignore:Setting forward, backward hooks", "ignore:Setting backward hooks"
)


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    layers = [nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(216, 5)]
    return nn.Sequential(*layers).double().eval()


def samples(count: int = 3) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_draws_depend_on_no_batch_mate_and_leave_the_global_generators() -> None:
    explainer = as_explainer(captum.NoiseTunnel(captum.Saliency(network())), nt_samples=3, stdevs=0.5, abs=False)
    x, target = samples(), Logit(torch.tensor([3, 0, 4]))
    before, numbers = torch.get_rng_state(), np.random.get_state()[1]
    whole = explainer(x, target)
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(np.random.get_state()[1], numbers)
    for _ in range(2):
        for row in range(3):
            alone = explainer(x[row : row + 1], target.rows(torch.tensor([row])))
            assert torch.allclose(alone[0], whole[row], atol=1e-12)
    assert not torch.allclose(explainer.reseeded(1)(x, target), whole, atol=1e-3)
    assert (max_sensitivity(explainer, x, target, draws=2, radius=1e-6) > 0.01).all()
    assert (max_sensitivity(explainer, x, target, draws=2, radius=1e-6, fresh=False) < 1e-3).all()


def test_what_does_not_draw_is_not_seeded_anew() -> None:
    explainer = as_explainer(captum.Saliency(network()), abs=False)
    explainer(samples(), 1)
    assert explainer.reseeded(1) is explainer


@pytest.mark.parametrize("name", ["IntegratedGradients", "DeepLift", "GuidedBackprop", "GuidedGradCam", "NoiseTunnel"])
def test_attributions_move_to_another_network(name: str) -> None:
    def made(model: nn.Sequential) -> object:
        if name == "GuidedGradCam":
            return captum.GuidedGradCam(model, model[0])
        if name == "NoiseTunnel":
            return captum.NoiseTunnel(captum.InputXGradient(model))
        return getattr(captum, name)(model)

    model, other, x = network(0), network(1), samples()
    moved = as_explainer(made(model)).on(other)(x, 1)
    assert torch.allclose(moved, as_explainer(made(other))(x, 1), atol=1e-12)
    assert not torch.allclose(moved, as_explainer(made(model))(x, 1), rtol=0.1, atol=0)


def test_metrics_that_run_captum_again() -> None:
    model, x = network(), samples()
    theirs = as_explainer(captum.Saliency(model), abs=False)
    assert max_sensitivity(theirs, x, [3, 0, 4], draws=3).isfinite().all()
    assert random_logit(theirs, x, [3, 0, 4], 5).isfinite().all()
    assert (parameter_randomisation(model, theirs, x, [3, 0, 4]) < 0.9).all()


@pytest.mark.parametrize("wrapped", [False, True])
def test_lrp_leaves_nothing_on_the_modules_also_where_it_fails(wrapped: bool) -> None:
    from captum.attr._utils.lrp_rules import GammaRule

    def traces(model: nn.Module) -> list[tuple[list[str], list[Tensor]]]:
        return [(sorted(vars(one)), list(one.parameters(recurse=False))) for one in model.modules()]

    def explain(model: nn.Module, x: Tensor) -> Tensor:
        theirs = captum.NoiseTunnel(captum.LRP(model)) if wrapped else captum.LRP(model)
        return as_explainer(theirs, **({"nt_samples": 1, "stdevs": 0.0} if wrapped else {}))(x, 1)

    bad = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Softplus(), nn.Flatten(), nn.Linear(216, 5)).double().eval()
    x, before = samples(), traces(bad)
    with pytest.raises(TypeError, match="no rule"):
        explain(bad, x)
    assert [names for names, _ in traces(bad)] == [names for names, _ in before]
    assert not x.requires_grad

    class Good(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).flatten(1)  # Captum has no rule for `nn.Flatten`

    good = Good(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1)).double().eval()
    good[0].rule = rule = GammaRule(0.5)
    before = traces(good)
    first = explain(good, x)
    assert [names for names, _ in traces(good)] == [names for names, _ in before]
    pairs = [pair for (_, a), (_, b) in zip(traces(good), before, strict=True) for pair in zip(a, b, strict=True)]
    assert all(torch.equal(*pair) for pair in pairs)
    assert good[0].rule is rule  # which Captum takes away
    assert torch.equal(explain(good, x), first)
    del good[0].rule
    assert not torch.allclose(explain(good, x), first)


def test_an_attribution_of_a_function_cannot_be_moved() -> None:
    model = network()
    with pytest.raises(InputError, match="explains a function"):
        as_explainer(captum.Saliency(lambda x: model(x))).on(model)
