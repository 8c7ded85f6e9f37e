"""`backlight concepts bank`, `fit`, `encode`, `show`: pictures in, pages of concepts out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("typer")
pytest.importorskip("zarr")
pytest.importorskip("matplotlib")
from PIL import Image
from typer.testing import CliRunner

from backlight.cli.commands import app
from backlight.concepts.bank import Bank
from backlight.concepts.concepts import Concepts
from backlight.concepts.exemplars import exemplars

NETWORK = ("--model", "cifar10_resnet20", "--random-weights", "--seed", 3)


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["concepts", *map(str, arguments)])


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bank of a file's pictures, and a dictionary of one of its sites."""
    folder = tmp_path_factory.mktemp("concepts")
    draw = np.random.default_rng(0)
    np.savez(folder / "x.npz", x_test=draw.integers(0, 256, (12, 32, 32, 3), np.uint8), y_test=np.arange(12) % 2)
    made = run("bank", "--data", folder / "x.npz", *NETWORK, "-s", "layer2.?,layer3.2", "--per-image", 4,
               "--out", folder / "bank", "--batch-size", 4, "--json")  # fmt: skip
    assert made.exit_code == 0, made.stderr
    said = json.loads(made.stdout)
    assert (said["images"], said["attributor"], said["sampling"]) == (12, "srd", "relevance")
    assert set(said["sites"]) == {"layer2.0", "layer2.1", "layer2.2", "layer3.2"}
    assert said["sites"]["layer2.2"] == {"vectors": 48, "channels": 32}
    fitted = run("fit", folder / "bank", "-s", "layer2.2", "--method", "KMeans", "--modes", 5, "--set", "epochs=9",
                 "--out", folder / "c", "--json")  # fmt: skip
    assert fitted.exit_code == 0, fitted.stderr
    (record,) = json.loads(fitted.stdout)
    assert (record["modes"], record["rows"], record["scale"]) == (5, 48, 1.0)
    return folder


def test_the_same_command_reads_a_bank_and_another_is_refused(work: Path) -> None:
    base = ("bank", "--data", work / "x.npz", *NETWORK, "-s", "layer2.?,layer3.2", "--out", work / "bank")
    again = run(*base, "--per-image", 4, "--batch-size", 4)
    assert again.exit_code == 0, again.stderr
    assert "12 images, positions by srd relevance" in again.stdout
    other = run(*base, "--per-image", 5, "--batch-size", 4)
    assert other.exit_code == 2
    assert "per_image: 4 there, 5 now" in other.stderr
    wrong = run("bank", "--data", work / "x.npz", *NETWORK, "-s", "layer2.0.conv2", "--out", work / "w")
    assert wrong.exit_code == 2
    assert "SRD has no relevance of 'layer2.0.conv2'" in wrong.stderr


def test_the_table_has_the_concepts_that_explain_most(work: Path) -> None:
    found = run("show", work / "c" / "layer2.2", "--min-images", 3, "--json", "--top", 3)
    assert found.exit_code == 0, found.stderr
    rows = json.loads(found.stdout)
    concepts = Concepts.open(work / "c" / "layer2.2")
    explained = concepts.statistics["explained"]
    assert [row["concept"] for row in rows] == explained.argsort(descending=True)[:3].tolist()
    assert {one["name"] for one in rows[0]["classes"]} <= set(concepts.bank.classes.names)
    named = run("show", work / "c" / "layer2.2", "--min-images", 3, "--json", "--top", 5, "--order", "names")
    best = [row["classes"][0]["r"] for row in json.loads(named.stdout)]
    assert best == sorted(best, reverse=True)
    wrong = run("show", work / "c" / "layer2.2", "--order", "names")
    assert wrong.exit_code == 2
    table = run("show", work / "c" / "layer2.2")
    assert "5 concepts" in table.stdout
    assert "no class has 10 images" in table.stderr


def test_a_page_has_the_exemplars_with_their_fields(work: Path) -> None:
    found = run("show", work / "c" / "layer2.2", "-k", 1, "-k", 3, "--top", 3, "--mass", 0.8, "--min-images", 3,
                "--out", work / "pages", "--json")  # fmt: skip
    assert found.exit_code == 0, found.stderr
    records = json.loads(found.stdout)
    concepts = Concepts.open(work / "c" / "layer2.2")
    for record, k in zip(records, (1, 3), strict=True):
        expected = exemplars(concepts, k, 3)
        assert [one["image"] for one in record["exemplars"]] == [one.name for one in expected]
        assert [tuple(one["box"]) for one in record["exemplars"]] == [one.box(0.8) for one in expected]
        with Image.open(record["figure"]) as picture:
            assert min(picture.size) > 300
    assert len(list((work / "bank" / "fields").glob("*.npz"))) == sum(len(one["exemplars"]) for one in records)
    plain = run("show", work / "c" / "layer2.2", "-k", 1, "--top", 1, "--out", work / "pages")
    assert "concept 1: on in" in plain.stdout
    wrong = run("show", work / "c" / "layer2.2", "-k", 7)
    assert wrong.exit_code == 2
    assert "concepts 0 to 4, not 7" in wrong.stderr


def test_codes_by_another_coder_are_shown(work: Path) -> None:
    pytest.importorskip("backlight.decompositions.codes")
    coded = run("encode", work / "c" / "layer2.2", "--coder", "Lasso", "--set", "penalty=0.1", "--json")
    assert coded.exit_code == 0, coded.stderr
    said = json.loads(coded.stdout)
    assert said["settings"]["penalty"] == 0.1
    found = run("show", work / "c" / "layer2.2", "--coder", "lasso", "--json")
    assert found.exit_code == 0, found.stderr
    assert Concepts.open(work / "c" / "layer2.2", "lasso").codes.shape == (48, 5)
    wrong = run("encode", work / "c" / "layer2.2", "--coder", "Lasso", "--set", "penalti=1")
    assert wrong.exit_code == 2
    assert "penalty" in wrong.stderr


def test_a_bank_of_folders_finds_its_pictures_again(tmp_path: Path) -> None:
    draw = np.random.default_rng(1)
    for name in ("cat/a.png", "cat/b.png", "dog/c.png", "dog/d.png"):
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (40, 36, 3), np.uint8)).save(tmp_path / "data" / name)
    made = run(
        "bank", "--data", tmp_path / "data", *NETWORK, "-s", "layer3.2", "-o", tmp_path / "b", "--target", "label"
    )
    assert made.exit_code == 0, made.stderr
    bank = Bank.open(tmp_path / "b")
    assert bank.model_name == "cifar10_resnet20"
    assert bank.picture(0).shape == (3, 32, 32)
    assert sorted(bank.labels.tolist()) == [3, 3, 5, 5]
