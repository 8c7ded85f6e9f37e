"""`backlight statistics`: what it prints and writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("typer")
pytest.importorskip("zarr")
pytest.importorskip("matplotlib")
from typer.testing import CliRunner

from backlight.cli.commands import app
from backlight.contributions import store_statistics
from backlight.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    value = torch.randn(24, 8) ** 3
    quantities = {"contributions": value, "activations": value.abs()}
    columns = {"label": torch.from_numpy(np.arange(24) % 4)}
    return Store.of(tmp_path / "store", {"blocks.0": quantities, "blocks.1.attn": quantities}, columns=columns)


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["statistics", *map(str, arguments)])


def test_json_is_the_public_call(store: Store, tmp_path: Path) -> None:
    result = run(store.folder, "--out", tmp_path / "out", "--json", "--heads", 4, "--seed", 3)
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    files = found.pop("files")
    assert found == json.loads(json.dumps(store_statistics(store, heads=4, seed=3).record()))
    assert sorted(Path(file).name for file in files) == [
        f"statistics.{end}" for end in ("csv", "json", "md", "npz", "png")
    ]
    assert all(Path(file).stat().st_size for file in files)


def test_the_table_names_every_site(store: Store, tmp_path: Path) -> None:
    result = run(store.folder, "--out", tmp_path / "out", "--site", "blocks.1.attn")
    assert result.exit_code == 0, result.stderr
    assert "blocks.1.attn" in result.stdout
    assert "blocks.0" not in result.stdout
    assert "PCs" in result.stdout
    assert "statistics.png" in result.stderr


def test_errors_are_one_line(store: Store, tmp_path: Path) -> None:
    result = run(store.folder, "--out", tmp_path / "out", "--site", "blocks.1.attm")
    assert result.exit_code == 2
    assert "blocks.1.attn" in result.stderr
    assert run(tmp_path / "nowhere").exit_code == 2
