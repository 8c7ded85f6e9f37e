"""`backlight statistics`: sparsity, signs, dimensions and heads of every layer of a store."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from backlight.cli import console
from backlight.cli.options import Format, Json, Kind, Out

if TYPE_CHECKING:
    from backlight.contributions.layer_statistics import StoreStatistics


WIDE = 240  # columns


class GroupedBy(StrEnum):
    """What class means go by."""

    auto = "auto"
    label = "label"
    prediction = "prediction"


def statistics(
    store: Annotated[Path, typer.Argument(metavar="STORE", help="A folder that `backlight extract` made.")],
    out: Out = Path("statistics"),
    site: Annotated[list[str] | None, typer.Option(help="Of the store; all by default.")] = None,
    heads: Annotated[int | None, typer.Option(min=2, help="How many heads the attention has.")] = None,
    classes: Annotated[GroupedBy, typer.Option(help="What class means go by.")] = GroupedBy.auto,
    seed: Annotated[int, typer.Option(min=0, help="Of halves, permuted classes and random heads.")] = 0,
    kind: Format = Kind.png,
    as_json: Json = False,
) -> None:
    """Sparsity, the two signs, dimensions and heads of every layer of a store, with the paper's figure."""
    from importlib.util import find_spec

    from backlight.cli.outputs import output_folder
    from backlight.contributions import store_statistics
    from backlight.store import Store

    opened = Store.open(store)
    steps = sum(len(set(opened.quantities(one)) & {"contributions", "activations"}) for one in site or opened.sites)
    with console.progress(steps, "statistics") as step:
        found = store_statistics(opened, site or None, heads=heads, classes=classes.value, seed=seed, progress=step)
    drawn = find_spec("matplotlib") is not None
    if not drawn:
        console.say("no figure: it needs pip install 'backlight[plots]'")
    paths = found.write(output_folder(out), figure=drawn, kind=kind.value)
    if as_json:
        console.print_json({**found.record(), "files": [str(path) for path in paths]})
    else:
        _show(found)
    for path in paths:
        console.say(str(path))


def _show(found: StoreStatistics) -> None:
    from rich.box import HORIZONTALS
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from backlight.contributions.statistics_tables import columns, notes

    head, rows = columns(found, intervals=False)
    table = Table(box=HORIZONTALS)
    for name in head:
        short = name.replace("contributions", "contr.").replace("activations", "act.").replace("difference", "diff.")
        table.add_column(escape(short), justify="left" if name == "site" else "right", overflow="fold")
    for row in rows:
        table.add_row(*map(escape, row))
    shown = Console(highlight=False)
    if not shown.is_terminal:  # a file, or another program, has room
        shown.width = WIDE
    shown.print(table)
    for note in notes(found):
        shown.print(escape(note), soft_wrap=True)
