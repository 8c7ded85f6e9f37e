"""`backlight modes`: from a decomposition's folder to tables, figures and JSON."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from typer.testing import CliRunner

pytest.importorskip("zarr")

from backlight.cli.modes import modes as command
from backlight.contributions.decompose import decompose
from backlight.store import Store

app = typer.Typer()
app.command()(command)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("modes")
    labels = np.arange(80) % 4
    mixed = np.eye(4)[labels] @ np.random.default_rng(1).random((4, 8)) + np.random.default_rng(0).random((80, 8)) / 9
    rows = torch.from_numpy(mixed).float()
    store = Store.of(place / "store", {"layer": {"contributions": rows}}, columns={"label": labels})
    decompose(store, "layer", "PCA", place / "pca", modes=4)
    decompose(store, "layer", "PCA", place / "other", modes=4, seed=1)
    (place / "names.txt").write_text("pug\ntabby\nboat\ncar\n")
    (place / "tree.json").write_text(json.dumps({"pet": ["pug", "tabby"], "vehicle": ["boat", 3]}))
    return place


def run(*arguments: object) -> tuple[int, str, str]:
    found = CliRunner().invoke(app, [str(one) for one in arguments])
    if found.exception is not None and not isinstance(found.exception, SystemExit):
        raise found.exception
    return found.exit_code, found.stdout, found.stderr


def test_json_and_files(folder: Path, tmp_path: Path) -> None:
    options = (
        "--hierarchy",
        folder / "tree.json",
        "--classes",
        folder / "names.txt",
        "--permutations",
        2,
        "--draws",
        9,
    )
    given = (folder / "pca", *options, "--against", folder / "other", "--json", "--out", tmp_path / "out")
    code, out, _ = run(*given)
    assert code == 0
    record = json.loads(out)
    assert record["modes"] == 4
    assert record["samples"] == 80
    assert record["stability"][str(folder / "other")]["mean_class_r"] > 0.9
    assert record["best"][0]["concepts"]["best"][0]["name"] in ("pet", "vehicle")
    assert {Path(one).name for one in record["files"]} == {path.name for path in (tmp_path / "out").iterdir()}
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["stability"]


def test_table_of_one_class(folder: Path, tmp_path: Path) -> None:
    options = ("--classes", folder / "names.txt", "--permutations", 1, "--draws", 0)
    code, out, errors = run(folder / "pca", "--class", "boat", "--top", 2, *options, "--out", tmp_path)
    assert code == 0
    assert "boat 0." in out
    assert "modes - channels (contributions)" in out
    assert "4 modes ->" in errors


def test_without_permutations_there_is_no_chance_and_everything_else(folder: Path, tmp_path: Path) -> None:
    code, out, _ = run(folder / "pca", "--permutations", 0, "--draws", 0, "--out", tmp_path / "out")
    assert code == 0
    assert "held out" in out
    assert "nan" not in "".join(line for line in out.splitlines() if "modes - channels" not in line)
    assert (tmp_path / "out" / "correlation-classes.png").is_file()


def test_what_was_made_of_labels_is_measured_where_it_was_not(folder: Path, tmp_path: Path) -> None:
    options = ("--min-images", 2, "--permutations", 0, "--draws", 0)
    for share, note in ((0.25, "of the 20 samples that it held out"), (0.0, "no r is held out")):
        decompose(Store.open(folder / "store"), "layer", "ClassMeans", tmp_path / f"{share}", held_out=share)
        code, _, errors = run(tmp_path / f"{share}", *options, "--out", tmp_path / "out")
        assert code == 0
        assert note in " ".join(errors.split())


def test_unknown_names_and_too_few_images(folder: Path, tmp_path: Path) -> None:
    from backlight.errors import InputError, UnknownNameError

    options = ("--classes", folder / "names.txt", "--permutations", 0, "--draws", 0, "--out", tmp_path)
    with pytest.raises(UnknownNameError, match="boat"):
        run(folder / "pca", "--class", "boot", *options)
    with pytest.raises(InputError, match="hierarchy"):
        run(folder / "pca", "--min-images", 50, *options)
    with pytest.raises(InputError, match="decompose"):
        run(tmp_path, *options)
