"""Options that several commands share, and what is asked of them."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from backlight.errors import ImageError


class Kind(StrEnum):
    """File formats of figures."""

    png = "png"
    svg = "svg"
    pdf = "pdf"


class Device(StrEnum):
    """Where to compute."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


Model = Annotated[str, typer.Option("--model", "-m", help="A name of `backlight models`, or ORG/NAME, or a folder.")]
Weights = Annotated[str | None, typer.Option(metavar="PATH", help="A state dict to load, strictly.")]
Random = Annotated[bool, typer.Option("--random-weights", help="Do without trained weights.")]
Classes = Annotated[str | None, typer.Option(metavar="FILE", help="Names of the classes: one a line, or JSON.")]
Out = Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Where the files go; made if need be.")]
OnDevice = Annotated[Device, typer.Option(help="auto is CUDA where there is one.")]
Format = Annotated[Kind, typer.Option("--format", help="Format of the figures.")]
Json = Annotated[bool, typer.Option("--json", help="Write JSON to stdout.")]
Temperature = Annotated[
    str | None, typer.Option(help="paper, relative, relative:C, excitation, a number, or JSON by operation or layer.")
]


def check_picture(path: Path, why: str) -> None:
    """Raise `ImageError` for a folder."""
    if path.is_dir():
        raise ImageError(f"cannot read {str(path)!r}: it is a folder; {why}")
