"""Results in notebooks: numbers are the results', names are text, reprs are short, and figures are drawn in a line."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("matplotlib")
pytest.importorskip("networkx")

from report_networks import HOSTILE, small_graph, small_network, small_picture

import backlight
from backlight.decompositions import KMeans
from backlight.errors import InputError
from backlight.graph import Diagnosis
from backlight.methods.perturbation import Counterfactual
from backlight.text.explanation import ExplainedText
from backlight.viz import show, signed_map
from backlight.viz.report_markup import number
from backlight.viz.rich_display import _FILE, html_of


@pytest.fixture(scope="module")
def loaded() -> Any:
    return small_network()


@pytest.fixture(scope="module")
def x(loaded: Any) -> Any:
    return (2 * loaded.preprocessing.image(small_picture()) - 1)[None]


def test_an_attribution_shows_its_map_and_numbers(loaded: Any, x: Any) -> None:
    found = backlight.IntegratedGradients(loaded.pixels(), n_steps=2).explain(x, 1)
    shown = found._repr_html_()
    _, scale = signed_map(found.value[0])
    assert f"(±{number(scale, 2)})" in shown
    assert f"<td>{number(float(found.scores[0]), 4)}</td>" in shown
    assert f"<td>{number(float(found.residual[0]), 4)}</td>" in shown
    for row in found.coverage:
        assert f'<th scope="row">{row.operation}</th>' in shown
    assert repr(found).startswith("Attribution(values={input: float32[1, 3, 32, 32]}, coverage=Coverage(")


def test_a_perturbation_shows_where_it_went(loaded: Any, x: Any) -> None:
    found = Counterfactual(loaded.pixels(), n_steps=2, step=2.0).perturb(x, 3)
    shown = found._repr_html_()
    for step in (0, -1):
        assert f"<td>{number(float(found.probabilities[step, 0]))}</td>" in shown
    assert shown.count("<img") == 3
    figure = show(found, loaded=None).figure
    (line, *_) = figure.axes[-1].get_lines()
    assert line.get_ydata() == pytest.approx(found.probabilities[:, 0].tolist())


def test_contributions_and_their_figure(loaded: Any, x: Any) -> None:
    found = backlight.contribute(loaded.model, x, ["3"], 1, algorithm="ActGrad")
    channels = found.values["3"][0].double().sum((1, 2))
    best = int(channels.abs().argmax())
    assert f"{best}: {number(float(channels[best]))}" in found._repr_html_()
    assert show(found).figure.axes[0].patches[0].get_width() == pytest.approx(float(channels[best]))


def test_names_are_text(loaded: Any) -> None:
    graph = small_graph(loaded, HOSTILE)
    told = ExplainedText((HOSTILE, "b"), torch.tensor([1.0, -2.0]), -1.0, HOSTILE, "m", ((HOSTILE, 0.5),))
    for one in (graph, Diagnosis.of(graph, 0, 1), told, loaded):
        shown = one._repr_html_()
        assert "<img src=x" not in shown
        assert "</script>" not in shown


def test_a_dictionary_a_graph_and_a_network(loaded: Any, tmp_path: Path) -> None:
    fitted = KMeans(n_modes=3).fit(torch.rand(20, 4))
    assert "3 × 4" in fitted._repr_html_()
    graph = small_graph(loaded)
    assert graph.summary().splitlines()[1] in re.sub("&gt;", ">", graph._repr_html_())
    assert f"{sum(one.numel() for one in loaded.model.parameters()):,} (float32)" in loaded._repr_html_()
    drawn = show(graph)
    data, size = drawn._repr_png_()
    assert data[:4] == b"\x89PNG"
    assert size["width"] > 100
    assert drawn.save(tmp_path / "graph.pdf", "double").stat().st_size > 1000


def test_a_picture_needs_the_network_that_crops_it(loaded: Any, x: Any) -> None:
    found = backlight.SRD(loaded.pixels()).explain(x, 1)
    for image in (small_picture(), x, None):
        assert show({"SRD": found, "again": found.value}, image, loaded=loaded).figure.axes
    assert show(found.value, x).figure.axes
    with pytest.raises(InputError, match="loaded="):
        show(found, small_picture())
    with pytest.raises(InputError, match=r"\[-1, 1\]"):
        show(found, 3 * x)
    with pytest.raises(InputError, match="no setting colour"):
        show(found, x, colour="red")
    with pytest.raises(InputError, match="no figure of int"):
        show(3)


def test_every_result_with_a_display_has_its_function() -> None:
    from importlib import import_module

    from backlight.viz.rich_display import _function

    for name, file in _FILE.items():
        assert callable(getattr(import_module(f"backlight.viz.{file}"), _function(name)))
    with pytest.raises(InputError, match="no display"):
        html_of(3)


def test_reprs_are_short(loaded: Any, x: Any) -> None:
    results = [
        loaded,
        backlight.Saliency(loaded.pixels()).explain(x, 1),
        backlight.contribute(loaded.model, x, ["1", "3"], 1),
        small_graph(loaded),
        backlight.ClassModel(loaded.model, n_steps=1).visualise(1, loaded.preprocessing),
        backlight.contribution_maps(loaded.pixels(), x, "network.3", [[0]], 1),
    ]
    for one in results:
        assert len(repr(one)) < 450
        assert "tensor(" not in repr(one)
        assert one._repr_html_()
