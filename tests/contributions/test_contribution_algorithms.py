"""Contributions against slow literal references, their completeness, and what they are on linear networks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from contribution_networks import (
    CUTS,
    SITES,
    hidden_path_reference,
    images,
    input_path_reference,
    read,
    residual_network,
)
from probes import Spelled
from torch import Tensor, nn
from torch.nn.functional import max_pool2d

import backlight
from backlight.contributions import (
    ALGORITHMS,
    ActNormGrad,
    HiddenIntegratedGradients,
    InputGrad,
    SmoothGrad,
    contribute,
)
from backlight.engine.paths import line_rule
from backlight.errors import InputError, NonFiniteError, SiteError, UnknownNameError
from backlight.rules import RULE_SETS, rule_set

X, MODEL = images(), residual_network()
CLASSES = MODEL(X).argmax(1)


def logit(y: Tensor) -> Tensor:
    """Of the class that is largest at the input."""
    return y[torch.arange(len(y)), CLASSES]


def close(a: Tensor, b: Tensor, tolerance: float = 1e-12) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, rtol=1e-9, atol=tolerance)


@pytest.mark.parametrize("rule", ["trapezoid", "riemann_left", "riemann_right"])
@pytest.mark.parametrize(("n_steps", "spacing"), [(1, 1.0), (4, 1.0), (3, 2.5)])
def test_the_input_s_path_is_the_stacked_sum(rule: str, n_steps: int, spacing: float) -> None:
    algorithm = HiddenIntegratedGradients(n_steps, rule=rule, spacing=spacing)
    found = contribute(MODEL, X, SITES, algorithm=algorithm, baseline="mean")
    x_0 = X.mean((2, 3), keepdim=True).expand_as(X)
    for site in SITES:
        expected = input_path_reference(MODEL, X, x_0, site, logit, n_steps, rule, spacing)
        assert close(found.values[site], expected), site
        missing = logit(MODEL(X)) - logit(MODEL(x_0)) - expected.flatten(1).sum(1)
        assert close(found.residual[site], missing.detach()), site
    assert found.cost.backwards == len(X) * (n_steps + (rule != "riemann_right"))
    assert found.cost.forwards == len(X) * (n_steps + 1)


@pytest.mark.parametrize("rule", ["trapezoid", "gausslegendre", "riemann_left", "riemann_middle", "riemann_right"])
def test_the_hidden_path_is_the_loop_over_its_nodes(rule: str) -> None:
    found = contribute(MODEL, X, SITES, algorithm=HiddenIntegratedGradients(3, "hidden", rule), baseline=0.1)
    nodes, weights = line_rule(rule, 4 if rule == "trapezoid" else 3)
    for site in SITES:
        reference = (MODEL, X, torch.full_like(X, 0.1), site, logit, nodes.tolist(), weights.tolist())
        assert close(found.values[site], hidden_path_reference(*reference)), site


def test_activations_gradients_scores_and_outputs_are_those_at_the_input() -> None:
    for algorithm in ALGORITHMS:
        found = contribute(MODEL, X, SITES, algorithm=algorithm)
        for site in SITES:
            scores, h, g = read(MODEL, X, site, logit)
            assert close(found.activations[site], h), (algorithm, site)
            assert close(found.gradients[site], g), (algorithm, site)
            assert close(found.scores, scores)
        assert close(found.outputs, MODEL(X).detach())
        held = (*found.values.values(), *found.activations.values(), found.scores, found.outputs)
        assert not any(t.requires_grad for t in held)


@pytest.mark.parametrize("baseline", [None, "zero"])
def test_activation_times_gradient(baseline: Any) -> None:
    plain = contribute(MODEL, X, SITES, algorithm="ActGrad", baseline=baseline)
    scaled = contribute(MODEL, X, SITES, algorithm="ActNormGrad", baseline=baseline)
    for site in SITES:
        _, h, g = read(MODEL, X, site, logit)
        h_0 = 0 if baseline is None else read(MODEL, torch.zeros_like(X), site, logit)[1]
        assert close(plain.values[site], (h - h_0) * g), site
        length = np.sqrt((g.numpy() ** 2).sum(axis=tuple(range(1, g.ndim)), keepdims=True))
        assert close(scaled.values[site], (h - h_0) * g / torch.from_numpy(length)), site
    assert (plain.baseline_scores is None) == (baseline is None)
    assert plain.residual == {}
    if baseline:
        assert close(plain.baseline_scores, logit(MODEL(torch.zeros_like(X))).detach())


def test_a_vanishing_gradient_has_no_direction() -> None:
    found = contribute(MODEL, X, "stem", lambda y: 0 * y.sum(1), algorithm=ActNormGrad())
    assert not found.values["stem"].any()


@pytest.mark.parametrize("baseline", [None, "mean"])
def test_input_grad_is_the_jacobian_s_row_sum_times_the_gradient(baseline: Any) -> None:
    found = contribute(MODEL, X[:1], SITES, algorithm="InputGrad", baseline=baseline)
    v = X[:1] if baseline is None else X[:1] - X[:1].mean((2, 3), keepdim=True)
    for site in SITES:
        _, _, g = read(MODEL, X[:1], site, lambda y: y[:, CLASSES[0]])
        jacobian = torch.autograd.functional.jacobian(lambda x, site=site: activation(x, site), X[:1])
        expected = g * (jacobian * v).flatten(g.ndim).sum(-1)
        assert close(found.values[site], expected), site
    assert found.residual == {}


def activation(x: Tensor, site: str) -> Tensor:
    """The activation at a site, with its graph."""
    if site == "input":
        return x.clone()
    kept: list[Tensor] = []
    name, _, side = site.partition(":")
    module = MODEL.get_submodule(name)
    if side:
        handle = module.register_forward_pre_hook(lambda m, args: kept.append(args[0].clone()))
    else:
        handle = module.register_forward_hook(lambda m, args, out: kept.append(out.clone()))
    MODEL(x)
    handle.remove()
    return kept[0]


@pytest.mark.parametrize("rules", [name for name in RULE_SETS if name != "srd"])
def test_input_grad_sums_to_input_times_cotangent_under_any_rules(rules: str) -> None:
    found = contribute(MODEL, X, CUTS, algorithm=InputGrad(), rules=rule_set(rules))
    expected = (X * backlight.attribute(MODEL, X, rules=rule_set(rules)).value).flatten(1).sum(1)
    for site in CUTS:
        assert close(found.values[site].flatten(1).sum(1), expected), site


@pytest.mark.parametrize("rules", [name for name in RULE_SETS if name != "srd"])
def test_gradients_are_the_rules(rules: str) -> None:
    found = contribute(MODEL, X, CUTS, algorithm=HiddenIntegratedGradients(3), rules=rule_set(rules))
    cotangents = []
    for i in range(4):
        at = backlight.attribute(MODEL, i / 3 * X, CLASSES, rules=rule_set(rules), sites=CUTS).values
        cotangents.append((at, {site: read(MODEL, i / 3 * X, site, logit)[1] for site in CUTS}))
    for site in CUTS:
        pairs = zip(cotangents[1:], cotangents[:-1], strict=True)
        terms = [(g[site] + g_[site]) / 2 * (h[site] - h_[site]) for (g, h), (g_, h_) in pairs]
        assert close(found.values[site], sum(terms)), site
    assert (found.residual == {}) == (rules != "gradient")


def test_sharing_ratios_are_rules_as_others() -> None:
    """SRD, which refuses a network that takes the mean of positions."""
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Conv2d(3, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3))
    model.double()
    found = contribute(model, X, ("0", "3"), 1, algorithm=InputGrad(), rules=rule_set("srd")).values
    expected = (X * backlight.attribute(model, X, 1, rules=rule_set("srd")).value).flatten(1).sum(1)
    assert all(close(value.flatten(1).sum(1), expected) for value in found.values())


@pytest.mark.parametrize("of", ["ActGrad", ActNormGrad(), HiddenIntegratedGradients(2), InputGrad()])
def test_smooth_grad_is_the_mean_over_noisy_inputs(of: Any) -> None:
    found = contribute(MODEL, X, SITES, algorithm=SmoothGrad(of, 3, 0.4, seed=7), baseline="zero")
    generator = torch.Generator().manual_seed(7)
    noise = [0.4 * torch.randn(1, 2, 8, 8, generator=generator).double() for _ in range(3)]
    parts = [contribute(MODEL, X + e, SITES, CLASSES, algorithm=of, baseline="zero").values for e in noise]
    for site in SITES:
        assert close(found.values[site], sum(part[site] for part in parts) / 3), site
    assert found.residual == {}


@pytest.mark.parametrize("path", ["input", "hidden"])
def test_both_paths_are_complete_where_everything_passes_through(path: str) -> None:
    sites = ("stem", "blocks.1", "blocks.0.conv")
    coarse, fine = (
        contribute(MODEL, X, sites, 1, algorithm=HiddenIntegratedGradients(n, path), baseline=2.0) for n in (3, 30)
    )
    change = (MODEL(X) - MODEL(torch.full_like(X, 2.0)))[:, 1].detach()
    assert close(fine.scores - fine.baseline_scores, change)
    for site in sites[:2]:
        assert fine.residual[site].abs().max() < 3e-2 * change.abs().max(), site
        assert fine.residual[site].norm() < 0.3 * coarse.residual[site].norm() + 1e-12, site
    assert fine.residual["blocks.0.conv"].abs().max() > 0.05 * change.abs().max()  # the skip path passes by


@pytest.mark.parametrize("path", ["input", "hidden"])
def test_a_quadratic_network_is_integrated_exactly(path: str) -> None:
    """y = (W x)^2 summed with weights: gradients are linear along the path, where a trapezoid is exact."""
    w, v = torch.randn(4, 3, dtype=torch.float64), torch.randn(4, dtype=torch.float64)
    first = nn.Linear(3, 4, bias=False).double()
    first.weight.data = w
    model = Spelled(lambda x: (first(x) ** 2 @ v)[:, None], first)
    x, x_0 = torch.randn(2, 5, 3, dtype=torch.float64)
    algorithm = HiddenIntegratedGradients(1, path)
    found = contribute(model, x, "modules_.0", 0, algorithm=algorithm, baseline=x_0).values["modules_.0"]
    assert close(found, v * ((x @ w.T) ** 2 - (x_0 @ w.T) ** 2))


@pytest.mark.parametrize("baseline", [0.0, 0.7])
def test_all_algorithms_are_one_on_a_linear_network(baseline: float) -> None:
    model = nn.Sequential(
        nn.Conv2d(2, 3, 3, bias=False), nn.Conv2d(3, 4, 3, bias=False), nn.Flatten(), nn.Linear(64, 3, bias=False)
    ).double()
    expected = contribute(model, X, ("0", "1"), 2, algorithm="ActGrad", baseline=baseline).values
    for algorithm in (HiddenIntegratedGradients(3), HiddenIntegratedGradients(3, "hidden"), InputGrad()):
        found = contribute(model, X, ("0", "1"), 2, algorithm=algorithm, baseline=baseline).values
        assert all(close(found[site], expected[site]) for site in found), algorithm
    if baseline == 0:
        first = contribute(model, X, "0", 2, algorithm="ActGrad").values["0"]
        assert close(first, expected["0"])


def test_a_plain_tuple_of_inputs_and_integers() -> None:
    torch.manual_seed(0)
    table, head = nn.Embedding(9, 4).double(), nn.Linear(4, 3).double()
    model = Spelled(lambda ids, scale: head(torch.tanh(table(ids) * scale[:, None, None]).mean(1)), table, head)
    ids, scale = torch.tensor([[1, 2, 3], [4, 5, 8]]), torch.tensor([1.0, 2.0], dtype=torch.float64)
    given: dict[str, Any] = {"baseline": (torch.zeros(3, dtype=torch.long), scale)}
    found = contribute(model, (ids, scale), "modules_.0", 1, algorithm=HiddenIntegratedGradients(30, "hidden"), **given)
    assert found.residual["modules_.0"].abs().max() < 1e-3
    for algorithm in ("HiddenIntegratedGradients", "InputGrad", "SmoothGrad"):
        with pytest.raises(InputError, match=r"input#0 holds torch.int64"):
            contribute(model, (ids, scale), "modules_.0", 1, algorithm=algorithm, **given)


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"algorithm": "ActGrd"}, UnknownNameError, "ActGrad"),
        ({"sites": "block.0"}, UnknownNameError, "blocks.0"),
        ({"sites": ()}, SiteError, "no site"),
        ({"sites": "@features", "algorithm": HiddenIntegratedGradients(2, "hidden")}, SiteError, "name the layer"),
        ({"sites": "@features", "algorithm": "InputGrad"}, SiteError, "name of a layer"),
        ({"baseline": torch.zeros(5)}, InputError, "broadcast"),
        ({"baseline": (0, 0)}, InputError, "2 baselines for 1 inputs"),
        ({"internal_batch_size": 0}, InputError, "at least 1"),
        ({"target": lambda y: y.sum(1) / 0}, NonFiniteError, "not finite"),
    ],
)
def test_what_does_not_fit_is_refused(settings: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words.replace("(", r"\(").replace(")", r"\)")):
        contribute(MODEL, X, **{"sites": "stem", **settings})


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: HiddenIntegratedGradients(path="straight"), UnknownNameError),
        (lambda: HiddenIntegratedGradients(rule="gausslegendre"), UnknownNameError),
        (lambda: HiddenIntegratedGradients(rule="simpson", path="hidden"), UnknownNameError),
        (lambda: HiddenIntegratedGradients(0), InputError),
        (lambda: HiddenIntegratedGradients(spacing=0.0), InputError),
        (lambda: HiddenIntegratedGradients(path="hidden", spacing=2.0), InputError),
        (lambda: SmoothGrad(n_samples=0), InputError),
        (lambda: SmoothGrad(stdev=-1.0), InputError),
        (lambda: SmoothGrad("Act"), UnknownNameError),
    ],
)
def test_settings_out_of_range_are_refused(make: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        make()


def test_the_last_feature_map_is_a_site_too() -> None:
    model = Spelled(lambda x: max_pool2d(torch.tanh(x), 2).flatten(1) ** 2)
    found = contribute(model, X, "@features", 3, baseline="zero").values["@features"]
    assert close(found.flatten(1).sum(1), (model(X) - model(torch.zeros_like(X)))[:, 3], 0.02)


def test_attribute_points_to_contributions_for_differences_of_hidden_units() -> None:
    with pytest.raises(SiteError, match=r"backlight\.contribute"):
        backlight.attribute(MODEL, X, path=backlight.Line(3), sites="stem", readout="difference")
    with pytest.raises(SiteError, match="stem"):
        backlight.IntegratedGradients(MODEL, n_steps=2).attribute(X, sites=("input", "stem"))
    assert backlight.attribute(MODEL, X, path=backlight.Line(3), sites="stem").value.shape == (3, 4, 4, 4)
