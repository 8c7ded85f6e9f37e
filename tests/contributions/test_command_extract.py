"""`backlight extract`: pictures of a folder or a file in, a store out that the same command goes on with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("typer")
pytest.importorskip("zarr")
from typer.testing import CliRunner

from backlight.cli.commands import app
from backlight.contributions import ContributionCollector, HiddenIntegratedGradients, contribute
from backlight.store import ArraySamples, Store

NETWORK = ("--model", "cifar10_resnet20", "--random-weights", "--seed", 3)


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["extract", *map(str, arguments)])


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "pictures.npz"
    draw = np.random.default_rng(0)
    np.savez(path, x_test=draw.integers(0, 256, (9, 32, 32, 3), np.uint8), y_test=np.arange(9).reshape(9, 1) // 3)
    return path


def test_a_file_becomes_a_store_and_a_larger_limit_adds_to_it(tmp_path: Path, file: Path) -> None:
    command = ("--data", file, *NETWORK, "--sites", "layer3.?", "--sites", "linear:input", "--set", "n_steps=2")
    command = (*command, "--batch-size", 2, "--block", 4, "--out", tmp_path / "s", "--json")
    few = run(*command, "--limit", 3)
    assert few.exit_code == 0, few.stderr
    assert json.loads(few.stdout)["samples"] == 3
    whole = run(*command)
    assert whole.exit_code == 0, whole.stderr
    said = json.loads(whole.stdout)
    assert said["channels"] == {"layer3.0": 64, "layer3.1": 64, "layer3.2": 64, "linear:input": 64}
    assert said["samples"] == 9
    assert said["bytes"] > 9 * 64 * 4 * 4 * 6 / 2
    store, samples = Store.open(tmp_path / "s"), ArraySamples(file)
    assert store.names == samples.names
    assert store.identity["algorithm"]["n_steps"] == 2
    assert store.labels.tolist() == [samples.load(name).target for name in samples.names]
    model: Any = ContributionCollector("cifar10_resnet20", ("linear",), random_weights=True, seed=3).network
    x = torch.stack([samples.load(name).inputs for name in samples.names])
    mean, std = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    inputs = ((x + 1) / 2 - mean) / std
    np.testing.assert_allclose(store.logits.read(0, 9), model(inputs).detach(), rtol=1e-4, atol=1e-4)
    algorithm = ContributionCollector("cifar10_resnet20", ("linear",)).algorithm.__class__(n_steps=2)
    expected = contribute(model, inputs, "linear:input", algorithm=algorithm, baseline="grey").values["linear:input"]
    torch.testing.assert_close(store.rows("linear:input").read(0, 9), expected, rtol=1e-3, atol=1e-5)


def test_broken_pictures_of_a_folder_are_told_and_the_command_ends_with_2(tmp_path: Path) -> None:
    for name in ("cat/a.png", "cat/b.png", "dog/c.png"):
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((40, 36, 3), len(name) * 20, np.uint8)).save(tmp_path / "data" / name)
    (tmp_path / "data" / "dog" / "d.png").write_bytes(b"no picture")
    settings = ("--algorithm", "ActGrad", "--baseline", "none", "--quantities", "contributions", "--dtype", "float16")
    found = run("--data", tmp_path / "data", *NETWORK, *settings, "--out", tmp_path / "s", "--target", "label")
    assert found.exit_code == 2
    assert "d.png" in found.stderr
    assert "not in an image format" in found.stderr
    assert "layer3.2: 64 channels of contributions" in found.stdout
    assert "3 samples, " in found.stdout
    store = Store.open(tmp_path / "s")
    assert sorted(store.names) == ["cat/a.png", "cat/b.png", "dog/c.png"]
    assert sorted(store.labels) == [3, 3, 5]
    assert [one.sample for one in store.skipped] == ["dog/d.png"]
    assert len(store.sites) == 9  # the residual blocks


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (("--sites", "layer5"), "unknown layer 'layer5'; close matches: layer3"),
        (("--sites", "layer5.*"), "unknown layer 'layer5.*'"),
        (("--algorithm", "ActGard"), "close matches: ActGrad"),
        (("--set", "steps=3"), "close matches: n_steps"),
        (("--set", "n_steps=some"), "n_steps is a whole number"),
        (("--target", "best"), "unknown target 'best'"),
        (("--baseline", "gray"), "there is no file 'gray'"),
        (("--quantities", "gradient"), "close matches: gradients"),
        (("--kind", "tokens"), "has no sites of kind 'tokens'"),
        (("--split", "train"), "has no 'x_train'"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(tmp_path: Path, file: Path, wrong: tuple, said: str) -> None:
    found = run("--data", file, *NETWORK, "--out", tmp_path / "s", *wrong)
    assert found.exit_code == 2
    assert said in found.stderr
    assert len(found.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "s" / "store.json").exists()


def test_other_settings_do_not_go_on_with_a_store(tmp_path: Path, file: Path) -> None:
    command = (
        "--data",
        file,
        *NETWORK,
        "--sites",
        "layer3.2",
        "--algorithm",
        "ActGrad",
        "--limit",
        2,
        "--out",
        tmp_path,
    )
    assert run(*command).exit_code == 0
    found = run(*command, "--target", "top3")
    assert found.exit_code == 2
    assert "holds a store of other settings: target.class: Logit there, TopK now" in found.stderr


def test_the_mean_of_the_data_is_a_baseline(tmp_path: Path, file: Path) -> None:
    command = ("--data", file, *NETWORK, "--sites", "layer3.2", "--set", "n_steps=1", "--baseline", "data-mean")
    found = run(*command, "--limit", 2, "--out", tmp_path / "s")
    assert found.exit_code == 0, found.stderr
    store, samples = Store.open(tmp_path / "s"), ArraySamples(file)
    mean = torch.stack([samples.load(name).inputs for name in samples.names]).mean(0)  # of all nine, not of two
    collector = ContributionCollector("cifar10_resnet20", ("layer3.2",), random_weights=True, seed=3)
    normalise = collector.normalisation.normalise
    x = torch.stack([normalise((samples.load(name).inputs + 1) / 2) for name in samples.names[:2]])
    start = normalise((mean + 1) / 2)[None]
    expected = contribute(
        collector.network, x, "layer3.2", algorithm=HiddenIntegratedGradients(n_steps=1), baseline=start
    )
    np.testing.assert_allclose(store.column("baseline_score"), expected.baseline_scores, rtol=1e-4, atol=1e-4)
    again = run(*command, "--limit", 4, "--out", tmp_path / "s")
    assert again.exit_code == 0, again.stderr
