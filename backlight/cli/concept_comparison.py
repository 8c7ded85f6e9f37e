"""`backlight concepts compare`: a bank in; which dictionary tells its layers best, as a table."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from backlight.cli.options import Device, Json, OnDevice

if TYPE_CHECKING:
    from backlight.concepts.comparison_tables import Comparison


def compare(
    bank: Annotated[Path, typer.Argument(metavar="BANK", help="A folder of `backlight concepts bank`.")],
    site: Annotated[list[str] | None, typer.Option("--site", "-s", help="Repeat, or A,B [default: all].")] = None,
    method: Annotated[
        list[str] | None,
        typer.Option("--method", help="Dictionaries, or NAME:PRESET; repeat, or A,B [default: those of Table III]."),
    ] = None,
    modes: Annotated[str, typer.Option(metavar="N", help="Concepts: a number, or a multiple of channels.")] = "8x",
    coder: Annotated[
        list[str] | None,
        typer.Option("--coder", help="Lasso, OMP or TopK, the same for all; NAME:SETTING=VALUE:... [default: Lasso]."),
    ] = None,
    held_out: Annotated[float, typer.Option(help="The share of images that are scored and not fitted.")] = 0.2,
    seed: Annotated[int, typer.Option(help="Of all draws.")] = 0,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Tables and dictionaries go there.")] = Path(
        "comparison"
    ),
    device: OnDevice = Device.auto,
    json: Json = False,
) -> None:
    """Compare dictionaries under the same coder: relative error and sparsity of vectors that were not fitted."""
    from backlight.cli import console
    from backlight.cli.networks import choose_device
    from backlight.cli.outputs import output_folder
    from backlight.cli.settings import split
    from backlight.concepts.bank import Bank
    from backlight.concepts.comparison import EXTRACTORS
    from backlight.concepts.comparison import compare as run

    opened = Bank.open(bank)
    sites, methods = split(site or []) or list(opened.sites), split(method or []) or list(EXTRACTORS)
    coders = [parsed(one) for one in split(coder or [])]
    told: dict[tuple[str, str], str] = {}

    def tell(place: str, extractor: str, what: str) -> None:
        if not told.get((place, extractor), "").startswith(what.split()[0]):
            console.say(f"{place}, {extractor}: {what}")
        told[place, extractor] = what

    found = run(
        opened,
        methods,
        output_folder(out),
        sites=sites,
        modes=int(modes) if modes.isdecimal() else modes,
        held_out=held_out,
        seed=seed,
        device=choose_device(device.value),
        progress=tell,
        **({"coders": coders} if coders else {}),
    )
    console.print_json(record(found)) if json else show(found)


def parsed(text: str) -> Any:
    """A coder with its settings, of `Lasso:penalty=0.05:unit=true`.

    Raises:
        UnknownNameError: a coder, or a setting that it has not; InputError: a value of the wrong type.
    """
    from backlight.cli.concept_fitting import coder_settings
    from backlight.decompositions.codes import coder

    name, *given = text.split(":")
    return coder(name, **coder_settings(name, given))


def record(found: Comparison) -> dict[str, Any]:
    """A comparison as plain values."""
    from dataclasses import asdict

    return {"folder": str(found.folder), "rows": [{**asdict(one), "share": one.share} for one in found.rows]}


def show(found: Comparison) -> None:
    """The table on stdout."""
    from rich.box import HORIZONTALS
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from backlight.concepts.comparison_tables import published_beside

    table = Table(box=HORIZONTALS)
    names = ("layer", "extractor", "coder", "K", "K/N", "Rel-l2", "l0 ratio", "on a row", "R2", "paper Rel-l2")
    for name in names:
        table.add_column(name, justify="left" if name in names[:3] else "right")
    for one in found.rows:
        beside = published_beside(one)
        numbers = (one.relative, one.ratio, one.l0, one.r2, None if beside is None else beside[0])
        cells = ("-" if value is None else f"{value:.4g}" for value in numbers)
        table.add_row(escape(one.site), one.extractor, one.coder, str(one.modes), f"{one.share:.3f}", *cells)
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = max(console.width, 130)
    console.print(table)
    print(f"Tables: {found.folder / 'comparison.md'}")
