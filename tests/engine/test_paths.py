"""Paths: quadrature, baselines, noise, weight noise, ascent."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from probes import Spelled
from torch import Tensor, nn

from backlight.engine import Ascent, Line, Noise, Point, WeightNoise, attribute
from backlight.engine.paths import baseline_like, blur, line_rule
from backlight.errors import BacklightError, InputError, UnknownNameError
from backlight.rules import soft_pullback

RULES = ["trapezoid", "gausslegendre", "riemann_left", "riemann_middle", "riemann_right"]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("n", [1, 2, 3, 10, 50])
def test_weights_sum_to_one_and_nodes_lie_on_the_line(rule: str, n: int) -> None:
    nodes, weights = line_rule(rule, n)
    assert len(nodes) == len(weights) == n
    assert weights.sum() == pytest.approx(1, abs=1e-14)
    assert ((nodes >= 0) & (nodes <= 1)).all()
    assert (np.diff(nodes) > 0).all()


# the largest degree whose monomials n nodes integrate exactly
@pytest.mark.parametrize(
    ("rule", "n", "degree"),
    [("gausslegendre", n, 2 * n - 1) for n in (1, 2, 5)]
    + [("trapezoid", 2, 1), ("trapezoid", 7, 1), ("riemann_middle", 1, 1), ("riemann_middle", 6, 1)]
    + [("riemann_left", 5, 0), ("riemann_right", 5, 0)],
)
def test_polynomials_are_integrated_exactly_up_to_the_degree_of_the_rule(rule: str, n: int, degree: int) -> None:
    nodes, weights = line_rule(rule, n)
    errors = [abs((weights * nodes**k).sum() - 1 / (k + 1)) for k in range(degree + 2)]
    assert max(errors[:-1]) < 1e-14
    assert errors[-1] > 1e-6


def test_unknown_rules_and_counts_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="trapezoid"):
        line_rule("trapezium", 5)
    with pytest.raises(InputError):
        line_rule("trapezoid", 0)
    for path in (Noise(0), WeightNoise(0), WeightNoise(2, 0)):
        with pytest.raises(InputError):
            attribute(nn.Linear(2, 2), torch.ones(1, 2), 0, path=path)


def cubic(x: Tensor) -> Tensor:
    return (x**3).sum(1, keepdim=True)


def test_two_gauss_nodes_integrate_a_cubic_exactly() -> None:
    x, b = torch.randn(3, 4, dtype=torch.float64), torch.randn(3, 4, dtype=torch.float64)
    found = attribute(Spelled(cubic), x, 0, path=Line(2, baseline=b), readout="difference")
    assert torch.allclose(found.value, x**3 - b**3, atol=1e-12)
    assert found.residual.abs().max() < 1e-12
    assert torch.allclose(found.scores, cubic(x)[:, 0])


@pytest.mark.parametrize("rule", RULES)
def test_the_residual_is_what_is_missing(rule: str) -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    x = torch.randn(3, 4, dtype=torch.float64)
    coarse = attribute(model, x, 1, path=Line(3, rule), readout="difference")
    fine = attribute(model, x, 1, path=Line(200, rule), readout="difference")
    gap = model(x)[:, 1] - model(torch.zeros_like(x))[:, 1] - coarse.value.sum(1)
    assert torch.allclose(coarse.residual, gap.detach(), atol=1e-12)
    assert fine.residual.abs().max() < (0.02 if rule in ("riemann_left", "riemann_right") else 1e-4)
    assert fine.residual.abs().max() < coarse.residual.abs().max() + 1e-12


def test_a_line_through_several_inputs_is_complete() -> None:
    model = Spelled(lambda a, b: (a * b).sum(1, keepdim=True))
    a, b = torch.randn(2, 3, 4, dtype=torch.float64)
    found = attribute(model, (a, b), 0, path=Line(4, baseline=(0.5, "zero")), readout="difference")
    assert found.residual.abs().max() < 1e-12
    assert torch.allclose(found.values["input#0"] + found.values["input#1"], a * b, atol=1e-12)
    with pytest.raises(InputError, match="3 baselines for 2 inputs"):
        attribute(model, (a, b), 0, path=Line(4, baseline=(0, 0, 0)))


def test_baselines_are_what_they_are_called() -> None:
    x = torch.rand(2, 3, 8, 8, dtype=torch.float64)
    for name in (None, "zero", "grey"):
        assert not baseline_like(name, x).any()
    assert torch.allclose(baseline_like("mean", x), x.mean((2, 3), keepdim=True).expand_as(x))
    assert torch.equal(baseline_like(0.3, x), torch.full_like(x, 0.3))
    assert torch.equal(baseline_like(x[:1], x), x[:1].expand_as(x))
    flat = torch.full_like(x, 2.0)
    assert torch.allclose(baseline_like("blur", flat), flat)
    with pytest.raises(UnknownNameError, match="blur"):
        baseline_like("blurr", x)
    with pytest.raises(InputError, match="broadcast"):
        baseline_like(torch.zeros(5), x)
    with pytest.raises(InputError, match=r"N, C, H, W"):
        baseline_like("blur", x[0])


def test_a_blur_is_a_gaussian() -> None:
    x = torch.zeros(1, 1, 41, 41, dtype=torch.float64)
    x[0, 0, 20, 20] = 1
    y = blur(x, 2.0)[0, 0]
    assert y.sum().item() == pytest.approx(1)
    assert (y[20, 22] / y[20, 20]).item() == pytest.approx(math.exp(-4 / 8))
    assert (y[23, 24] / y[20, 20]).item() == pytest.approx(math.exp(-25 / 8))


QUADRATIC = Spelled(lambda x: (x**2).sum(1, keepdim=True) / 2)  # its gradient is the point itself


def test_noise_has_mean_zero_and_its_deviation() -> None:
    x = torch.zeros(1, 400, dtype=torch.float64)
    draws = [attribute(QUADRATIC, x, 0, path=Noise(1, 0.3, seed)).value for seed in range(20)]
    noise = torch.cat(draws)
    assert noise.mean().item() == pytest.approx(0, abs=0.3 * 4 / math.sqrt(8000))
    assert noise.std().item() == pytest.approx(0.3, rel=0.05)


@pytest.mark.parametrize("path", [Noise(3, 0.2, 7), WeightNoise(2, 2, 0.1, 0.2, 7)])
def test_draws_are_the_same_for_every_sample_and_follow_the_seed(path: Any) -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)).double()
    x = torch.randn(1, 4, dtype=torch.float64).expand(3, 4)
    state = torch.get_rng_state()
    found = attribute(model, x, 0, path=path).value
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    torch.manual_seed(99)
    assert torch.equal(attribute(model, x, 0, path=path).value, found)
    other = type(path)(**{**path.__dict__, "seed": 8})
    assert not torch.equal(attribute(model, x, 0, path=other).value, found)


def test_weight_noise_multiplies_every_parameter_by_its_own_number() -> None:
    model = nn.Linear(300, 2).double()
    with torch.no_grad():
        model.weight.fill_(2.0)
    x = torch.zeros(1, 300, dtype=torch.float64)
    found = attribute(model, x, 0, path=WeightNoise(1, 1, 0.1, 0.0)).value / 2
    assert found.mean().item() == pytest.approx(1, abs=0.1 * 4 / math.sqrt(300))
    assert found.std().item() == pytest.approx(0.1, rel=0.2)
    assert torch.equal(model.weight, torch.full_like(model.weight, 2.0))
    assert torch.allclose(attribute(model, x, 0, path=WeightNoise(2, 3, 0.0, 0.5)).value, model.weight[:1])


ASCENT = st.fixed_dictionaries(
    {
        "n_steps": st.integers(1, 5),
        "step": st.one_of(st.none(), st.floats(0.01, 30)),
        "normalise": st.booleans(),
        "relative": st.booleans(),
        "radius": st.one_of(st.none(), st.floats(0, 20)),
        "project": st.sampled_from(["never", "every", "last"]),
    }
)


@given(ASCENT)
@settings(max_examples=40, deadline=None)
def test_an_ascent_is_its_loop(setting: dict[str, Any]) -> None:
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(6, 4, dtype=torch.float64, generator=generator)
    model = Spelled(lambda x: torch.relu(x.flatten(1) @ w).sum(1, keepdim=True))
    x = torch.randn(3, 2, 3, dtype=torch.float64, generator=generator).clamp(-1, 1)
    found = attribute(model, x, 0, path=Ascent(**setting, box=(-1.0, 1.0)), rules=soft_pullback("paper"))

    def phi(u):
        return (1 + torch.erf(u / math.sqrt(2))) / 2

    for n in range(3):
        at = x[n].flatten()
        for k in range(setting["n_steps"]):
            g = phi(at @ w / 0.6) @ w.T
            if setting["step"] is not None:
                g = g / g.norm() if setting["normalise"] else g
                g = g * at.norm() if setting["relative"] else g
                g = g * setting["step"]
            at = at + g
            if setting["radius"] is not None:
                away = at - x[n].flatten()
                at = x[n].flatten() + away * min(1.0, setting["radius"] / max(away.norm().item(), 1e-12))
            if setting["project"] == "every" or (setting["project"] == "last" and k == setting["n_steps"] - 1):
                at = at.clamp(-1, 1)
            assert torch.allclose(found.points[k + 1][0][n].flatten(), at, atol=1e-9)
        assert torch.allclose(found.value[n].flatten(), at - x[n].flatten(), atol=1e-9)
        shift = found.value[n].norm().item()
        if setting["radius"] is not None:
            assert shift <= setting["radius"] + 1e-9
        if setting["step"] is not None and setting["normalise"] and not setting["relative"]:
            assert shift <= setting["n_steps"] * setting["step"] + 1e-9
        if setting["project"] != "never":
            assert found.points[-1][0].abs().max() <= 1


def test_a_box_may_be_a_tensor() -> None:
    low, high = torch.tensor([-1.0, -0.1, 0.0]), torch.tensor([1.0, 0.1, 0.0])
    x = torch.zeros(2, 3, dtype=torch.float64)
    model = Spelled(lambda x: x.sum(1, keepdim=True))
    found = attribute(model, x, 0, path=Ascent(3, 5.0, box=(low, high), project="every")).value
    assert torch.allclose(found, high.double().expand(2, 3))


def test_no_direction_is_no_step() -> None:
    model = Spelled(lambda x: x.sum(1, keepdim=True) * 0)
    x = torch.randn(2, 3, dtype=torch.float64)
    assert not attribute(model, x, 0, path=Ascent(3, 5.0, relative=True, radius=2.0)).value.any()


@pytest.mark.parametrize(
    "setting",
    [{"n_steps": 0}, {"project": "always"}, {"project": "last"}, {"radius": -1.0}, {"project": "every", "box": None}],
)
def test_ascents_that_make_no_sense_are_refused(setting: dict[str, Any]) -> None:
    with pytest.raises(BacklightError):
        Ascent(**setting)


def test_costs_are_counted_in_samples() -> None:
    model, x = nn.Linear(4, 3).double(), torch.randn(5, 4, dtype=torch.float64)
    counted = {
        path: (cost.forwards, cost.backwards)
        for path in (Point(), Line(6), Noise(6), WeightNoise(2, 3), Ascent(6))
        for cost in [attribute(model, x, 0, path=path).cost]
    }
    assert counted[Point()] == (5, 5)
    assert counted[Line(6)] == (35, 30)  # and the scores at the end of the line
    assert counted[Noise(6)] == counted[WeightNoise(2, 3)] == counted[Ascent(6)] == (30, 30)
