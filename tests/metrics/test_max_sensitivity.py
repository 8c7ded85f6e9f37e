"""MaxSensitivity: closed forms, a literal loop, and what a score may not depend on."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from backlight.errors import InputError, TargetError
from backlight.methods.saliency import Saliency
from backlight.methods.smooth_grad import SmoothGrad
from backlight.metrics.case import Case
from backlight.metrics.controls import Control, Negative
from backlight.metrics.draws import generators
from backlight.metrics.explainers import Explainer, FunctionExplainer, MethodExplainer, as_explainer
from backlight.metrics.max_sensitivity import MaxSensitivity, max_sensitivity


def network(width: int = 6) -> nn.Module:
    layers = [nn.Conv2d(3, width, 3), nn.Tanh(), nn.Flatten(), nn.Linear(width * 36, 5)]
    return nn.Sequential(*layers).double().eval()


def samples(count: int = 4, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def literal(explain: Any, x: Tensor, classes: list[int], draws: int, radius: float, seeds: list[int]) -> list[float]:
    """One sample and one draw at a time."""
    scores = []
    for row, one in enumerate(classes):
        generator = torch.Generator().manual_seed(seeds[row])
        phi = explain(x[row : row + 1], one)
        ratios = []
        for _ in range(draws):
            noise = torch.rand(x.shape[1:], generator=generator) * 2 * radius - radius
            moved = explain(x[row : row + 1] + noise, one)
            ratios.append(float((moved - phi).norm() / phi.norm()))
        scores.append(max(ratios))
    return scores


def test_a_literal_loop_with_a_class_and_a_seed_a_sample() -> None:
    model, x, classes, seeds = network(), samples(), [3, 0, 4, 1], [5, 9, 5, 2]
    explain = Saliency(model).attribute
    found = max_sensitivity(Saliency(model), x, classes, draws=7, radius=0.3, seed=seeds, batch_size=5)
    assert found.dtype == torch.float64
    assert found.tolist() == pytest.approx(literal(explain, x, classes, 7, 0.3, seeds), rel=1e-6)
    assert found.tolist() != pytest.approx(literal(explain, x, [3, 0, 4, 2], 7, 0.3, seeds), rel=1e-5)


def test_the_gradient_of_a_linear_network_does_not_move() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 5)).double()
    assert max_sensitivity(Saliency(model), samples(), 2, draws=3).tolist() == [0.0] * 4


def test_the_gradient_of_a_square_moves_with_the_noise() -> None:
    """f = |x|^2 / 2: phi(x) = x, so that the score is the longest noise over |x|."""
    x = samples(2)
    found = max_sensitivity(lambda x, target: x, x, 0, draws=6, radius=0.5, seed=3)
    longest = max(((torch.rand(3, 8, 8, generator=g) * 2 - 1) * 0.5).norm() for g in generators(3, 1) for _ in range(6))
    assert found.tolist() == pytest.approx([float(longest / one.norm()) for one in x], rel=1e-6)


def test_more_draws_and_more_noise_are_worse() -> None:
    model, x = network(), samples()
    few = max_sensitivity(Saliency(model), x, 1, draws=2)
    assert (max_sensitivity(Saliency(model), x, 1, draws=8) >= few).all()
    assert (max_sensitivity(Saliency(model), x, 1, draws=2, radius=0.2) > 2 * few).all()


@pytest.mark.parametrize("factor", [-1.0, 1000.0])
def test_scale_and_sign_of_maps_play_no_part(factor: float) -> None:
    model, x = network(), samples()
    explain = Saliency(model).attribute
    scaled = max_sensitivity(lambda x, target: factor * explain(x, target), x, 1, draws=3)
    assert torch.allclose(scaled, max_sensitivity(explain, x, 1, draws=3), rtol=1e-10)


def test_batch_mates_order_and_batch_size_play_no_part() -> None:
    model, x, classes, seeds = network(), samples(), torch.tensor([3, 0, 4, 1]), [5, 9, 5, 2]
    for explain in (Saliency(model), SmoothGrad(model, n_samples=3)):
        whole = max_sensitivity(explain, x, classes, draws=3, seed=seeds)
        for batch_size in (1, 3, 100):
            again = max_sensitivity(explain, x, classes, draws=3, seed=seeds, batch_size=batch_size)
            assert torch.allclose(again, whole, rtol=1e-10)
        for row in range(4):
            one = slice(row, row + 1)
            alone = max_sensitivity(explain, x[one], classes[one], draws=3, seed=seeds[one])
            assert torch.allclose(alone, whole[one], rtol=1e-10)
        turned = max_sensitivity(explain, x.flip(0), classes.flip(0), draws=3, seed=seeds[::-1])
        assert torch.allclose(turned.flip(0), whole, rtol=1e-10)


def test_a_seed_fixes_the_draws_and_the_global_ones_stay() -> None:
    model, x = network(), samples()
    before = torch.get_rng_state()
    first = max_sensitivity(Saliency(model), x, 1, draws=3, seed=4)
    assert torch.equal(first, max_sensitivity(Saliency(model), x, 1, draws=3, seed=4))
    assert torch.equal(first, max_sensitivity(Saliency(model), x, 1, draws=3, seed=[4] * 4))
    assert not torch.allclose(first, max_sensitivity(Saliency(model), x, 1, draws=3, seed=5))
    assert torch.equal(before, torch.get_rng_state())


def test_methods_that_draw_are_charged_their_own_noise() -> None:
    model, x = network(), samples()
    noisy = SmoothGrad(model, n_samples=2, stdev=0.5)
    fresh = max_sensitivity(noisy, x, 1, draws=3, radius=1e-4)
    kept = max_sensitivity(noisy, x, 1, draws=3, radius=1e-4, fresh=False)
    assert (fresh > 0.05).all()
    assert (kept < 1e-3).all()


def test_every_neighbour_has_draws_of_its_own() -> None:
    seeds: list[int] = []

    class Drawing(Explainer):
        def __call__(self, inputs: Tensor, target: Any) -> Tensor:
            return inputs

        def reseeded(self, seed: int) -> Explainer:
            seeds.append(seed)
            return Drawing()

    max_sensitivity(Drawing(), samples(), 1, draws=5, seed=[1, 2, 1, 3])
    assert len(set(seeds[1:])) == 15  # the first asks whether it draws


def test_passes_are_bounded_and_whole() -> None:
    """All draws of all samples share batches, unless each draw has its own seed."""
    sizes: list[int] = []

    def explain(inputs: Tensor, target: Any) -> Tensor:
        assert target.shape == (len(inputs),)
        sizes.append(len(inputs))
        return inputs

    max_sensitivity(explain, samples(), [1, 2, 3, 4], draws=5, batch_size=8)
    assert sizes == [4, 8, 8, 4]

    class Drawing(Explainer):
        def __call__(self, inputs: Tensor, target: Any) -> Tensor:
            return explain(inputs, torch.zeros(len(inputs)))

        def reseeded(self, seed: int) -> Explainer:
            return Drawing()

    sizes.clear()
    max_sensitivity(Drawing(), samples(), 1, draws=2, batch_size=3, attributions=samples())
    assert sizes == [3, 1, 3, 1]


def test_a_zero_map_has_no_score_and_a_constant_one_the_best() -> None:
    x = samples(3)

    def explain(inputs: Tensor, target: Any) -> Tensor:
        return (inputs - x[0]) * (target == 1)[:, None, None, None]

    found = max_sensitivity(explain, x, [1, 0, 1], draws=2)
    assert found.isnan().tolist() == [True, True, False]
    assert max_sensitivity(Control("constant"), x, 1, draws=2).tolist() == [0.0] * 3


def test_the_metric_over_a_case() -> None:
    model, x = network(), samples()
    explainers = {
        "gradient": Saliency(model),
        "minus gradient": Negative(as_explainer(Saliency(model))),
        "one a position": FunctionExplainer(lambda x, t: Saliency(model).attribute(x, t).sum(1, keepdim=True)),
        "control: random": Control("random"),
    }
    case = Case(model, x, explainers=explainers, seed=2, batch_size=6)
    found = MaxSensitivity(draws=3)(case)
    assert found.shape == (4, 4)
    predicted = model(x).argmax(1)
    assert torch.allclose(found[0], max_sensitivity(Saliency(model), x, predicted, draws=3, seed=2))
    assert torch.equal(found[0], found[1])
    assert (found[3] > 1).all()
    assert MaxSensitivity.preset("quantus").settings() == {"draws": 200, "radius": 0.2, "fresh": True}


def test_passes_with_other_draws_are_counted() -> None:
    explainer = MethodExplainer(SmoothGrad(network(), n_samples=2))
    max_sensitivity(explainer, samples(), 1, draws=3)
    assert explainer.cost.backwards == 4 * 2 * (1 + 3)


def test_what_is_refused() -> None:
    model, x = network(), samples()
    with pytest.raises(InputError, match="at least 1 draw, got 0"):
        max_sensitivity(Saliency(model), x, 1, draws=0)
    with pytest.raises(InputError, match="radius must be positive"):
        max_sensitivity(Saliency(model), x, 1, radius=0.0)
    with pytest.raises(InputError, match="give the class of each sample"):
        max_sensitivity(Saliency(model), x, None)
    with pytest.raises(TargetError, match="2 target indices for 4"):
        max_sensitivity(Saliency(model), x, [1, 2])
    with pytest.raises(InputError, match="batch_size"):
        max_sensitivity(Saliency(model), x, 1, batch_size=0)
    case = Case(model, x, 1, maps={"mine": x})
    with pytest.raises(InputError, match="only maps of 'mine'"):
        MaxSensitivity()(case)
