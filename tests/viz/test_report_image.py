"""Reports on pictures: what the page says is what the API gives; nothing of a name is code; nothing is lost."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("networkx")

from report_networks import HOSTILE, small_graph, small_layers, small_network, small_picture

import backlight
from backlight.errors import InputError, TargetError, UnknownNameError
from backlight.evaluation.identity import model_hash
from backlight.graph import build_graph
from backlight.viz import image_report, report_image, signed_map
from backlight.viz.report_fields import fields_of
from backlight.viz.report_markup import number, per_cent


@pytest.fixture(scope="module")
def loaded() -> Any:
    return small_network()


def inputs(loaded: Any, seed: int = 0) -> Any:
    return (2 * loaded.preprocessing.image(small_picture(seed)) - 1)[None]


def test_predictions_and_scales_are_those_of_the_api(loaded: Any) -> None:
    page = image_report(loaded, {"one": small_picture()}, ["Saliency", "SRD"]).html
    x, front = inputs(loaded), loaded.pixels()
    shares = front(x).detach().double().softmax(1)[0]
    best = shares.topk(5)
    shown = re.findall(r"(\d+\.\d) %</td>", page)
    assert shown == [f"{100 * share:.1f}" for share in best.values.tolist()]
    for name in ("Saliency", "SRD"):
        found = getattr(backlight, name)(front).attribute(x, int(best.indices[0]))
        _, scale = signed_map(found[0])
        assert f"+{scale:.2g}</span>" in page
    assert model_hash(loaded.model) in page
    assert backlight.__version__ in page


def test_another_class_is_explained_where_asked_for(loaded: Any) -> None:
    page = image_report(loaded, {"one": small_picture()}, ["Saliency"], target=4, layers=[]).html
    assert "explained: moon" in page
    assert "What hidden places see" not in page
    with pytest.raises(UnknownNameError, match="Salience"):
        image_report(loaded, {"one": small_picture()}, ["Salience"])
    with pytest.raises((TargetError, InputError)):
        loaded.classes.name(99)


def test_names_are_text(loaded: Any) -> None:
    graph = small_graph(loaded, HOSTILE)
    found = image_report(loaded, {HOSTILE: small_picture()}, ["Saliency"], title=HOSTILE, target=0, graphs=[graph])
    assert "<img src=x" not in found.html
    assert "&lt;img src=x onerror=" in found.html
    assert found.html.count("<iframe") == 1
    assert "drawn &lt;at&gt; random" in found.html


def test_nothing_comes_from_elsewhere(loaded: Any) -> None:
    page = image_report(loaded, {"one": small_picture()}, ["Saliency"]).html
    assert not re.findall(r"(?:src|href)=\"(?!data:|#)[^\"]*\"", page)
    assert "url(" not in page
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]+)"', page)
    assert html.unescape(policy).startswith("default-src 'none'; img-src data:; style-src 'sha256-")
    assert "script-src 'none'" in html.unescape(policy)


def test_what_cannot_be_shown_is_listed_and_the_rest_is_there(loaded: Any, tmp_path: Path) -> None:
    good, broken = tmp_path / "good.png", tmp_path / "broken.png"
    small_picture().save(good)
    broken.write_bytes(b"no picture")
    pictures = [good, broken, tmp_path / "missing.png"]
    found = image_report(loaded, pictures, ["Saliency"], layers=["nope"])
    assert set(found.failed) == {"broken.png", str(tmp_path / "missing.png")}
    assert "not in an image format" in found.html
    assert "no such file" in found.html
    assert "<h2>good.png</h2>" in found.html
    assert "<b>receptive fields</b>" in found.html
    with pytest.raises(InputError, match="at least one picture"):
        image_report(loaded, [])


def test_fields_lie_where_the_relevance_is(loaded: Any) -> None:
    x, front = inputs(loaded), loaded.pixels()
    found = fields_of(front, x, 1, ["3"], 2)
    operator = backlight.SRD(front).prepare(x)
    relevance = operator.relevance(operator.seed(1), to="network.3")[0].double()
    assert found[0].place == divmod(int(relevance.argmax()), relevance.shape[1])
    assert found[0].share == pytest.approx(float(relevance.max() / relevance.abs().sum()))
    assert all(one.values.sum() == pytest.approx(1, abs=1e-4) for one in found)
    page = image_report(loaded, {"one": small_picture()}, ["Saliency"], target=1, layers=["3"], places=2).html
    assert f"{per_cent(found[0].share or 0)} of relevance" in page


def test_concepts_are_those_of_a_graph(loaded: Any) -> None:
    x = loaded.preprocessing.tensor(small_picture())[None]
    layers = small_layers(loaded)
    page = image_report(loaded, {"one": small_picture()}, ["Saliency"], target=1, dictionaries=layers).html
    graph = build_graph(loaded, x, layers, classes=[1], top=6, shared=0)
    told = [held for _, held in graph.graph.nodes(data=True) if held["kind"] == "concept"]
    assert told
    for one in told:
        value = one["importance"]["1"]
        pattern = rf"concept {one['concept']}: (−?[\d.e−]+)"
        (shown,) = re.findall(pattern, page)
        assert float(shown.replace("−", "-")) == pytest.approx(value, rel=2e-2, abs=1e-6), number(value)


def sections(page: str) -> str:
    """The pictures' parts of a page: the rest tells when it was made."""
    return re.findall(r"<main>(.*)<h2>How this was made", page, re.DOTALL)[0]


def test_a_graph_of_another_network_is_refused(loaded: Any) -> None:
    graph = small_graph(loaded)
    graph.about["model"] = "another"
    found = image_report(loaded, {"one": small_picture()}, ["Saliency"], graphs=[graph])
    assert found.failed == {"concept graph of one": "it is of another, not of small"}
    assert "<iframe" not in found.html


def test_it_goes_on_where_it_was_stopped(loaded: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = {"one": small_picture(), "two": small_picture(1)}
    first = image_report(loaded, pictures, ["Saliency"], parts=tmp_path)
    assert len(list(tmp_path.glob("*.json"))) == 2

    def refuse(*_: Any) -> None:
        raise RuntimeError("computed again")

    monkeypatch.setattr(report_image._Pages, "_made", refuse)
    again = image_report(loaded, pictures, ["Saliency"], parts=tmp_path)
    assert not again.failed
    assert sections(first.html) == sections(again.html)
    other = image_report(loaded, pictures, ["Saliency"], parts=tmp_path, target=2)
    assert set(other.failed) == {"one", "two"}  # another class is another page
    part = next(tmp_path.glob("*.json"))
    part.write_text(json.dumps({"key": "another's"}))
    assert len(image_report(loaded, pictures, ["Saliency"], parts=tmp_path).failed) == 1


def test_figures_for_papers_are_written(loaded: Any, tmp_path: Path) -> None:
    settings = {"figures": tmp_path, "kinds": ["svg"], "style": "column"}
    found = image_report(loaded, {"a/b <c>": small_picture()}, ["Saliency"], **settings)
    (path,) = found.figures
    assert path.parent == tmp_path
    text = path.read_text(encoding="utf-8")
    assert 'width="234pt"' in text  # 3.25 inches
    assert re.search(r"<text[^>]*>Saliency</text>", text)
