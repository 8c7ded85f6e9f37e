"""`backlight graph build`, `show` and `diff`, on a small network with dictionaries of k-means."""

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

pytest.importorskip("zarr")
pytest.importorskip("sklearn")
pytest.importorskip("networkx")
pytest.importorskip("matplotlib")

from backlight.cli.graph import graph
from backlight.concepts.bank import Bank, make_bank
from backlight.concepts.concepts import Concepts, encode_concepts, fit_concepts
from backlight.data import ClassNames, Preprocessing
from backlight.data.labelled import LabelledFolder
from backlight.errors import InputError, UnknownNameError
from backlight.graph.build import build_graph
from backlight.graph.coded import code_sites
from backlight.graph.concept_graph import ConceptGraph
from backlight.graph.layers_fitted import layer_of, open_layers, tags_of
from backlight.graph.validation import Protocol, strongest, validate
from backlight.models import LoadedModel

app = typer.Typer()
app.add_typer(graph)
SITES = ("first", "second", "third")


def network() -> LoadedModel:
    torch.manual_seed(1)
    model = nn.Sequential()
    widths = (3, 6, 8, 8)
    for name, before, after in zip(SITES, widths, widths[1:], strict=False):
        model.add_module(f"conv_{name}", nn.Conv2d(before, after, 3, 2 if name != "third" else 1, 1))
        model.add_module(name, nn.ReLU())
    for name, layer in (("pool", nn.AdaptiveAvgPool2d(1)), ("flat", nn.Flatten()), ("head", nn.Linear(8, 3))):
        model.add_module(name, layer)
    layers = tuple(name for name, _ in model.named_modules() if name)
    preprocessing = Preprocessing(size=(24, 24), resize=(24, 24))
    names = ClassNames(("red", "green", "blue"))
    return LoadedModel("small", model.eval(), preprocessing, names, layers, "drawn")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of three colours, a bank of them, and fitted concepts of three layers."""
    folder = tmp_path_factory.mktemp("graphs")
    draw = np.random.default_rng(0)
    rows = ["file,class_index"]
    (folder / "pictures").mkdir()
    for number in range(21):
        pixels = draw.integers(0, 90, (24, 24, 3), dtype=np.uint8)
        pixels[4:20, 4:20, number % 3] += 150
        Image.fromarray(pixels).save(folder / "pictures" / f"{number}.png")
        rows.append(f"{number}.png,{number % 3}")
    (folder / "pictures" / "labels.csv").write_text("\n".join(rows))
    loaded = network()
    samples = LabelledFolder(folder / "pictures", loaded.classes, preprocessing=loaded.preprocessing)
    bank = make_bank(loaded, samples, SITES, folder / "bank", sampling="uniform", per_image=6)
    for site in SITES:
        fit_concepts(bank, site, "KMeans", folder / site, modes=6, epochs=5)
    return folder


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backlight.cli.networks.load", lambda *args, **kwargs: network())


def run(*arguments: Any) -> Any:
    found = CliRunner().invoke(app, ["graph", *[str(one) for one in arguments]])
    if found.exception is not None and not isinstance(found.exception, SystemExit):
        raise found.exception
    assert found.exit_code == 0, found.stderr
    return found


def build(place: Path, image: str, out: Path, *more: Any) -> Any:
    folders = [word for site in reversed(SITES) for word in ("--concepts", place / site)]
    return run("build", place / "pictures" / image, *folders, "--out", out, *more)


def test_build_show_and_diff(place: Path, tmp_path: Path) -> None:
    options = ("--class", "red", "--class", "blue", "--top", 2, "--pairs", "all")
    record = json.loads(build(place, "0.png", tmp_path / "a", *options, "--json").stdout)
    assert [layer["site"] for layer in record["layers"]] == [*SITES, "output"]
    assert (tmp_path / "a" / "graph.html").is_file()
    assert (tmp_path / "a" / "graph.png").is_file()
    saved = ConceptGraph.load(tmp_path / "a" / "graph.json")
    loaded = network()
    layers = open_layers([place / site for site in SITES], model=loaded.model)
    x = loaded.preprocessing.tensor(place / "pictures" / "0.png")[None]
    again = build_graph(loaded, x, layers, classes=[0, 2], top=2, pairs="all", name="0.png")
    assert saved.as_json() == json.loads(json.dumps(again.as_json()))
    assert "field" in saved.graph.nodes[saved.of_layer("second", ["concept"])[0]]

    assert "routes" in build(place, "1.png", tmp_path / "b", *options).stdout
    shown = json.loads(run("show", tmp_path / "a" / "graph.json", "--class", "red", "--json").stdout)
    assert list(shown["routes"]) == ["0"]
    assert shown["mass"][0]["source"] == "first"
    told = run("show", tmp_path / "a" / "graph.json", "--min-share", 0.2, "--sign", "any").stdout
    for word in ("layers", "strongest edges", "residual", "red (0)"):
        assert word in told
    files = (tmp_path / "a" / "graph.json", tmp_path / "b" / "graph.json")
    between = json.loads(run("diff", *files, "--class", "red", "--json").stdout)
    graphs = [ConceptGraph.load(path) for path in files]
    assert between == graphs[0].difference(graphs[1], ("red", "red")).as_json()
    told = run("diff", files[0], files[0], "--class", "red", "--class", "blue", "--count", 3).stdout
    assert "class 0 in the first, 2 in the second" in told


def test_validate_says_what_the_curves_say(place: Path) -> None:
    folders = [word for site in reversed(SITES) for word in ("--concepts", place / site)]
    call = ("validate", place / "pictures" / "0.png", *folders, "--targets", 2, "--points", 5)
    told = json.loads(run(*call, "--operator", "IntegratedGradients,Random", "--json").stdout)
    assert [(one["from"], one["to"]) for one in told["rows"][::2]] == [SITES[:2], SITES[1:]]
    loaded = network()
    layers = open_layers([place / site for site in SITES], model=loaded.model)
    x = loaded.preprocessing.tensor(place / "pictures" / "0.png")[None]
    coded = code_sites(loaded.model, x, {site: (one.encode, one.atoms, one.offset) for site, one in layers.items()})
    parents, children = coded["first"], coded["second"]
    one = validate(
        loaded.model, x, parents, children, strongest(children, 2),
        {"IntegratedGradients": "IntegratedGradients"}, Protocol(points=5),
    ).curves["IntegratedGradients"]  # fmt: skip
    row = told["rows"][0]
    assert row["insertion max"] == pytest.approx(float(one.insertion[0].nanmean()), rel=1e-6)
    assert row["deletion max"] == pytest.approx(float(one.deletion[0].nanmean()), rel=1e-6)
    assert -1 <= row["spearman"] <= 1
    assert "first > second" in run(*call, "--operator", "GradientTimesInput").stdout
    with pytest.raises(InputError, match="two or more"):
        run("validate", place / "pictures" / "0.png", "-c", place / "first")
    with pytest.raises(UnknownNameError, match="IntegratedGradients"):
        run(*call, "--operator", "IntegratedGradient")


def test_wrong_calls(place: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--coder"):
        build(place, "0.png", tmp_path, "--set", "penalty=0.1")
    with pytest.raises(InputError, match="one for each"):
        run("diff", tmp_path, tmp_path, *["--class", "red"] * 3)
    with pytest.raises(InputError, match="cannot read"):
        run("show", tmp_path / "none.json")


def test_concepts_of_folders(place: Path) -> None:
    loaded = network()
    assert set(open_layers([place], model=loaded.model)) == set(SITES)
    with pytest.raises(InputError, match="give one"):
        open_layers([place / "first", place / "first"])
    with torch.no_grad():
        loaded.model[0].weight.mul_(2)  # type: ignore[index, operator]
    with pytest.raises(InputError, match="other weights"):
        open_layers([place / "first"], model=loaded.model)


def test_pictures_are_coded_as_the_folder_was(place: Path) -> None:
    with pytest.raises(UnknownNameError, match="coder"):
        open_layers([place / "first"], "Laso")
    concepts = encode_concepts(Concepts.open(place / "first"), coder="OMP", k=3)
    assert isinstance(concepts, Concepts)
    x = concepts.rows.read(0, 20)
    layer = open_layers([place / "first"], "omp")["first"]
    torch.testing.assert_close(layer.encode(x), concepts.codes.read(0, 20))
    assert int((layer.encode(x) != 0).sum(1).max()) == 3
    assert open_layers([place / "first"], "omp", k=1)["first"].about["coder"] == "OMP(k=1)"


def test_tags_and_exemplars_come_from_the_bank(place: Path) -> None:
    loaded = network()
    samples = LabelledFolder(place / "pictures", loaded.classes, preprocessing=loaded.preprocessing)
    bank = Bank.open(place / "bank", model=loaded, samples=samples)
    concepts = Concepts.open(place / "third", bank=bank)
    tags = tags_of(concepts)
    assert {name for of in tags.values() for name, _ in of} <= {"red", "green", "blue"}
    assert all(0 < r <= 1 for of in tags.values() for _, r in of)
    layer = layer_of(concepts)
    alive = int(concepts.statistics["frequency"].argmax())
    assert layer.exemplars is not None
    found = layer.exemplars(alive, 2)
    assert [one["crop"][:22] for one in found] == ["data:image/png;base64,"] * len(found)
    assert found[0]["image"].endswith(".png")
