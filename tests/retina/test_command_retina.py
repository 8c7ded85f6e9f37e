"""`backlight retina` from a simulated movie to a figure, and its errors in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from backlight.cli.commands import app
from backlight.cli.retina import METHOD
from backlight.models.retina_checkpoints import load_retina
from backlight.retina import analysis
from backlight.retina.recording import Recording

SMALL = ["--size", "8", "--frames", "8", "--cells", "3", "--types", "ON,OFF"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("retina")
    for name, number, repeats in (("train", 1, 1), ("test", 2, 3)):
        given = ["--windows", "300", "--movie-seed", str(number), "--repeats", str(repeats)]
        made = CliRunner().invoke(app, ["retina", "simulate", "-o", str(place / f"{name}.safetensors"), *SMALL, *given])
        assert made.exit_code == 0, made.output
    return place


def test_from_movie_to_figure(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train, test, fitted = (str(folder / name) for name in ("train.safetensors", "test.safetensors", "fit"))
    recording = Recording.load(train)
    assert recording.counts.shape == (1, 300, 3)
    assert recording.about["types"] == ["ON", "OFF", "ON"]
    options = ["--kernels", "3,3", "--channels", "2", "--epochs", "2", "--device", "cpu", "--json"]
    fit = ["retina", "fit", train, "-o", fitted, "--test", test, *options]
    made = CliRunner().invoke(app, fit)
    assert made.exit_code == 0, made.output
    told = json.loads(made.stdout)
    assert told["epochs"] == 2
    assert METHOD == analysis.METHOD
    assert len(told["test"]["ceiling"]) == 3
    assert json.loads(CliRunner().invoke(app, fit).stdout) == told  # a finished folder is read
    network = load_retina(folder / "fit" / "network.safetensors")
    assert network.settings["kernels"] == [3, 3]
    out = str(folder / "modes")
    monkeypatch.setattr("backlight.cli.retina.LINE_EVERY", 0.0)
    method = ["--method", "ThresholdSAE:retina", "--set", "epochs=2", "--modes", "6", "--steps", "2", "--json"]
    made = CliRunner().invoke(app, ["retina", "analyse", fitted, train, test, "-o", out, *method])
    assert made.exit_code == 0, made.output
    assert "held-out movie: 300 of 300 windows" in made.stderr
    told = json.loads(made.stdout)
    assert [one["site"] for one in told["sites"]] == ["first.convolution", "second.convolution"]
    assert all(one["modes"] == 6 and len(one["clusters"]) == 3 for one in told["sites"])
    assert Path(told["figure"]).stat().st_size > 10_000
    assert Path(told["figure"]).name == "retina-thresholdsae-retina.png"
    assert all(-1 <= one["types"]["index"] <= 1 for one in told["sites"])  # a simulated recording knows its types
    assert made.stderr.count("no mode is on") == sum(one["alive"] == 0 for one in told["sites"])
    made = CliRunner().invoke(
        app, ["retina", "analyse", fitted, train, test, "-o", out, "--steps", "2", "--set", "epochs=3", "--modes", "6"]
    )
    assert made.exit_code == 0, made.output
    assert "second.convolution: pass 3 of 3" in made.stderr
    assert {one.name for one in Path(out).glob("*.png")} == {"retina.png", "retina-thresholdsae-retina.png"}


def test_errors_in_one_line(folder: Path) -> None:
    train = str(folder / "train.safetensors")
    for given, message in (
        (["simulate", "-o", str(folder / "x"), "--stimulus", "naturalmovie"], "natural_movie"),
        (["fit", train, "-o", str(folder / "y"), "--kernels", "15"], "two widths"),
        (["fit", str(folder / "none"), "-o", str(folder / "y")], "cannot read"),
        (["analyse", str(folder / "none"), train, train], "no such file"),
    ):
        made = CliRunner().invoke(app, ["retina", *given])
        assert made.exit_code == 2
        assert made.stderr.startswith("backlight: error: ")
        assert message in made.stderr
