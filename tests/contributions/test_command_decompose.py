"""`backlight decompose`: a folder a site, a table or JSON, and errors before the first fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from decomposition_data import planted

pytest.importorskip("typer")
pytest.importorskip("zarr")
pytest.importorskip("sklearn")
from typer.testing import CliRunner

from backlight.cli.commands import app
from backlight.contributions.decomposed import open_decomposed
from backlight.store import Store


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("store") / "store"
    x, _ = planted(60, channels=6)
    sites = {"layer4.1": x - 0.3, "blocks.3.mlp.fc2:input": {"contributions": x, "activations": x + 1}}
    Store.of(folder, sites, columns={"label": torch.arange(60) % 3})
    return folder


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["decompose", *map(str, arguments)])


def test_every_site_has_its_folder(store: Path, tmp_path: Path) -> None:
    given = (store, "--method", "topk_sae", "--modes", "2x", "--set", "k=2", "--set", "epochs=2", "-o", tmp_path)
    result = run(*given, "--json")
    assert result.exit_code == 0, result.output
    records = json.loads(result.stdout)
    assert [record["site"] for record in records] == ["layer4.1", "blocks.3.mlp.fc2:input"]
    for record in records:
        found = open_decomposed(record["folder"])
        assert found.site == record["site"]
        assert found.report["held_out"]["r2"] == record["held_out"]["r2"]
        assert record["modes"] == 12
        assert record["settings"]["k"] == 2
        assert found.store.folder == store
    table = run(*given)
    assert table.exit_code == 0, table.output
    assert f"{records[0]['held_out']['r2']:.3f}" in table.stdout
    assert "blocks.3.mlp.fc2:input" in table.stdout


def test_quantity_sign_share_and_seed_are_passed_on(store: Path, tmp_path: Path) -> None:
    site = "blocks.3.mlp.fc2:input"
    options = ("--quantity", "activations", "--sign", "sum", "--held-out", "0", "--seed", "5", "--modes", "3")
    result = run(store, "--site", site, "--method", "PCA", *options, "-o", tmp_path)
    assert result.exit_code == 0, result.output
    found = open_decomposed(next(path for path in tmp_path.iterdir() if path.is_dir()))
    assert (found.quantity, found.sign, found.report["modes"], found.identity["seed"]) == ("activations", "sum", 3, 5)
    assert found.report["held_out"] is None
    assert not found.held_out.any()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--site", "layer4.2"), "layer4.1"),
        (("--site", "layer4.1", "--quantity", "activations"), "unknown quantity"),
        (("--sign", "both"), "unknown sign"),
        (("--method", "PCAA"), "PCA"),
        (("--method", "PCA", "--set", "epochs=3"), "unknown setting of PCA"),
        (("--set", "epochs=many"), "epochs is a whole number"),
        (("--set", "seed=1"), "--seed"),
        (("--modes", "lots"), "such as '3x'"),
    ],
)
def test_errors_come_before_a_fit(store: Path, tmp_path: Path, arguments: tuple[str, ...], said: str) -> None:
    result = run(store, *arguments, "-o", tmp_path / "out")
    assert result.exit_code == 2, result.output
    assert said in result.stderr
    assert not list((tmp_path / "out").rglob("run.json")) if (tmp_path / "out").exists() else True
