"""`backlight evaluate`, with a tiny network in place of a real one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

pytest.importorskip("pyarrow")
pytest.importorskip("typer")
pytest.importorskip("matplotlib")
from small_run import assert_same_rows
from typer.testing import CliRunner

from backlight.cli import evaluating, networks
from backlight.cli.commands import app
from backlight.cli.evaluating import fitting, metrics_with_settings
from backlight.data import ClassNames, Preprocessing
from backlight.data.labelled import LabelledFolder
from backlight.errors import InputError, UnknownNameError
from backlight.evaluation import Evaluation
from backlight.metrics import METRICS
from backlight.models import LoadedModel

QUICK = ("--metrics", "FaithfulnessCorrelation,Infidelity:signed", "--metric-set", "Infidelity.repeats=1")


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(1)
    layers = (nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3))
    model = nn.Sequential(*layers).eval()
    how = Preprocessing((16, 16), (16, 16))
    names = tuple(name for name, _ in model.named_modules() if name)
    loaded = LoadedModel("tiny", model, how, ClassNames(("cat", "dog", "hen")), names, "random weights")
    monkeypatch.setattr(networks, "load", lambda *_, **__: loaded)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    for place in range(6):
        path = folder / ("cat", "dog", "hen")[place % 3] / f"{place}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(place).integers(0, 256, (20, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    return folder


def run(data: Path, out: Path, *arguments: object) -> Any:
    given = ["evaluate", "--data", data, "--out", out, "--methods", "Saliency,SmoothGrad", "--set", "n_samples=2"]
    return CliRunner().invoke(app, [str(one) for one in (*given, *arguments)])


def errors(result: Any) -> list[str]:
    return [line for line in result.stderr.splitlines() if line.startswith("backlight: error: ")]


def test_table_on_stdout_and_files(tmp_path: Path, data: Path) -> None:
    out = tmp_path / "out"
    result = run(data, out, *QUICK)
    assert result.exit_code == 0, result.output
    assert "SmoothGrad" in result.stdout
    assert "control: edges" in result.stdout
    assert "cannot tell a map from its negative" in result.stdout
    assert "6 images" in result.stderr
    there = {path.name for path in out.iterdir()}
    assert {"run.json", "results.parquet", "table.md", "table.csv", "table.tex", "table.json", "skipped.csv"} <= there
    assert {path.name for path in (out / "figures").iterdir()} == {
        "FaithfulnessCorrelation.png",
        "Infidelity-signed.png",
    }
    found = Evaluation.load(out)
    assert found.methods[:3] == ["Saliency", "SmoothGrad", "minus Saliency"]
    assert found.metrics == ["FaithfulnessCorrelation", "Infidelity:signed"]
    identity = found.run["identity"]
    assert identity["methods"]["SmoothGrad"]["settings"]["n_samples"] == 2
    assert identity["metrics"]["Infidelity:signed"]["settings"]["repeats"] == 1
    assert identity["metrics"]["Infidelity:signed"]["settings"]["scaling"] == "positive"
    assert identity["settings"]["model"] == "tiny"


def test_json_alone_on_stdout(tmp_path: Path, data: Path) -> None:
    result = run(data, tmp_path / "out", *QUICK, "--json", "--no-controls", "--baseline", "smoothgrad", "--limit", 2)
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    assert (record["samples"], record["baseline"]) == (2, "SmoothGrad")
    assert {line["method"] for line in record["table"]} == {"Saliency", "SmoothGrad", "minus SmoothGrad"}
    assert all(Path(file).is_file() for file in record["files"])


def test_without_matplotlib_the_tables_are_there(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluating, "find_spec", lambda name: None)
    result = run(data, tmp_path / "out", *QUICK, "--limit", 1)
    assert result.exit_code == 0, result.output
    assert "backlight[plots]" in result.stderr
    assert (tmp_path / "out" / "table.md").is_file()
    assert not (tmp_path / "out" / "figures").exists()


@pytest.mark.parametrize(
    ("given", "minus"),
    [
        ([], ["Saliency"]),
        (["--negatives", "none"], []),
        (["--negatives", "all"], ["Saliency", "SmoothGrad"]),
        (["--negatives", "smooth-grad"], ["SmoothGrad"]),
    ],
)
def test_negatives_are_chosen(data: Path, tmp_path: Path, given: list[str], minus: list[str]) -> None:
    result = run(data, tmp_path / "out", "--metrics", "Sparseness:ierf", "--limit", 1, "--no-controls", *given)
    assert result.exit_code == 0, result.output
    found = Evaluation.load(tmp_path / "out").methods
    assert [name.removeprefix("minus ") for name in found if name.startswith("minus ")] == minus


def test_an_interrupted_run_says_how_to_go_on_and_does(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load, loads = LabelledFolder.load, iter(range(100))

    def stopped(self: LabelledFolder, name: str) -> Any:
        if next(loads) == 3:
            raise KeyboardInterrupt
        return load(self, name)

    with monkeypatch.context() as patched:
        patched.setattr(LabelledFolder, "load", stopped)
        result = run(data, tmp_path / "out", *QUICK, "--images-at-once", 2)
    assert result.exit_code == 130
    assert "2 of 6 images are done; the same command goes on with the others" in result.stderr
    assert result.stdout == ""
    assert len(Evaluation.load(tmp_path / "out").samples) == 2
    assert run(data, tmp_path / "out", *QUICK).exit_code == 0
    assert run(data, tmp_path / "whole", *QUICK).exit_code == 0
    assert_same_rows(Evaluation.load(tmp_path / "out").rows, Evaluation.load(tmp_path / "whole").rows)


def test_other_settings_in_the_same_folder(tmp_path: Path, data: Path) -> None:
    assert run(data, tmp_path / "out", *QUICK, "--limit", 2).exit_code == 0
    result = run(data, tmp_path / "out", *QUICK, "--set", "n_samples=3")
    assert result.exit_code == 2
    assert "methods.SmoothGrad.settings.n_samples: 2 there, 3 now" in errors(result)[0]
    result = run(data, tmp_path / "out", *QUICK, "--target", "prediction")
    assert "settings.target: label there, prediction now" in errors(result)[0]
    assert run(data, tmp_path / "out", *QUICK, "--limit", 4).exit_code == 0
    assert len(Evaluation.load(tmp_path / "out").samples) == 4


def test_broken_pictures_are_told_listed_and_end_in_status_2(tmp_path: Path, data: Path) -> None:
    (data / "cat" / "torn.png").write_bytes((data / "cat" / "0.png").read_bytes()[:60])
    (data / "dog" / "empty.jpg").touch()
    result = run(data, tmp_path / "out", *QUICK)
    assert result.exit_code == 2
    assert len(errors(result)) == 2
    assert any("torn.png" in line for line in errors(result))
    assert "Saliency" in result.stdout
    found = Evaluation.load(tmp_path / "out")
    assert len(found.samples) == 6
    assert {one.sample for one in found.skipped} == {"cat/torn.png", "dog/empty.jpg"}
    assert "empty" in (tmp_path / "out" / "skipped.csv").read_text()


def test_the_prediction_needs_no_labels(tmp_path: Path, data: Path) -> None:
    (data / "loose.png").write_bytes((data / "cat" / "0.png").read_bytes())
    assert "has no label" in errors(run(data, tmp_path / "a", *QUICK))[0]
    assert run(data, tmp_path / "b", *QUICK, "--target", "prediction").exit_code == 0
    found = Evaluation.load(tmp_path / "b")
    assert list(found.rows["target"]) == list(found.rows["predicted"])


@pytest.fixture
def masked_metric() -> str:
    needy = [name for name, cls in METRICS.items() if "masks" in cls.needs]
    if not needy:
        pytest.skip("no metric compares maps with masks")
    return needy[0]


def test_masks(tmp_path: Path, data: Path, masked_metric: str) -> None:
    wanted = ("--metrics", masked_metric)
    everything = metrics_with_settings([], [], next(iter(METRICS[masked_metric].presets)))
    left = fitting(everything, LabelledFolder(data, ClassNames(("cat", "dog", "hen")), Preprocessing()), named=False)
    assert masked_metric in everything
    assert masked_metric not in left
    assert "give --masks DIR" in errors(run(data, tmp_path / "out", *wanted))[0]
    (tmp_path / "objects").mkdir()
    mask = np.zeros((20, 16), dtype=np.uint8)
    mask[5:12, 4:9] = 255
    for place in range(4):
        Image.fromarray(mask).save(tmp_path / "objects" / f"{place}.png")
    result = run(data, tmp_path / "out", *wanted, "--masks", tmp_path / "objects")
    assert result.exit_code == 0, result.output
    found = Evaluation.load(tmp_path / "out")
    assert found.table(masked_metric)["Saliency"].n == 4
    assert f"{masked_metric} is defined for 4 of 6 samples." in result.stdout


def test_settings_of_metrics_are_of_their_annotated_types() -> None:
    def made(name: str, *given: str) -> dict[str, Any]:
        (found,) = metrics_with_settings([name], given, None).values()
        return found.settings()

    assert made("FaithfulnessCorrelation", "fill=mean", "absolute=false")["fill"] == "mean"
    assert made("FaithfulnessCorrelation", "fill=1")["fill"] == 1.0
    assert made("FaithfulnessEstimate", "step=256")["step"] == 256
    assert type(made("FaithfulnessEstimate", "step=256")["step"]) is int
    assert made("ParameterRandomisation", "layers=2")["layers"] == 2
    assert made("Deletion", "steps=null")["steps"] is None
    assert made("Infidelity", "patches=16")["patches"] == (16.0,)
    assert made("Infidelity", "patches=[16, 0.25]")["patches"] == (16.0, 0.25)
    with pytest.raises(InputError, match="a whole number or null"):
        made("Deletion", "steps=many")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--metrics", "Infidelty"], "close matches: Infidelity"),
        (["--metrics", "Infidelity:pulback"], "close matches: pullbacks"),
        (["--preset", "pulbacks"], "close matches: pullbacks"),
        (["--metrics", "Infidelity", "--preset", "ierf"], "unknown preset of Infidelity 'ierf'"),
        (["--metric-set", "repeat=2", "--metrics", "Infidelity"], "close matches: repeats"),
        (["--metric-set", "Fidelity.repeats=2", "--metrics", "Infidelity"], "metric among those chosen"),
        (["--metric-set", "repeats=many", "--metrics", "Infidelity"], "whole number"),
        (["--methods", "Salience"], "close matches: Saliency"),
        (["--baseline", "GradCAM"], "baseline among the methods"),
        (["--negatives", "GradCAM"], "method to negate among the methods"),
        (["--negatives", "saliancy"], "Saliency"),
        (["--data", "/no/such/folder"], "no such folder"),
        (["--metrics", "Infidelity", "--metric-set", "scaling=optimum"], "unknown scaling 'optimum'"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(tmp_path: Path, data: Path, arguments: list[str], said: str) -> None:
    result = run(data, tmp_path / "out", *arguments)
    assert result.exit_code == 2, result.output
    assert len(errors(result)) == 1
    assert said in errors(result)[0]
    assert result.stdout == ""


def test_metrics_by_preset_name_and_setting() -> None:
    found = metrics_with_settings(
        ["infidelity,Infidelity:signed", "faithfulness-correlation"], ["infidelity.repeats=3", "patch=0.5"], None
    )
    assert list(found) == ["Infidelity", "Infidelity:signed", "FaithfulnessCorrelation"]
    assert [found[name].settings()["repeats"] for name in ("Infidelity", "Infidelity:signed")] == [3, 3]
    assert found["Infidelity:signed"].settings()["scaling"] == "positive"
    assert found["FaithfulnessCorrelation"].settings()["patch"] == 0.5
    only = metrics_with_settings(["Infidelity,Infidelity:signed"], ["Infidelity:signed.repeats=3"], None)
    assert [one.settings()["repeats"] for one in only.values()] == [5, 3]
    own = metrics_with_settings([], [], "quantus")
    assert set(own) == {name for name, cls in METRICS.items() if "quantus" in cls.presets}
    assert own["Infidelity"].settings()["scaling"] == "none"
    assert set(metrics_with_settings([], [], None)) == {n for n, cls in METRICS.items() if "pullbacks" in cls.presets}
    assert found["Infidelity"].settings()["patches"] == (0.5, 0.25)
    tuples = metrics_with_settings(["Infidelity"], ["patches=[0.5, 0.125]"], None)
    assert tuples["Infidelity"].settings()["patches"] == (0.5, 0.125)
    with pytest.raises(InputError, match="NAME=VALUE"):
        metrics_with_settings(["Infidelity"], ["repeats"], None)
    with pytest.raises(UnknownNameError, match="setting of"):
        metrics_with_settings(["Infidelity"], ["wrong=1"], None)
