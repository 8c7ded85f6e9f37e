"""What the commands for graphs of one picture are given alike."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from backlight.errors import InputError

Picture = Annotated[Path, typer.Argument(metavar="IMAGE", help="A picture file.")]
Dictionaries = Annotated[
    list[Path],
    typer.Option("--concepts", "-c", metavar="DIR", help="Of `concepts fit`, one layer or all; repeat."),
]
Coder = Annotated[
    str | None, typer.Option(help="Lasso, OMP, ...: how the picture is coded [default: as the dictionary does].")
]
CoderSettings = Annotated[list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="A setting of the coder.")]


def coding(coder: str | None, given: list[str] | None) -> dict[str, Any]:
    """The coder's settings. Raises `InputError`: settings of no coder."""
    from backlight.cli.concept_fitting import coder_settings

    if given and coder is None:
        raise InputError("--set is for a coder's settings: name it, --coder Lasso")
    return coder_settings(coder, given) if coder is not None and given else {}
