"""Timing, activations and manipulation, and the command line of all."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import SIZE, photographs, subject

from backlight.benchmarks import activations as room
from backlight.benchmarks import subjects
from backlight.benchmarks.activations import activations, cifar_file
from backlight.benchmarks.cifar import Cifar, CifarResNet, Training, accuracy, kept, trained, varied
from backlight.benchmarks.manipulation import COLUMNS, couples, manipulation
from backlight.benchmarks.protocols import MANIPULATION_ROWS, TIMING_ROWS
from backlight.benchmarks.study import Options
from backlight.benchmarks.timing import timing
from backlight.errors import InputError

pytest.importorskip("pyarrow")


def synthetic(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Noise with a bright upper or lower half, red or not: four classes."""
    draws = np.random.default_rng(seed)
    labels = np.arange(count) % 4
    pictures = draws.integers(0, 120, (count, 16, 16, 3))
    for picture, label in zip(pictures, labels, strict=True):
        half = slice(0, 8) if label < 2 else slice(8, 16)
        picture[half, :, 0 if label % 2 else 1] += 100
    return pictures.astype(np.uint8), labels


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    (x, y), (x_test, y_test) = synthetic(128, 0), synthetic(40, 1)
    path = tmp_path_factory.mktemp("cifar") / "cifar.npz"
    np.savez(path, x_train=x, y_train=y, x_test=x_test, y_test=y_test)
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return photographs(tmp_path_factory.mktemp("data") / "pictures", 4)


SMALL = Training(depth=8, width=4, epochs=5, batch=16, rate=0.1)


def test_training_learns_and_is_repeated(archive: Path, tmp_path: Path) -> None:
    found, state = Cifar.load(archive), torch.get_rng_state()
    network = trained("GELU", found, SMALL)
    assert accuracy(network, found) > 0.6  # chance is 0.25
    assert torch.equal(torch.get_rng_state(), state)
    assert not network.training
    epochs: list[int] = []
    first = kept(tmp_path, "GELU", found, SMALL, "cpu", progress=epochs.append)
    again = kept(tmp_path, "GELU", found, SMALL, "cpu", progress=epochs.append)
    assert epochs == list(range(5))
    for name, tensor in network.state_dict().items():
        assert torch.equal(first.state_dict()[name], tensor)
        assert torch.equal(again.state_dict()[name], tensor)


def test_pictures_are_flipped_and_moved() -> None:
    x = torch.randn(64, 3, 32, 32)
    found = varied(x, shift=0)
    kinds = [torch.equal(after, before) for after, before in zip(found, x, strict=True)]
    assert 10 < sum(kinds) < 54
    assert all(same or torch.equal(after, before.flip(-1)) for same, after, before in zip(kinds, found, x, strict=True))
    inner = varied(torch.ones(8, 3, 32, 32), shift=4)
    assert inner[:, :, 4:-4, 4:-4].eq(1).all()
    assert inner.eq(0).any()


def test_published_weights_fit_the_network(data_dir: Path) -> None:
    from backlight.models.checkpoints import load_strictly, read_state_dict

    network = CifarResNet(20)
    counters = {key: value for key, value in network.state_dict().items() if "num_batches" in key}
    path = data_dir / "weights" / "cifar10_resnet20.safetensors"
    load_strictly(network, {**counters, **read_state_dict(path)}, str(path))


def test_activations_makes_the_table(archive: Path, tmp_path: Path) -> None:
    options = Options(tmp_path, data=archive, quick=True, limit=2)
    found = activations(options, SMALL, kinds=("ReLU", "Tanh"))
    assert [table.title for table in found.tables] == ["Accuracy ↑", "Fidelity ↑"]
    assert found.tables[0].rows[0][2] == "0.780"
    lines = {row[0]: row for row in found.tables[1].rows}
    assert lines["SRD"][3] == "0.078"
    assert lines["LRP z+"][4] == "–"
    assert "AblationCAM" in found.markdown()
    assert "with ResNet50 with Tanh" not in next(
        text for text in found.tables[1].below if text.startswith("ReLU, rank")
    )
    run = json.loads((tmp_path / "run.json").read_text())
    assert run["training"]["epochs"] == 5
    assert run["accuracy"]["ReLU"] > 0.5


def test_activations_names_its_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "FILE", tmp_path / "nothing.npz")
    with pytest.raises(InputError, match=r"--data FILE\.npz"):
        cifar_file(None)
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    with pytest.raises(InputError, match="x_train"):
        Cifar.load(tmp_path / "other.npz")


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (
            lambda a: {"x_train": a["x_train"] / np.float32(255)},
            r"x_train is float32 \[8, 16, 16, 3\], expected .* uint8",
        ),
        (lambda a: {"x_test": a["x_test"].transpose(0, 3, 1, 2)}, r"x_test is uint8 \[8, 3, 16, 16\], expected"),
        (lambda a: {"x_test": a["x_test"][:, :8]}, "x_test has pictures of 8 x 16"),
        (lambda a: {"x_train": a["x_train"][:0], "y_train": a["y_train"][:0]}, r"x_train is uint8 \[0"),
        (lambda a: {"y_train": a["y_train"].astype(float)}, r"y_train is float64 \[8\], expected 8 class indices"),
        (lambda a: {"y_test": a["y_test"][:5]}, r"y_test is int64 \[5\], expected 8 class indices"),
        (lambda a: {"y_test": a["y_test"] - 1}, "y_test .* from 0"),
    ],
)
def test_arrays_of_another_form_are_named(changed: Callable[[dict], dict], said: str, tmp_path: Path) -> None:
    x, y = synthetic(8, 0)
    arrays = {"x_train": x, "y_train": y, "x_test": x, "y_test": y}
    np.savez(tmp_path / "a.npz", **{**arrays, **changed(arrays)})
    with pytest.raises(InputError, match=said):
        Cifar.load(tmp_path / "a.npz")
    np.savez(tmp_path / "a.npz", **{**arrays, "y_test": y[:, None]})  # a column, as CIFAR has it
    assert Cifar.load(tmp_path / "a.npz").y_test.tolist() == y.tolist()


def test_timing_counts_passes_and_takes_ratios(data: Path, tmp_path: Path) -> None:
    rows = {name: TIMING_ROWS[name] for name in ("SoftPullback", "PullbackAscent", "Gradient", "FusionGrad")}
    found = timing([subject()], Options(tmp_path, data=data), batch=2, repeats=3, rows=rows)
    lines = {row[0]: row for row in found.tables[0].rows}
    assert lines["Gradient"][2] == "1.0"
    assert lines["PullbackAscent"][3] == "5 / 5"
    assert lines["FusionGrad"][3] == "100 / 100"  # the protocol's own settings
    assert lines["SoftPullback"][4] == "0.097 (1.5)"
    assert (tmp_path / "table.tex").exists()
    about = json.loads((tmp_path / "run.json").read_text())["networks"]["tiny0"]
    assert about["methods"]["FusionGrad"]["n_weights"] == 10
    assert len(about["parameters"]) == 64
    assert len(about["data"]) == 2  # pictures by name


def broken(folder: Path, name: str) -> Path:
    """A folder of six pictures without labels, of which one is cut short."""
    photographs(folder, 6)
    (folder / "labels.csv").unlink()
    path = folder / name
    path.write_bytes(path.read_bytes()[:50])
    return folder


def test_timing_takes_pictures_that_can_be_read_and_asks_for_no_labels(tmp_path: Path) -> None:
    rows = {"Gradient": TIMING_ROWS["Gradient"]}
    folder = broken(tmp_path / "data", "3.png")
    timing([subject()], Options(tmp_path / "out", data=folder), batch=7, repeats=1, rows=rows)
    data = json.loads((tmp_path / "out" / "run.json").read_text())["networks"]["tiny0"]["data"]
    assert set(data) == {f"{place}.png" for place in (0, 1, 2, 4, 5)}
    for path in folder.iterdir():
        path.write_bytes(b"broken")
    with pytest.raises(InputError, match="none of the pictures"):
        timing([subject()], Options(tmp_path / "out", data=folder), batch=2, repeats=1, rows=rows)


def test_manipulation_leaves_out_the_pair_of_a_broken_picture(tmp_path: Path) -> None:
    rows = {"Saliency": MANIPULATION_ROWS["Saliency"]}
    chosen = {"size": SIZE, "n_steps": 1, "rows": rows, "pairs": 2}
    names = [one.name for one in couples(photographs(tmp_path / "whole", 6), subject(), 3, SIZE)[1]]
    folder = broken(tmp_path / "data", names[1].split(" to ")[1])
    options = Options(tmp_path / "out", data=folder, quick=True)
    found = manipulation([subject()], options, **chosen)
    assert any(f"Left out: the pair {names[1]}: cannot read" in text for text in found.above)
    with pytest.raises(InputError, match=r"3 pairs need 6 pictures, there are 6, 1 pairs cannot be read"):
        manipulation([subject()], options, **{**chosen, "pairs": 3})
    whole = tmp_path / "whole" / names[1].split(" to ")[1]
    (folder / whole.name).write_bytes(whole.read_bytes())  # repaired: every picture keeps its partner
    assert manipulation([subject()], options, **{**chosen, "pairs": 3}).records[0]["n"] == 3
    (folder / names[0].split(" to ")[0]).write_bytes(whole.read_bytes())
    with pytest.raises(InputError, match=f"changed since: '{names[0]}'"):
        manipulation([subject()], options, **chosen)


def test_manipulation_resumes_pair_by_pair(data: Path, tmp_path: Path) -> None:
    rows = {name: MANIPULATION_ROWS[name] for name in ("Saliency", "SRD")}
    chosen = {"size": SIZE, "n_steps": 2, "rows": rows}
    options = Options(tmp_path, data=data, quick=True)
    first = manipulation([subject()], options, pairs=1, **chosen)
    found = manipulation([subject()], options, pairs=2, **chosen)
    again = manipulation([subject()], options, pairs=1, **chosen)
    assert [one["mean"] for one in first.records] == [one["mean"] for one in again.records]
    assert found.tables[0].heads == ["method", *COLUMNS]
    assert [row[0] for row in found.tables[0].rows] == ["Saliency", "SRD"]
    moved = {one["method"]: one for one in found.records if one["metric"] == "moved pcc"}
    assert moved["Saliency"]["n"] == 2
    assert -1 <= moved["SRD"]["mean"] <= 1
    with pytest.raises(InputError, match="--pairs"):
        manipulation([subject()], options, pairs=3, **chosen)
    with pytest.raises(InputError, match="other settings"):
        manipulation([subject()], options, pairs=1, **{**chosen, "n_steps": 3})


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("refinement", ["--quick", "--limit", "1", "--negatives", "none"]),
        ("focus", ["--quick", "--limit", "1"]),
        ("timing", ["--quick", "--batch", "1", "--repeats", "1"]),
    ],
)
def test_commands_print_and_write(
    name: str, settings: list[str], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("typer")
    from typer.testing import CliRunner

    from backlight.cli.commands import app

    monkeypatch.setattr(subjects, "open_subject", lambda *given: subject())
    arguments = ["benchmark", name, *settings, "--model", "tiny", "--data", str(data), "--out", str(tmp_path)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("# ")
    assert "| method |" in result.stdout
    assert {"table.md", "table.csv", "table.tex", "run.json"} <= {path.name for path in tmp_path.iterdir()}
    assert (tmp_path / "table.md").read_text(encoding="utf-8").strip() == result.stdout.strip()


def test_errors_are_one_line(tmp_path: Path) -> None:
    pytest.importorskip("typer")
    from typer.testing import CliRunner

    from backlight.cli.commands import app

    result = CliRunner().invoke(app, ["benchmark", "local", "--model", "efficientnet_litte0", "--out", str(tmp_path)])
    assert result.exit_code == 2
    assert "efficientnet_lite0" in result.stderr
