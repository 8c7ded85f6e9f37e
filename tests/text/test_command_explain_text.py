"""`backlight explain-text`: what it writes is what the API gives, and how it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("typer")
pytest.importorskip("matplotlib")

from small_languages import small
from typer.testing import CliRunner

from backlight.cli.commands import app
from backlight.models.language_models import load_language_model
from backlight.text import explain_text, text_contributions


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["explain-text", *map(str, arguments)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Llama of words, as `save_pretrained` leaves it."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"<unk>": 0, **{f"w{n}": n for n in range(1, 31)}}, "<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    place = tmp_path_factory.mktemp("models") / "llama"
    small("llama").model.save_pretrained(place)  # type: ignore[operator]
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>").save_pretrained(place)
    return place


def test_the_files_hold_what_the_api_gives(folder: Path, tmp_path: Path) -> None:
    done = run("w3 w9 w4", "-m", folder, "--target", "w7", "--against", "#5", "--position", 1, "--out", tmp_path,
               "--algorithm", "ActGrad", "--json")  # fmt: skip
    assert done.exit_code == 0, done.output
    record, language = json.loads(done.stdout), load_language_model(folder)
    expected = explain_text(language, "w3 w9 w4", "w7", against=5, position=1)
    assert record["tokens"] == json.loads(json.dumps(expected.record()["tokens"]))
    contributions = text_contributions(language, "w3 w9 w4", "w7", against=5, position=1, algorithm="ActGrad")
    assert record["contributions"] == json.loads(json.dumps(contributions.record()))
    assert record["asked"] == "logit of 'w7' less that of 'w5'"
    written = json.loads((tmp_path / "explanation.json").read_text(encoding="utf-8"))
    assert {**written, "files": record["files"]} == record
    assert [Path(name).name for name in record["files"]] == [
        "explanation.html", "explanation.json", "contributions.png",
    ]  # fmt: skip
    assert "data:image/png" in (tmp_path / "explanation.html").read_text(encoding="utf-8")


def test_a_text_is_read_from_stdin(folder: Path, tmp_path: Path) -> None:
    given = ["explain-text", "-", "-m", str(folder), "--algorithm", "none", "--out", str(tmp_path), "--json"]
    done = CliRunner().invoke(app, given, input="w3 w9\nw4\n")
    assert done.exit_code == 0, done.output
    assert [one["token"].strip() for one in json.loads(done.stdout)["tokens"]] == ["w3", "w9", "w4"]


def test_a_method_has_its_settings_and_a_path_its_beginning(folder: Path, tmp_path: Path) -> None:
    done = run("w3 w9", "-m", folder, "--method", "integrated-gradients", "--set", "n_steps=7", "--baseline", "w2",
               "--algorithm", "none", "--out", tmp_path, "--json")  # fmt: skip
    assert done.exit_code == 0, done.output
    expected = explain_text(
        load_language_model(folder), "w3 w9", method="IntegratedGradients", n_steps=7, baseline="w2"
    )
    record = json.loads(done.stdout)
    assert [one["relevance"] for one in record["tokens"]] == pytest.approx(expected.relevance.tolist())
    assert record["contributions"] is None
    assert not (tmp_path / "contributions.png").exists()


def test_long_texts_can_have_half_the_bits_and_checkpointed_blocks(folder: Path, tmp_path: Path) -> None:
    def relevance(*options: str) -> list[float]:
        done = run("w3 w9 w4 w20", "-m", folder, "--target", "w7", "--algorithm", "ActGrad", "--out", tmp_path,
                   "--json", *options)  # fmt: skip
        assert done.exit_code == 0, done.output
        return [one["relevance"] for one in json.loads(done.stdout)["tokens"]]

    plain, half = relevance(), relevance("--dtype", "bfloat16")
    assert relevance("--checkpoint") == pytest.approx(plain, rel=1e-5)
    language = load_language_model(folder, dtype=torch.bfloat16)
    assert half == explain_text(language, "w3 w9 w4 w20", "w7").relevance.tolist()
    assert half != plain


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--target", "w3 w4"], "it is read as ['w3', 'w4']"),
        (["--target", "#99"], "token 99 of a vocabulary of 31"),
        (["--method", "AtnLRP"], "AttnLRP"),
        (["--set", "n_stps=3"], "unknown setting of AttnLRP"),
        (["--algorithm", "ActGrd"], "ActGrad"),
        (["--baseline", "nuetral"], "neutral"),
        (["--position", "9"], "position 9 of a text of 2 tokens"),
        (["--tokenizer", "none.bin"], "is no file"),
    ],
)
def test_errors_are_one_line(arguments: list[str], message: str, folder: Path, tmp_path: Path) -> None:
    done = run("w3 w9", "-m", folder, "--out", tmp_path, *arguments)
    assert done.exit_code == 2
    (line,) = [one for one in done.stderr.splitlines() if one.startswith("backlight: error: ")]
    assert message in line
