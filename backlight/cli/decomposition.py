"""`backlight decompose`: a store in; modes, loadings and a table of scores out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from backlight.cli.console import LINE_EVERY
from backlight.cli.options import Device, Json, OnDevice

if TYPE_CHECKING:
    from backlight.contributions.decomposed import Decomposed
    from backlight.decompositions import Decomposition, Epoch


def decompose(
    store: Annotated[str, typer.Argument(metavar="STORE", help="A folder of `backlight extract`.")],
    site: Annotated[list[str] | None, typer.Option("--site", "-s", help="Repeat, or A,B [default: all].")] = None,
    method: Annotated[str, typer.Option(help="A decomposition, or NAME:PRESET.")] = "ThresholdSAE",
    modes: Annotated[
        str | None,
        typer.Option(metavar="N", help="A number, or a multiple of channels: 3x [default: by method]."),
    ] = None,
    quantity: Annotated[str, typer.Option(help="contributions, activations or gradients.")] = "contributions",
    sign: Annotated[str, typer.Option(help="positive, negative, sum or concat.")] = "positive",
    set: Annotated[list[str] | None, typer.Option(metavar="NAME=VALUE", help="A setting of the method.")] = None,
    held_out: Annotated[float, typer.Option(help="The share of samples that are scored and not fitted.")] = 0.2,
    seed: Annotated[int, typer.Option(help="Of all draws.")] = 0,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="A folder a site goes there.")] = Path("out"),
    device: OnDevice = Device.auto,
    json: Json = False,
) -> None:
    """Decompose contributions into modes: what channels do together, and how much of it is in each sample."""
    import torch

    from backlight.cli.console import print_json
    from backlight.cli.outputs import output_folder
    from backlight.cli.settings import split
    from backlight.contributions.decompose import decompose as run
    from backlight.decompositions import decomposition
    from backlight.store import Store
    from backlight.store.arrays import part

    settings = typed(decomposition(method.partition(":")[0]), set or [])
    count = int(modes) if modes is not None and modes.isdecimal() else modes
    opened = Store.open(store)
    sites = split(site or []) or list(opened.sites)
    for one in sites:
        opened.rows(one, quantity, sign)  # all names are right before the first fit begins
    folder = output_folder(out)
    where = ("cuda" if torch.cuda.is_available() else "cpu") if device is Device.auto else device.value
    found = []
    for one in sites:
        with news(one) as tell:
            found.append(
                run(
                    opened,
                    one,
                    method,
                    folder / part(one),
                    quantity=quantity,
                    sign=sign,
                    modes=count,
                    held_out=held_out,
                    seed=seed,
                    device=where,
                    progress=tell,
                    **settings,
                )
            )
    print_json([record(one) for one in found]) if json else show(found)


def typed(cls: type[Decomposition], given: list[str]) -> dict[str, Any]:
    """`NAME=VALUE` as values of the settings' types.

    Raises:
        UnknownNameError: a setting that the decomposition has not.
        InputError: a value of the wrong type.
    """
    from typing import get_type_hints

    from backlight.cli.settings import parse_setting, parse_typed
    from backlight.errors import InputError, UnknownNameError

    known, hints = cls().settings(), get_type_hints(cls)
    found = {}
    for name, text in map(parse_setting, given):
        if name not in known:
            raise UnknownNameError(f"setting of {cls.__name__}", name, known)
        if name in ("n_modes", "seed"):
            raise InputError(f"{name} has an option of its own: --{'modes' if name == 'n_modes' else name}")
        found[name] = parse_typed(name, text, hints[name])
    return found


def record(one: Decomposed) -> dict[str, Any]:
    """A decomposition as plain values."""
    return {
        "site": one.site,
        "folder": str(one.folder),
        "method": one.identity["method"],
        "settings": one.identity["settings"],
        "quantity": one.quantity,
        "sign": one.sign,
        **{name: one.report[name] for name in ("rows", "channels", "scale", "modes", "alive", "fitted", "held_out")},
    }


@contextmanager
def news(site: str) -> Iterator[Callable[[Epoch], None]]:
    """Progress on stderr: a bar where it is a terminal, else a line a minute."""
    from rich.markup import escape
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from backlight.cli.console import messages, say

    console, told = messages(), time.monotonic()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[news]}"))
    with Progress(
        *columns, TimeElapsedColumn(), console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task(escape(site), total=None, news="")

        def tell(epoch: Epoch) -> None:
            nonlocal told
            r2 = epoch.r2 if epoch.held_out_r2 is None else epoch.held_out_r2
            line = f"R2 {r2:.3f}, {epoch.l0:.3g} of {epoch.modes} modes on, {epoch.alive} alive"
            bar.update(task, total=epoch.total, completed=epoch.number, news=line)
            if not console.is_terminal and time.monotonic() - told > LINE_EVERY:
                told = time.monotonic()
                say(f"{site}: pass {epoch.number} of {epoch.total}, {line}")

        yield tell


def show(found: list[Decomposed]) -> None:
    """The scores on stdout."""
    from rich.box import HORIZONTALS
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=HORIZONTALS)
    for name in ("site", "modes", "alive", "on a row", "R2 fitted", "R2 held out", "R2 grand mean"):
        table.add_column(name, justify="left" if name == "site" else "right")
    for one in found:
        fitted, held_out = one.report["fitted"], one.report["held_out"]
        last = held_out or fitted
        scores = (fitted["r2"], None if held_out is None else held_out["r2"], last["grand_mean_r2"])
        cells = ("-" if score is None else f"{score:.3f}" for score in scores)
        counts = (str(one.report["modes"]), str(one.report["alive"]), f"{last['l0']:.3g}")
        table.add_row(escape(one.site), *counts, *cells)
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = max(console.width, 120)
    console.print(table)
