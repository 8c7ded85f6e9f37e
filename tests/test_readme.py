"""The README's Python runs, its commands exist, and its links lead somewhere."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

import backlight
from backlight.errors import BacklightError

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)


def test_python_blocks_run_one_after_another(capsys: pytest.CaptureFixture[str]) -> None:
    try:
        backlight.load("efficientnet_lite0")
    except BacklightError as error:
        pytest.skip(str(error))
    space: dict[str, object] = {}
    assert len(blocks("python")) == 5
    for block in blocks("python"):
        exec(block, space)
    assert space["attribution"].shape == space["x"].shape  # type: ignore[attr-defined]
    assert "batch_norm" in capsys.readouterr().out


def test_commands_and_their_options_exist() -> None:
    pytest.importorskip("typer")
    import typer

    from backlight.cli.commands import app

    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    lines = [part.strip() for block in blocks("sh") for line in block.splitlines() for part in line.split(";")]
    named = [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("backlight ")]
    assert len(named) == 25
    for name, *arguments in named:
        command = commands[name]
        if hasattr(command, "commands"):  # a group
            command = command.commands[arguments[0]]
        options = {option for parameter in command.params for option in parameter.opts}
        assert {argument for argument in arguments if argument.startswith("--")} <= options


def test_make_targets_exist() -> None:
    rules = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"make (\w+)", README):
        assert re.search(rf"^{target}:", rules, flags=re.MULTILINE), target


def test_links_lead_somewhere() -> None:
    for link in re.findall(r"\]\(([^)#]+)\)", README):
        if "://" not in link:
            assert (ROOT / link).is_file(), link
