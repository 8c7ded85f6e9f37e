"""CompletenessError: methods that are complete, and by how much the others miss."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from backlight.engine.targets import Probability
from backlight.errors import InputError, UnknownNameError
from backlight.methods.integrated_gradients import IntegratedGradients
from backlight.methods.saliency import Saliency
from backlight.metrics.case import Case
from backlight.metrics.completeness_error import CompletenessError, completeness_error
from backlight.metrics.controls import Negative
from backlight.metrics.explainers import as_explainer


def linear() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 5)).double()


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.Tanh(), nn.Flatten(), nn.Linear(6 * 36, 5)).double().eval()


def samples(count: int = 4) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("baseline", ["zero", "mean", "min", 0.3])
def test_the_gradient_of_a_linear_network_times_the_difference_is_complete(baseline: str | float) -> None:
    model, x, classes = linear(), samples(), [3, 0, 4, 1]
    gradient = Saliency(model).attribute(x, classes)
    found = completeness_error(model, x, gradient, classes, baseline=baseline, times_input=True)
    assert found.dtype == torch.float64
    assert (found < 1e-12).all()
    wrong = completeness_error(model, x, gradient, [3, 0, 4, 2], baseline=baseline, times_input=True)
    assert (wrong[:3] < 1e-12).all()
    assert wrong[3] > 0.01


def test_without_a_baseline_a_linear_network_misses_its_bias() -> None:
    model, x = linear(), samples()
    gradient = Saliency(model).attribute(x, 2)
    found = completeness_error(model, x, gradient * x, 2, baseline="none", error="signed")
    bias = float(model[1].bias.detach()[2])  # type: ignore[index,union-attr]
    assert found.tolist() == pytest.approx([-bias] * 4, abs=1e-12)


def test_integrated_gradients_are_complete_for_their_own_baseline() -> None:
    model, x = network(), samples()
    for baseline in ("zero", "mean"):
        method = IntegratedGradients(model, baseline=baseline, n_steps=32)
        found = completeness_error(model, x, method.attribute(x, 1), 1, baseline=baseline)
        assert (found < 1e-8).all()
    assert (completeness_error(model, x, method.attribute(x, 1), 1, baseline="min") > 1e-3).all()


def test_by_how_much() -> None:
    """Twice the complete map misses by the whole gain, minus it by twice the gain."""
    model, x = linear(), samples()
    complete = Saliency(model).attribute(x, 1) * x
    with torch.no_grad():
        gain = model(x)[:, 1] - model(torch.zeros_like(x))[:, 1]
    maps = torch.stack([complete, 2 * complete, -complete, 0 * complete])
    relative = completeness_error(model, x, maps, 1)
    assert relative.shape == (4, 4)
    assert torch.allclose(relative, torch.tensor([0.0, 1, 2, 1]).double()[:, None].expand(-1, 4), atol=1e-6)
    signed = completeness_error(model, x, maps, 1, error="signed")
    assert torch.allclose(signed, torch.stack([0 * gain, gain, -2 * gain, -gain]), atol=1e-10)
    assert torch.equal(completeness_error(model, x, maps, 1, error="absolute"), signed.abs())


def test_one_value_a_position_counts_once() -> None:
    model, x = network(), samples()
    maps = IntegratedGradients(model, n_steps=32).attribute(x, 1)
    together = completeness_error(model, x, maps.sum(1, keepdim=True), 1)
    assert (together < 1e-8).all()
    case = Case(model, x, 1, maps={"entries": maps, "positions": maps.sum(1, keepdim=True)})
    assert (CompletenessError()(case) < 1e-8).all()


def test_a_score_that_gains_nothing_is_no_exception() -> None:
    model, x = linear(), samples()
    x[1] = 0
    found = completeness_error(model, x, torch.zeros_like(x), 1)
    assert found[1] == 0
    assert found.isfinite().all()


def test_batch_mates_order_and_batch_size_play_no_part() -> None:
    model, x, classes = network(), samples(), torch.tensor([3, 0, 4, 1])
    maps = Saliency(model).attribute(x, classes)
    whole = completeness_error(model, x, maps, classes, error="signed")
    for batch_size in (1, 3):
        again = completeness_error(model, x, maps, classes, error="signed", batch_size=batch_size)
        assert torch.allclose(again, whole, rtol=1e-10)
    turned = completeness_error(model, x.flip(0), maps.flip(0), classes.flip(0), error="signed")
    assert torch.allclose(turned.flip(0), whole, rtol=1e-10)


def test_the_metric_over_a_case_sees_the_sign() -> None:
    model, x = network(), samples()
    complete = as_explainer(IntegratedGradients(model, n_steps=32))
    case = Case(model, x, Probability(1), explainers={"a": complete, "b": Negative(complete)})
    found = CompletenessError()(case)
    assert found.shape == (2, 4)
    assert (found[0] < 1e-6).all()
    assert torch.allclose(found[1], torch.full((4,), 2.0).double(), atol=1e-4)
    assert CompletenessError().sees_sign
    model = linear()
    case = Case(model, x, 1, explainers={"gradient": Saliency(model)})
    assert (CompletenessError.preset("gradients")(case) < 1e-12).all()
    assert (CompletenessError()(case) > 1e-3).all()


def test_what_is_refused() -> None:
    model, x = linear(), samples()
    with pytest.raises(UnknownNameError, match="close matches: relative"):
        completeness_error(model, x, x, 1, error="relativ")
    with pytest.raises(UnknownNameError, match="unknown baseline"):
        completeness_error(model, x, x, 1, baseline="nil")
    with pytest.raises(InputError, match="expected attributions"):
        completeness_error(model, x, x[:, :2], 1)
