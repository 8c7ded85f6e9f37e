"""`backlight control`: splits, concepts, tables beside the published numbers, figures, export, errors."""

from __future__ import annotations

import csv
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

from backlight.cli import control as command
from backlight.cli.commands import app
from backlight.cli.networks import Network
from backlight.contributions.control import ChannelEdit
from backlight.contributions.control import control as controlling
from backlight.contributions.control_study import class_concepts, control_study, known_names, labels_of, split
from backlight.contributions.control_tables import published, published_relative
from backlight.contributions.decompose import decompose
from backlight.contributions.decomposed import open_decomposed
from backlight.data.classes import ClassNames
from backlight.data.images import Preprocessing
from backlight.errors import InputError
from backlight.evaluation.identity import model_hash
from backlight.models.loaded import LoadedModel
from backlight.store import ArraySamples, Store
from backlight.store.marks import Mark

CLASSES, WIDTH, COUNT = 3, 6, 30
NAMES = ClassNames(("red", "green", "blue"))


class Colours(nn.Module):
    """Sees which colour is the brightest, by two channels each."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Conv2d(3, WIDTH, 1, bias=False), nn.Linear(WIDTH, CLASSES, bias=False)
        with torch.no_grad():
            self.layer.weight.copy_(torch.eye(3).repeat_interleave(2, 0)[:, :, None, None])
            self.head.weight.copy_(torch.eye(3).repeat_interleave(2, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x).relu().mean((2, 3)))


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Pictures in a file, a store of 24 of the 30, decompositions of contributions and activations."""
    draw = np.random.default_rng(0)
    labels = np.arange(COUNT) % CLASSES
    pictures = draw.integers(0, 60, (COUNT, 4, 4, 3)).astype(np.uint8)
    pictures[np.arange(COUNT), :, :, labels] += 160
    data = tmp_path / "colours.npz"
    np.savez(data, x_test=pictures, y_test=labels)
    samples, net = ArraySamples(data), Colours().eval()
    preprocessing = Preprocessing(size=(4, 4), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    loaded = LoadedModel("colours", net, preprocessing, NAMES, ("layer", "head"), "")
    network = Network(loaded, loaded.pixels(), torch.device("cpu"))
    monkeypatch.setattr(command, "opened", lambda *_: network)
    drawn = command.figures  # drawn in one test alone: they take their time
    monkeypatch.setattr(command, "figures", lambda *_: [])
    names = samples.names[:24]
    x = torch.stack([(samples.load(name).inputs + 1) / 2 for name in names])
    own = torch.tensor([samples.load(name).target for name in names])
    activations = net.layer(x).relu().detach()
    rows = activations.sum((2, 3)) * net.head.weight.detach()[own]
    identity = {"model": {"name": "colours", "parameters": model_hash(net)}}
    store = Store.of(
        tmp_path / "store",
        {"layer": {"contributions": rows, "activations": activations.sum((2, 3))}},
        names=names,
        columns={"label": own},
        identity=identity,
    )
    folders = []
    for quantity in ("contributions", "activations"):
        folder = tmp_path / quantity
        decompose(store, "layer", "ClassMeans", folder, quantity=quantity, sign="sum", held_out=0.5)
        folders.append(folder)
    found = {"folders": folders, "data": data, "samples": samples, "network": network, "figures": drawn}
    return SimpleNamespace(**found, out=tmp_path / "o")


def invoke(made: Any, *more: str) -> Any:
    arguments = ["control", *map(str, made.folders), "--data", str(made.data), "--out", str(made.out), *more]
    return CliRunner().invoke(app, [*arguments, "--fractions", ".34,.67", "--min-images", "2", "--random", "2"])


def test_the_command_writes_tables_and_figures(made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(command, "figures", made.figures)
        found = invoke(made, "--json")
    assert found.exit_code == 0, found.output
    record = json.loads(found.stdout)
    assert record["concepts"] == ["red", "green", "blue"]
    assert record["settings"]["split"] == "held out"
    assert record["before"] == {"target": {"top1": 1.0, "top5": 1.0}, "off-target": {"top1": 1.0, "top5": 1.0}}
    assert record["directions"] == [
        "mode of contributions",
        "mode of activations",
        "mean contribution",
        "contrast of contributions",
        "best channels by contributions",
        "mean activation",
        "contrast of activations",
        "best channels by activations",
        "random channels",
    ]
    assert {path.name for path in made.out.iterdir()} >= {
        "areas.csv", "areas.png", "control.json", "curves.csv", "curves.png", "run.json", "trials",
    }  # fmt: skip
    rows = list(csv.DictReader((made.out / "curves.csv").open()))
    point = {
        "direction": "mode of contributions",
        "action": "ablate",
        "fraction": "0.34",
        "measure": "ratio",
        "top": "1",
    }
    by_side = {
        row["side"]: float(row["mean"]) for row in rows if all(row[key] == value for key, value in point.items())
    }
    assert by_side == {"target": 0.0, "off-target": 1.0}
    areas = list(csv.DictReader((made.out / "areas.csv").open()))
    assert len(areas) == 2 * 2 * 2 * len(record["directions"]) == len(record["areas"])
    assert float(areas[0]["absolute"]) == pytest.approx(0.5 * 0.34 - 1 + 0.33 / 2, abs=0.2)
    again = invoke(made)
    assert again.exit_code == 0
    assert "mode of contributions" in again.stdout
    assert "published" not in again.stdout
    assert "others" in again.stdout
    assert invoke(made, "--fill", "mean").exit_code == 2  # the folder holds zeros


def test_one_class_is_exported(made: Any, tmp_path: Path) -> None:
    path = tmp_path / "green.pt2"
    found = invoke(made, "--class", "green", "--ablate", "--export", str(path), "--fraction", "0.34")
    assert found.exit_code == 0, found.output
    program = torch.export.load(path).module()
    net, x = made.network.loaded.model, torch.rand(3, 3, 4, 4)
    with torch.no_grad(), controlling(net, {"layer": ChannelEdit([2, 3])}):
        assert torch.allclose(program(x), net(x), atol=1e-6)
    several = invoke(made, "--export", str(path))
    assert several.exit_code == 2
    assert "one --class" in several.stderr


def test_concepts_of_a_hierarchy(made: Any, tmp_path: Path) -> None:
    tree = tmp_path / "tree.json"
    tree.write_text(json.dumps({"warm": ["red", "green"], "cold": ["blue"]}))
    found = invoke(made, "--concept", "warm", "--hierarchy", str(tree), "--above", "0.2", "--preserve", "--json")
    assert found.exit_code == 0, found.output
    record = json.loads(found.stdout)
    assert record["concepts"] == ["warm"]
    assert "2 modes" in record["modes"]["mode of contributions"][0]
    assert record["actions"] == ["preserve"]
    assert record["areas"][0]["absolute_low"] is None  # one concept says nothing about others


@pytest.mark.parametrize(
    ("more", "text"),
    [
        (("--class", "gren"), "green"),
        (("--fractions", "x"), "numbers between commas"),
        (("--min-images", "9"), "9 images to choose"),
        (("--preset", "paper", "--class", "red"), "disjoint"),
    ],
)
def test_errors_say_what_to_do(made: Any, more: tuple[str, ...], text: str) -> None:
    arguments = ["control", *map(str, made.folders), "--data", str(made.data), "--out", str(made.out), *more]
    found = CliRunner().invoke(app, arguments)
    assert found.exit_code == 2
    assert text in found.stderr


def study(made: Any, **settings: Any) -> Any:
    decomposed = [open_decomposed(folder) for folder in reversed(made.folders)]  # contributions come first anyway
    given = {"classes": NAMES, "prefix": "network.", "least": 2, "fractions": (0.34,), "random": 1}
    return control_study(decomposed, made.network.front, made.samples, **(given | settings))


class Moved:
    """The same pictures under a folder above theirs."""

    def __init__(self, samples: Any) -> None:
        self.samples, self.names = samples, [f"above/{name}" for name in samples.names]

    def content(self, name: str) -> str:
        return self.samples.content(name.removeprefix("above/"))

    def load(self, name: str) -> Any:
        return self.samples.load(name.removeprefix("above/"))

    @property
    def fingerprint(self) -> str:
        return self.samples.fingerprint


def test_what_is_measured_was_neither_fitted_nor_used_to_choose(made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    decomposed = [open_decomposed(folder) for folder in made.folders]
    names = made.samples.names
    parts = split(decomposed, names)
    fitted = {name for one in decomposed for name, out in zip(one.store.names, one.held_out, strict=True) if not out}
    assert parts.how == "held out"
    assert {name for name, one in zip(names, parts.measured, strict=True) if one} == set(names) - fitted
    for one in decomposed:
        choosing = {name for name, used in zip(one.store.names, parts.used[str(one.folder)], strict=True) if used}
        assert choosing == fitted
    whole = [replace(one, held_out=np.zeros(24, dtype=bool)) for one in decomposed]
    outside = split(whole, names)  # six pictures are not in the store
    assert (outside.how, outside.measured.sum()) == ("held out", 6)
    halves = split(whole, names[:24], seed=1)
    assert (halves.how, halves.measured.sum()) == ("halves", 12)
    assert halves.used[str(made.folders[0])].sum() == 12
    assert split(decomposed, names, held_out=False).measured.all()
    contents = [made.samples.content(name) for name in names[:24]]
    room = sys.modules["backlight.contributions.control_study"]  # the package has a function of that name
    monkeypatch.setattr(room, "read_marks", lambda folder: {0: Mark(0, list(names[:24]), contents)})
    moved = Moved(made.samples)
    assert known_names(moved, decomposed)[:24] == list(names[:24])
    assert split(decomposed, known_names(moved, decomposed)).measured[:24].tolist() == parts.measured[:24].tolist()
    labels = labels_of(made.samples, decomposed)
    assert labels.tolist() == [made.samples.load(name).target for name in names]
    with pytest.raises(InputError, match="0 classes"):
        class_concepts(labels, parts, decomposed, NAMES, 20)


def test_a_study_by_the_papers_protocol_and_with_other_fills(made: Any) -> None:
    paper = study(made, preset="paper", trials=4, images=2).measure()
    assert paper.sizes.tolist() == [[2, 2]] * 4
    for fill in ("mean", "resample"):
        one = study(made, fill=fill)
        measured = set(np.flatnonzero(one.split.measured).tolist())
        assert not measured & set(one.reference)
        curves = one.measure()
        assert curves.after.shape == (3, 2, 1, len(one.design.directions), 2, 3, 2)
    edits = study(made, fill="mean").edits(concept=1, fraction=0.34, action="preserve")
    assert edits["layer"].channels == (2, 3)
    assert edits["layer"].removed(6).tolist() == [True, True, False, False, True, True]


def test_another_network_is_refused(made: Any) -> None:
    with torch.no_grad():
        made.network.loaded.model.head.weight[0, 0] += 1
    with pytest.raises(InputError, match="other weights"):
        study(made)


def test_the_network_of_a_store_is_opened_with_its_weights(tmp_path: Path) -> None:
    import backlight
    from backlight.cli.control import opened

    state = torch.random.get_rng_state()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        expected = backlight.load("cifar10_resnet20", pretrained=False).model
    about = {"weights": None, "random_weights": True, "seed": 3}
    store = SimpleNamespace(identity={"model": {"name": "cifar10_resnet20"}}, about=about)
    found = opened(SimpleNamespace(store=store, folder=tmp_path), None, None, False, None, "cpu")
    assert model_hash(found.loaded.model) == model_hash(expected)
    assert torch.equal(state, torch.random.get_rng_state())
    with pytest.raises(InputError, match="--model"):
        opened(
            SimpleNamespace(store=SimpleNamespace(identity={}, about={}), folder=tmp_path),
            *[None] * 2,
            False,
            None,
            "cpu",
        )


def test_published_numbers_stand_where_they_apply() -> None:
    assert len(published()) == 32
    curves: Any = SimpleNamespace(settings={"networks": ["resnet50.tv_in1k"], "fill": "zero"})
    assert published_relative(curves, "layer3.2", "mode of contributions", "preserve") == 1.047
    assert published_relative(curves, "layer4.2", "mode of activations", "ablate") == -0.863
    assert published_relative(curves, "layer1.0", "mode of contributions", "ablate") is None
    assert published_relative(curves, "layer3.2", "random channels", "ablate") is None
    curves.settings["fill"] = "mean"
    assert published_relative(curves, "layer3.2", "mode of contributions", "preserve") is None
