"""What decides an evaluation's numbers: nothing that does may be left out of its identity."""

from __future__ import annotations

import pytest
from torch import nn

import backlight  # noqa: F401  (before Captum, whose imports need its operators)
from backlight.evaluation.identity import described_explainer
from backlight.methods import method
from backlight.metrics.controls import Negative
from backlight.metrics.explainers import as_explainer


def test_the_layer_of_a_captum_object_is_part_of_it() -> None:
    attr = pytest.importorskip("captum.attr")
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 2))
    first, second = (described_explainer(as_explainer(attr.LayerGradCam(model, model[place]))) for place in (0, 2))
    assert first != second
    assert first["made with"]["layer"] == "layer 0"
    assert first == described_explainer(as_explainer(attr.LayerGradCam(model, model[0])))
    inputs = [attr.IntegratedGradients(model, multiply_by_inputs=flag) for flag in (True, False)]
    whole, factor = (described_explainer(as_explainer(attr.NoiseTunnel(one))) for one in inputs)
    assert whole != factor


def test_what_an_explainer_wraps_is_part_of_it() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    negatives = [Negative(as_explainer(method("SmoothGrad")(model, stdev=stdev))) for stdev in (0.1, 0.2)]
    first, second = map(described_explainer, negatives)
    assert first != second
    assert first["settings"]["explainer"]["settings"]["stdev"] == 0.1
