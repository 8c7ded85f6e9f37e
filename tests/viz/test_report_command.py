"""`backlight report`: the pages it writes, what it says of what could not be shown, and how it ends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("typer")
pytest.importorskip("matplotlib")

from typer.testing import CliRunner

import backlight
from backlight.cli.commands import app
from backlight.data import sample_image
from backlight.errors import BacklightError


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["report", *map(str, arguments)])


def test_pictures_with_a_broken_one_among_them(tmp_path: Path) -> None:
    try:
        backlight.load("efficientnet_lite0")
    except BacklightError as error:
        pytest.skip(str(error))
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    sample_image("chelsea").save(pictures / "cat.png")
    (pictures / "broken.png").write_bytes(b"no")
    page = tmp_path / "out" / "page.html"
    result = run("images", pictures, "--method", "GradCAM", "--layer", "none", "--out", page, "--json")
    assert result.exit_code == 2
    told = json.loads(result.stdout)
    assert list(told["failed"]) == ["broken.png"]
    assert "backlight: error:" in result.stderr
    assert "<b>tiger cat</b>" in page.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("evaluation", "nowhere"), "there is no folder"),
        (("evaluation", ".", "--out", "page.txt"), "ends in .html"),
        (("model", "efficientnet_lite0", "--method", "SRDD"), "close matches"),
        (("images", "x.png", "--graph", "none.json"), "cannot read a concept graph"),
    ],
)
def test_wrong_inputs_get_one_line(
    arguments: tuple[str, ...], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run(*arguments)
    assert result.exit_code == 2
    assert said in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
