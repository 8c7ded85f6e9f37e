"""`backlight concepts compare`, on a bank of a small network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from backlight.cli.commands import app
from backlight.cli.concept_comparison import parsed
from backlight.concepts.comparison import open_comparison
from backlight.decompositions.codes import OMP, Lasso
from backlight.errors import InputError, UnknownNameError

NETWORK = ("--model", "cifar10_resnet20", "--random-weights", "--seed", 3)


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["concepts", *map(str, arguments)])


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bank")
    draw = np.random.default_rng(0)
    np.savez(folder / "x.npz", x_test=draw.integers(0, 256, (10, 32, 32, 3), np.uint8), y_test=np.arange(10) % 2)
    made = run("bank", "--data", folder / "x.npz", *NETWORK, "-s", "layer1.1,layer2.2", "--per-image", 6,
               "--out", folder / "bank", "--batch-size", 5)  # fmt: skip
    assert made.exit_code == 0, made.stderr
    return folder / "bank"


def test_dictionaries_are_compared_and_the_table_is_read_again(bank: Path, tmp_path: Path) -> None:
    base = ("compare", bank, "--method", "BisectingKMeans,PCA", "--modes", "0.5x", "--coder", "Lasso:penalty=0.2",
            "--coder", "OMP:k=2", "--out", tmp_path / "table")  # fmt: skip
    found = run(*base, "--json")
    assert found.exit_code == 0, found.stderr
    rows = json.loads(found.stdout)["rows"]
    assert len(rows) == 2 * 2 * 3
    assert {one["modes"] for one in rows if one["site"] == "layer1.1"} == {8}
    assert (rows[0]["fitted"], rows[0]["held_out"]) == (48, 12)
    assert "layer1.1, BisectingKMeans: fit" in found.stderr
    shown = run(*base)
    assert shown.exit_code == 0
    assert "fit" not in shown.stderr  # all of it is read
    assert "own encoder" in shown.stdout
    assert str(tmp_path / "table" / "comparison.md") in shown.stdout.replace("\n", "")
    assert [one.relative for one in open_comparison(tmp_path / "table").rows] == [one["relative"] for one in rows]
    other = run(*base, "--seed", 1)
    assert other.exit_code == 2
    assert "seed: 0 there, 1 now" in other.stderr


def test_coders_are_written_with_their_settings(bank: Path, tmp_path: Path) -> None:
    assert parsed("lasso:penalty=0.3:unit=true") == Lasso(penalty=0.3, unit=True)
    assert parsed("OMP:k=3") == OMP(k=3)
    with pytest.raises(UnknownNameError, match="Lasso"):
        parsed("Lassso")
    with pytest.raises(InputError, match="whole number"):
        parsed("OMP:k=many")
    wrong = run("compare", bank, "--method", "BisectingKMean", "--out", tmp_path)
    assert wrong.exit_code == 2
    assert "BisectingKMeans" in wrong.stderr
