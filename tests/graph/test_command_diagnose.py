"""`backlight graph diagnose`, on a small network with dictionaries of k-means."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from PIL import Image
from torch import nn
from typer.testing import CliRunner

pytest.importorskip("networkx")
pytest.importorskip("matplotlib")

from backlight.cli.graph import graph
from backlight.data import ClassNames, Preprocessing
from backlight.decompositions import KMeans
from backlight.engine.sites import captured
from backlight.errors import InputError, UnknownNameError
from backlight.graph.concept_graph import ConceptGraph
from backlight.graph.diagnosis import diagnose
from backlight.graph.diagnosis_change import diagnose_change
from backlight.models import LoadedModel

app = typer.Typer()
app.add_typer(graph)
SITES = ("1", "3")


def network() -> LoadedModel:
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU(), nn.Conv2d(6, 8, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(8, 3),
    )  # fmt: skip
    preprocessing = Preprocessing(size=(24, 24), resize=(24, 24))
    names = ClassNames(("red", "green", "blue"))
    return LoadedModel("small", model.eval(), preprocessing, names, tuple("0123456"), "drawn")


def layers() -> dict[str, KMeans]:
    model = network().model
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad(), captured(model, SITES) as found:
        model(torch.randn(6, 3, 24, 24, generator=draw))
    return {site: KMeans(n_modes=5).fit(found[site].flatten(2).transpose(1, 2).flatten(0, 1)) for site in SITES}


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backlight.cli.networks.load", lambda *args, **kwargs: network())
    monkeypatch.setattr("backlight.graph.layers_fitted.open_layers", lambda *args, **kwargs: layers())


@pytest.fixture
def pictures(tmp_path: Path) -> tuple[Path, Path]:
    draw = np.random.default_rng(0)
    paths = (tmp_path / "before.png", tmp_path / "after.png")
    pixels = draw.integers(0, 200, (24, 24, 3), dtype=np.uint8)
    for path in paths:
        Image.fromarray(pixels).save(path)
        pixels[:8, :8, 1] += 50
    return paths


def run(*arguments: Any) -> Any:
    found = CliRunner().invoke(app, ["graph", "diagnose", *[str(one) for one in arguments]])
    if found.exception is not None and not isinstance(found.exception, SystemExit):
        raise found.exception
    assert found.exit_code == 0, found.stderr
    return found


def test_two_classes(pictures: tuple[Path, Path], tmp_path: Path) -> None:
    options = ("--true", "red", "--predicted", "blue", "--concepts", tmp_path, "--top", 2, "--count", 3)
    record = json.loads(run(pictures[0], *options, "--out", tmp_path / "out", "--json").stdout)
    loaded = network()
    x = loaded.preprocessing.tensor(pictures[0])[None]
    found = diagnose(loaded, x, layers(), true=0, predicted=2, top=2, count=3, name="before.png")
    files = record.pop("files")
    assert record == json.loads(json.dumps(found.as_json()))
    assert ConceptGraph.load(files["graph"]).as_json() == json.loads(json.dumps(found.graph.as_json()))
    assert Path(files["summary"]).read_text() == found.markdown()
    assert json.loads(Path(files["record"]).read_text()) == record
    assert Path(files["page"]).is_file()
    assert Path(files["figure"]).is_file()
    told = run(pictures[0], *options, "--out", tmp_path / "out").stdout
    assert told.strip() == found.text()


def test_a_version_of_the_picture(pictures: tuple[Path, Path], tmp_path: Path) -> None:
    options = ("--true", "red", "--predicted", "green", "--attacked", pictures[1], "--concepts", tmp_path)
    record = json.loads(run(pictures[0], *options, "--out", tmp_path / "out", "--json").stdout)
    loaded = network()
    x, other = (loaded.preprocessing.tensor(path)[None] for path in pictures)
    found = diagnose_change(
        loaded, x, other, layers(), true=0, predicted=1, image_names=("before.png", "after.png")
    )  # fmt: skip
    files = record.pop("files")
    assert record == json.loads(json.dumps(found.as_json()))
    assert Path(files["summary"]).read_text() == found.markdown()
    for side, own in (("before", found.before), ("after", found.after)):
        assert ConceptGraph.load(files[f"{side} graph"]).as_json() == json.loads(json.dumps(own.as_json()))
        assert Path(files[f"{side} page"]).is_file()


def test_wrong_calls(pictures: tuple[Path, Path], tmp_path: Path) -> None:
    common = ("--concepts", tmp_path, "--out", tmp_path / "out")
    with pytest.raises(InputError, match="--true CLASS"):
        run(pictures[0], *common)
    with pytest.raises(UnknownNameError, match="green"):
        run(pictures[0], "--true", "gren", *common)
    with pytest.raises(InputError, match="--coder"):
        run(pictures[0], "--true", "red", "--set", "penalty=0.1", *common)
    with pytest.raises(InputError, match="twice"):
        run(pictures[0], "--true", "red", "--predicted", "red", *common)
