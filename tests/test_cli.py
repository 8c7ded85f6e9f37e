"""The command line: what it writes, what it says, and how it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import backlight
from backlight.data import sample_image
from backlight.errors import BacklightError

pytest.importorskip("typer")
pytest.importorskip("matplotlib")
from typer.testing import CliRunner

from backlight.cli.commands import app
from backlight.methods import method

MODEL = "efficientnet_lite0"


@pytest.fixture(scope="module")
def loaded() -> Any:
    try:
        return backlight.load(MODEL)
    except BacklightError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def cat(tmp_path_factory: pytest.TempPathFactory, loaded: Any) -> Path:
    path = tmp_path_factory.mktemp("pictures") / "cat.png"
    sample_image("chelsea").save(path)
    return path


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def errors(result: Any) -> list[str]:
    return [line for line in result.stderr.splitlines() if line.startswith("backlight: error: ")]


def shell(*arguments: object, **settings: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "backlight.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, **settings)


def test_explain_writes_figure_and_arrays_and_valid_json(tmp_path: Path, cat: Path) -> None:
    out = tmp_path / "new" / "folder"
    settings = ("--set", "n_steps=3", "--set", "SoftPullback.temperature=relative:0.5")
    result = run("explain", cat, "--method", "SoftPullback,IntegratedGradients", "--json", "--out", out, *settings)
    assert result.exit_code == 0, result.output
    (record,) = json.loads(result.stdout)
    assert record["target"]["name"] == "tiger cat"
    assert record["target"] == record["top5"][0]
    assert [one["probability"] for one in record["top5"]] == sorted(
        (one["probability"] for one in record["top5"]), reverse=True
    )
    assert Image.open(record["figure"]).width > 500
    assert set(record["methods"]) == {"SoftPullback", "IntegratedGradients"}
    integrated = record["methods"]["IntegratedGradients"]
    assert integrated["settings"]["n_steps"] == 3
    assert integrated["cost"]["backwards"] == 3
    assert isinstance(integrated["residual"], float)
    assert record["methods"]["SoftPullback"]["residual"] is None
    assert "Relative(c=0.5" in record["methods"]["SoftPullback"]["settings"]["temperature"]
    assert {"operation": "linear", "rule": "exact", "calls": 1, "layers": 1} in record["methods"]["SoftPullback"][
        "coverage"
    ]
    assert sorted(path.name for path in out.iterdir()) == [
        "cat.IntegratedGradients.npz",
        "cat.SoftPullback.npz",
        "cat.explanation.png",
    ]


def test_arrays_equal_the_api(tmp_path: Path, cat: Path, loaded: Any) -> None:
    assert run("explain", cat, "--out", tmp_path, "--target", "n02123045").exit_code == 0
    saved = np.load(tmp_path / "cat.SoftPullback.npz")
    x = 2 * loaded.preprocessing.image(cat)[None] - 1
    torch.testing.assert_close(torch.from_numpy(saved["input"]), x[0], rtol=0, atol=0)
    expected = backlight.SoftPullback(loaded.pixels()).attribute(x, target=281)[0]
    torch.testing.assert_close(torch.from_numpy(saved["attribution"]), expected, rtol=1e-5, atol=1e-7)
    about = json.loads(str(saved["metadata"]))
    assert int(saved["target"]) == about["target"]["index"] == 281
    assert about["target"]["name"] == "tabby"
    assert (about["method"], about["model"], about["version"]) == ("SoftPullback", MODEL, backlight.__version__)
    assert about["settings"] == method("SoftPullback").settings()


def test_a_class_activation_map_has_a_layer_of_its_own(tmp_path: Path, cat: Path, loaded: Any) -> None:
    result = run(
        "explain", cat, "-t", 282, "--method", "GradCAM", "--set", "layer=blocks.4", "--out", tmp_path, "--json"
    )
    assert result.exit_code == 0, result.output
    (record,) = json.loads(result.stdout)
    assert record["methods"]["GradCAM"]["settings"]["layer"] == "blocks.4"
    assert record["methods"]["GradCAM"]["shape"] == [1, 224, 224]
    with np.load(tmp_path / "cat.GradCAM.npz") as arrays:
        x = torch.from_numpy(arrays["input"])[None]
        expected = method("GradCAM")(loaded.pixels(), layer="network.blocks.4").attribute(x, 282)[0]
        assert np.array_equal(arrays["attribution"], expected.numpy())


def test_hidden_layer_is_the_networks_own_name(tmp_path: Path, cat: Path, loaded: Any) -> None:
    assert run("explain", cat, "--out", tmp_path, "--layer", "blocks.4", "-t", 282).exit_code == 0
    saved = np.load(tmp_path / "cat.SoftPullback.npz")["attribution"]
    x = 2 * loaded.preprocessing.image(cat)[None] - 1
    expected = backlight.SoftPullback(loaded.pixels()).attribute(x, target=282, sites="network.blocks.4")[0]
    assert saved.shape == tuple(expected.shape)
    torch.testing.assert_close(torch.from_numpy(saved), expected, rtol=1e-5, atol=1e-7)


def test_bad_pictures_get_a_line_each_and_the_others_are_done(tmp_path: Path, cat: Path) -> None:
    (tmp_path / "text.jpg").write_text("not a picture")
    (tmp_path / "empty.png").touch()
    (tmp_path / "cut.png").write_bytes(cat.read_bytes()[:20_000])
    (tmp_path / "nothing").mkdir()
    named = [tmp_path / name for name in ("text.jpg", "missing.png", "empty.png", "cut.png", "nothing")]
    result = run("explain", *named, cat, "--out", tmp_path / "out", "--json", "--method", "Saliency")
    assert result.exit_code == 2
    lines = errors(result)
    assert len(lines) == len(named)
    for path in named:
        assert sum(str(path) in line for line in lines) == 1, lines
    assert "Traceback" not in result.output
    records = json.loads(result.stdout)
    assert sorted("error" in record for record in records) == [False] + [True] * len(named)
    assert (tmp_path / "out" / "cat.explanation.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--method", "SoftPulback"], "close matches: SoftPullback"),
        (["--model", "efficientnet_light0"], "close matches: efficientnet_lite0"),
        (["--target", "tiger kat"], "tiger cat"),
        (["--target", "1000"], "expected 0 to 999"),
        (["--layer", "block.4"], "close matches: blocks.4"),
        (["--layer", "blocks.4:outside"], "NAME:input"),
        (["--method", "PullbackAscent", "--layer", "blocks.4"], "moves the input"),
        (["--method", "GradCAM", "--layer", "blocks.4"], "--set layer=blocks.4"),
        (["--method", "GradCAM", "--set", "layer=block.4"], "close matches: blocks.4"),
        (["--method", ","], "no method"),
        (["--set", "temperatur=1"], "close matches: temperature"),
        (["--set", "temperature"], "NAME=VALUE"),
        (["--temperature", "-1"], ">= 0"),
        (["--temperature", "NaN"], "unknown temperature 'NaN'"),
        (["--method", "SmoothGrad", "--set", "n_samples=many"], "whole number"),
        (["--method", "SmoothGrad", "--set", "n_samples=0"], "at least 1"),
        (["--method", "SmoothGrad", "--set", "stdev=inf"], "finite"),
        (["--method", "PullbackAscent", "--set", "radius=wide"], "settings of PullbackAscent"),
        (["--weights", "/no/such/file.pth"], "no such file"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(tmp_path: Path, cat: Path, arguments: list[str], said: str) -> None:
    result = run("explain", cat, "--out", tmp_path, *arguments)
    assert result.exit_code == 2, result.output
    assert len(errors(result)) == 1
    assert said in errors(result)[0]
    assert "Traceback" not in result.output
    assert result.stdout == ""
    assert not list(tmp_path.iterdir())


def test_out_that_is_a_file_or_closed_is_an_error(tmp_path: Path, cat: Path) -> None:
    taken = tmp_path / "taken"
    taken.write_text("precious")
    for out in (taken, taken / "below"):
        result = run("explain", cat, "--out", out)
        assert result.exit_code == 2
        assert "cannot write to" in errors(result)[0]
    assert taken.read_text() == "precious"
    if os.geteuid() != 0:
        closed = tmp_path / "closed"
        closed.mkdir(mode=0o500)
        assert "cannot write to" in errors(run("explain", cat, "--out", closed))[0]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_missing_device_is_an_error(tmp_path: Path, cat: Path) -> None:
    result = run("explain", cat, "--out", tmp_path, "--device", "cuda")
    assert result.exit_code == 2
    assert "no CUDA device" in errors(result)[0]


def test_pictures_of_every_mode(tmp_path: Path, loaded: Any) -> None:
    source = tmp_path / "in"
    source.mkdir()
    photograph = sample_image("coffee").resize((96, 64))
    photograph.convert("CMYK").save(source / "cmyk.jpg")
    photograph.convert("RGBA").save(source / "rgba.png")
    photograph.convert("L").save(source / "grey.png")
    photograph.convert("P").save(source / "palette.gif")
    Image.fromarray((np.arange(64 * 64).reshape(64, 64) * 15).astype(np.uint16)).save(source / "sixteen.png")
    Image.new("RGB", (1, 1), "red").save(source / "dot.png")
    Image.new("RGB", (400, 3), "red").save(source / "strip.png")
    result = run("explain", source, "--out", tmp_path / "out", "--method", "Saliency", "--json")
    assert result.exit_code == 0, result.output
    records = json.loads(result.stdout)
    assert len(records) == 7
    assert all(np.isfinite(record["methods"]["Saliency"]["norm"]) for record in records)


def test_same_names_do_not_collide_and_pictures_are_not_overwritten(tmp_path: Path, cat: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        sample_image("coffee").save(tmp_path / folder / "cup.png")
    sample_image("coffee").save(tmp_path / "a" / "cup.jpg")
    before = (tmp_path / "a" / "cup.png").read_bytes()
    result = run("explain", tmp_path / "a", tmp_path / "b", "--method", "Saliency", "--out", tmp_path / "a", "--json")
    assert result.exit_code == 0, result.output
    figures = {record["figure"] for record in json.loads(result.stdout)}
    assert len(figures) == 3
    assert all(Path(figure).is_file() for figure in figures)
    assert (tmp_path / "a" / "cup.png").read_bytes() == before


@pytest.mark.parametrize("along", ["pullback", "gradient"])
def test_counterfactual(tmp_path: Path, cat: Path, along: str) -> None:
    settings = ("--steps", 3, "--along", along, "--radius", 40, "--format", "svg")
    result = run("counterfactual", cat, "--to", "tiger", "--out", tmp_path, "--json", *settings)
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    paths = record["trajectories"]
    assert {len(path) for path in paths.values()} == {4}
    assert paths["target_probability"][-1] > paths["target_probability"][0]
    assert max(paths["distance"]) <= 40 + 1e-3
    assert record["settings"]["temperature"] == method("Counterfactual").settings()["temperature"]
    assert record["original"]["name"] == "tiger cat"
    assert record["target"]["name"] == "tiger"
    saved = np.load(record["array"])
    assert saved["perturbed"].min() >= -1
    assert saved["perturbed"].max() <= 1
    np.testing.assert_allclose(saved["difference"], saved["perturbed"] - saved["input"], atol=1e-6)
    shown = np.asarray(Image.open(record["perturbed"])).transpose(2, 0, 1) / 127.5 - 1
    assert np.abs(shown - saved["perturbed"]).max() <= 1 / 255 + 1e-6
    assert Path(record["figure"]).read_text().startswith("<?xml")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--to", "tigr"], "close matches: tiger"),
        (["--to", "tiger", "--temperature", "warm"], "unknown temperature"),
        (["--to", "tiger", "--steps", "0"], "greater than or equal to 1"),
    ],
)
def test_wrong_counterfactuals_end_in_one_error(tmp_path: Path, cat: Path, arguments: list[str], said: str) -> None:
    result = run("counterfactual", cat, "--out", tmp_path, *arguments)
    assert result.exit_code == 2
    assert said in result.stderr
    assert "Traceback" not in result.output


def test_segment_writes_a_mask_of_the_pictures_size(tmp_path: Path, cat: Path, loaded: Any) -> None:
    pytest.importorskip("cv2")
    out = tmp_path / "new"
    result = run("segment", cat, "-t", "tabby", "--method", "SoftPullback", "--out", out, "--json", "--foreground", 0.9)
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    assert (record["target"]["name"], record["method"]) == ("tabby", "SoftPullback")
    assert record["settings"]["foreground"] == 0.9
    assert record["size"] == list(Image.open(cat).size)
    mask = np.asarray(Image.open(record["mask"])) > 127
    assert mask.shape == tuple(reversed(record["size"]))
    rows, columns = np.nonzero(mask)
    assert record["box"] == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    assert abs(record["share"] - mask.mean()) < 1e-12
    saved = np.load(record["array"])
    how = Image.Resampling[loaded.preprocessing.interpolation.upper()]
    squashed = np.asarray(Image.open(cat).resize((224, 224), how))
    assert np.abs(saved["input"] - (squashed.transpose(2, 0, 1) / 127.5 - 1)).max() < 1e-5  # the whole picture
    value = backlight.SoftPullback(loaded.pixels()).attribute(torch.from_numpy(saved["input"])[None], 281)[0]
    torch.testing.assert_close(torch.from_numpy(saved["attribution"]), value, rtol=1e-4, atol=1e-6)
    expected = backlight.weak_segmentation(cat, saved["attribution"], foreground=0.9)
    np.testing.assert_array_equal(expected.mask, mask)
    np.testing.assert_array_equal(expected.seeds, saved["seeds"])
    assert Image.open(record["figure"]).width > 500


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--target", "tigr"], "close matches: tiger"),
        (["--method", "SoftPulback"], "close matches: SoftPullback"),
        (["--method", "SoftPullback,Saliency"], "one method makes one mask"),
        (["--method", "PullbackAscent"], "moves the input"),
        (["--set", "crps=true"], "close matches: crop"),
        (["--foreground", "0.2"], "background < foreground"),
        (["--reduce", "sum"], "'magnitude'"),
    ],
)
def test_wrong_segmentations_end_in_one_error(tmp_path: Path, cat: Path, arguments: list[str], said: str) -> None:
    pytest.importorskip("cv2")
    result = run("segment", cat, "--out", tmp_path, *arguments)
    assert result.exit_code == 2
    assert said in result.stderr
    assert result.stdout == ""
    assert "Traceback" not in result.output
    assert not list(tmp_path.iterdir())


def test_class_models_are_the_apis(tmp_path: Path, loaded: Any) -> None:
    settings = ("--set", "n_steps=3", "--set", "jitter=2", "--json", "--format", "svg")
    result = run("class-model", "flamingo", 281, "n02007558", "--out", tmp_path, *settings)
    assert result.exit_code == 0, result.output
    records = json.loads(result.stdout)
    assert [record["target"]["index"] for record in records] == [130, 281]  # the synset is the flamingo again
    maker = backlight.ClassModel(loaded.model, n_steps=3, jitter=2)
    expected = maker.visualise([130, 281], loaded.preprocessing)
    for place, record in enumerate(records):
        assert len(record["scores"]) == 4
        assert record["settings"] == {**backlight.ClassModel.settings(), "n_steps": 3, "jitter": 2}
        saved = np.load(record["array"])
        torch.testing.assert_close(torch.from_numpy(saved["image"]), expected.image[place], rtol=1e-3, atol=1e-6)
        shown = np.asarray(Image.open(record["picture"])).transpose(2, 0, 1) / 255
        picture = expected.picture(loaded.preprocessing, record["contrast"])[place].numpy()
        assert np.abs(shown - picture).max() < 0.5 / 255 + 2e-3
        assert Path(record["figure"]).read_text().startswith("<?xml")


def test_readable_class_models_take_other_settings(tmp_path: Path, loaded: Any) -> None:
    result = run("class-model", 130, "--out", tmp_path, "--readable", "--set", "n_steps=2", "--set", "blur=0", "--json")
    assert result.exit_code == 0, result.output
    (record,) = json.loads(result.stdout)
    assert (record["settings"]["optimiser"], record["settings"]["fourier"]) == ("adam", True)
    assert (record["settings"]["n_steps"], record["settings"]["blur"]) == (2, 0.0)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["flamngo"], "close matches: flamingo"),
        (["1000"], "1000"),
        (["flamingo", "--set", "stp=1"], "close matches: step"),
        (["flamingo", "--set", "n_steps=few"], "whole number"),
        (["flamingo", "--set", "step=-1"], "positive"),
        (["flamingo", "--set", "optimiser=adan"], "close matches: adam"),
    ],
)
def test_wrong_class_models_end_in_one_error(tmp_path: Path, loaded: Any, arguments: list[str], said: str) -> None:
    result = run("class-model", *arguments, "--out", tmp_path)
    assert result.exit_code == 2
    assert len(errors(result)) == 1
    assert said in errors(result)[0]
    assert result.stdout == ""
    assert not list(tmp_path.iterdir())


def test_metrics_are_listed_from_the_registry() -> None:
    from backlight.metrics import METRICS

    records = json.loads(run("metrics", "--json").stdout)
    assert [record["name"] for record in records] == list(METRICS)
    infidelity = records[0]
    assert infidelity["better"] == "lower"
    assert infidelity["presets"]["quantus"]["patches"] == [4.0]
    assert infidelity["sees_sign"] == {"pullbacks": False, "text": False, "signed": True, "quantus": True}
    table = run("metrics").stdout
    assert all(name in table for name in METRICS)
    assert "signed: scaling=positive" in table


def test_lists(loaded: Any) -> None:
    from backlight.methods import METHODS

    records = json.loads(run("methods", "--json").stdout)
    assert [record["name"] for record in records] == list(METHODS)
    assert all(record["formula"] and record["source"] and record["summary"] for record in records)
    table = run("methods").stdout
    assert all(name in table for name in METHODS)

    found = json.loads(run("models", "lite0", "--json").stdout)
    assert MODEL in found["embedded"]
    assert all("lite0" in name for names in found.values() for name in names)
    assert json.loads(run("models", "resnet1?", "--json").stdout)["timm"] == ["resnet18"]
    wrong = run("models", "efficientnot")
    assert wrong.exit_code == 2
    assert "close matches" in errors(wrong)[0]

    layers = json.loads(run("layers", MODEL, "--json").stdout)
    assert tuple(layer["name"] for layer in layers) == loaded.layers
    assert {"name": "classifier", "class": "Linear", "parameters": 1281000} in layers
    assert "classifier" in run("layers", MODEL).stdout
    assert run("layers", "efficientnet_light0").exit_code == 2


def test_version_and_help_do_not_import_torch() -> None:
    assert shell("--version").stdout == f"backlight {backlight.__version__}\n"
    code = "import sys; from backlight.cli.commands import app; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert "--temperature" in shell("explain", "--help").stdout


def test_without_typer_one_line_says_what_to_install() -> None:
    code = "import sys; sys.modules['typer'] = None; from backlight.cli import main; main(['methods'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "backlight: error: this needs the package 'typer': pip install 'backlight[cli]'\n"


def test_streams_of_a_process(tmp_path: Path, cat: Path) -> None:
    done = shell("explain", cat, tmp_path / "missing.png", "--out", tmp_path, "--json", "--method", "Saliency")
    assert done.returncode == 2
    assert len(json.loads(done.stdout)) == 2
    assert done.stderr.count("backlight: error: ") == 1
    assert "Traceback" not in done.stderr


def test_interrupt_keeps_what_is_done(tmp_path: Path, cat: Path) -> None:
    second = tmp_path / "second.png"
    sample_image("coffee").save(second)
    command = [sys.executable, "-m", "backlight.cli", "explain", cat, second, "--out", tmp_path / "out", "--json"]
    command += ["--method", "SmoothGrad", "--set", "n_samples=40", "--batch-size", "1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # threads of its own would wait for those of other tests
    process = subprocess.Popen(
        list(map(str, command)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # tests in the background pass on: ignored
    )
    deadline = time.monotonic() + 200
    while not (tmp_path / "out" / "cat.explanation.png").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.4)  # the record follows the files; the second picture takes far longer
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=100)
    assert process.returncode == 130, stderr
    assert "Traceback" not in stderr
    assert len(json.loads(stdout)) == 1
    assert not [path for path in (tmp_path / "out").iterdir() if path.name.endswith(".partial")]
