"""`backlight modes`: what the modes of a decomposition are about; tables and figures out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from backlight.cli.options import Classes, Format, Json, Kind, Out

if TYPE_CHECKING:
    from backlight.contributions.modes import Modes

SHEET = 8  # modes on a sheet


def modes(
    folder: Annotated[Path, typer.Argument(help="What `backlight decompose` wrote.")],
    against: Annotated[
        list[Path] | None, typer.Option(metavar="DIR", help="Other decompositions of the layer: how stable are modes?")
    ] = None,
    name: Annotated[
        str | None, typer.Option("--class", "--concept", metavar="NAME", help="The modes of one class or concept.")
    ] = None,
    hierarchy: Annotated[str | None, typer.Option(metavar="NAME", help="imagenet, or a JSON file of concepts.")] = None,
    by: Annotated[str, typer.Option(help="label, or prediction: it needs no labels.")] = "label",
    min_images: Annotated[int, typer.Option(min=1, help="Leave out classes and concepts with fewer.")] = 10,
    top: Annotated[int, typer.Option(min=1, help="Modes to list.")] = 20,
    permutations: Annotated[int, typer.Option(min=0, help="Of the labels, for the r that chance gives.")] = 20,
    draws: Annotated[int, typer.Option(min=0, help="Of the bootstrap over images.")] = 200,
    seed: Annotated[int, typer.Option(min=0, help="Of permutations, halves and draws.")] = 0,
    store: Annotated[Path | None, typer.Option(metavar="DIR", help="Where the store is now, if it has moved.")] = None,
    data: Annotated[
        Path | None, typer.Option(metavar="PATH", help="The pictures, a folder or .npz file, for the sheets.")
    ] = None,
    classes: Classes = None,
    format: Format = Kind.png,
    json: Json = False,
    out: Out = Path("out/modes"),
) -> None:
    """Say what modes mean: channels, samples, classes, concepts; against channels, chance and other runs."""
    from backlight.cli import console
    from backlight.cli.outputs import output_folder
    from backlight.contributions.decomposed import open_decomposed
    from backlight.contributions.mode_tables import finite, summary_record, write_tables
    from backlight.contributions.modes import class_names, describe
    from backlight.data import ClassNames
    from backlight.data.hierarchy import Hierarchy

    decomposed = open_decomposed(folder, store)
    names = ClassNames.of(classes) if classes else class_names(decomposed)
    others = {str(other): open_decomposed(other) for other in against or []}
    output_folder(out)
    with _steps() as tell:
        found = describe(
            decomposed,
            hierarchy=None if hierarchy is None else Hierarchy.of(hierarchy, names),
            classes=names,
            about=name,
            by=by,
            min_images=min_images,
            permutations=permutations,
            draws=draws,
            seed=seed,
            progress=tell,
        )
    chosen = found.ranked(count=top)
    record = summary_record(found)
    record["stability"] = {title: found.against(one, seed=seed).summary() for title, one in others.items()}
    files = write_tables(found, out, record) + _figures(found, chosen, data, out, format.value)
    if json:
        from backlight.contributions.mode_tables import mode_record

        records = [mode_record(found, mode) for mode in chosen]
        console.print_json(finite({**record, "best": records, "files": [*map(str, files)]}))
    else:
        _show(found, chosen, record)
    console.say(f"{len(found.modes)} modes -> {out}: " + ", ".join(path.name for path in files))


@contextmanager
def _steps() -> Iterator[Any]:
    """A bar on stderr where it is a terminal."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from backlight.cli.console import messages

    console = messages()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("correlating", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _figures(found: Modes, chosen: list[int], data: Path | None, out: Path, kind: str) -> list[Path]:
    """Histograms and coverage of each level, and a sheet of the best modes; none without matplotlib, which is said."""
    from backlight.cli.console import say
    from backlight.contributions.mode_figures import correlation_figure, coverage_figure, exemplar_sheet
    from backlight.evaluation.journal import whole
    from backlight.viz import save_figure

    if find_spec("matplotlib") is None:
        say("no figures: they need pip install 'backlight[plots]'")
        return []
    figures = {f"correlation-{level}": correlation_figure(found, level) for level in found.levels}
    figures |= {f"coverage-{level}": coverage_figure(found, level) for level in found.levels}
    title = f"{found.site}: modes of {found.about}" if found.about else ""
    figures["exemplars"] = exemplar_sheet(found, chosen[:SHEET], _picture(data), title)
    paths = []
    for stem, figure in figures.items():
        paths.append(out / f"{stem}.{kind}")
        with whole(paths[-1]) as partial:
            save_figure(figure, partial, kind)
    return paths


def _picture(data: Path | None) -> Any:
    """Pictures by the samples' names, 96 pixels; None where no folder was given."""
    if data is None:
        return None
    if data.is_file():
        from backlight.store.pictures import ArraySamples

        split = cache(lambda name: ArraySamples(data, name))
        return lambda name: split(name.partition("/")[0]).load(name).inputs
    from backlight.data import Preprocessing, read_image

    small = Preprocessing(size=(96, 96), resize=(96, 96))
    return lambda name: 2 * small.image(read_image(data / name)) - 1


def _show(found: Modes, chosen: list[int], record: dict[str, Any]) -> None:
    """The best modes, and what modes and channels come to, on stdout."""
    from rich.box import HORIZONTALS
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from backlight.cli.console import say

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = max(console.width, 150)
    for note in found.notes:
        say(note)
    table = Table(box=HORIZONTALS)
    for head in ("mode", "active", "best classes or concepts (r)", "held out", "chance", "top channels", "largest on"):
        table.add_column(head, justify="right" if head in ("mode", "active", "held out", "chance") else "left")
    for mode in chosen:
        one = found.level.modes
        best = ", ".join(f"{name} {r:.2f}" for name, r in found.level.best_concepts(mode))
        channels = " ".join(name for name, _ in found.channels(mode, 5))
        sample = found.names[int(found.exemplars.samples[mode, 0])]
        cells = (f"{100 * found.exemplars.active[mode]:.3g} %", best, f"{one.held_out[mode]:.2f}")
        chance = f"{one.chance[mode]:.2f}" if len(one.dealt) else "-"
        table.add_row(str(mode), *map(escape, cells), chance, channels, escape(sample))
    console.print(table)
    for name in found.levels:
        for line in _lines(name, record[name]):
            console.print(escape(line), soft_wrap=True)
    for other, one in record["stability"].items():
        line = (
            "against {}: same class r {:.2f} (others {:.2f}, shuffled channels {:.2f}); matched cosine {:.2f} ({:.2f})"
        )
        values = [one[key] for key in ("mean_class_r", "mean_class_r_other_classes", "mean_class_r_chance")]
        console.print(
            escape(line.format(other, *values, one["mean_cosine"], one["mean_cosine_chance"])), soft_wrap=True
        )


def _lines(level: str, record: dict[str, Any]) -> Iterator[str]:
    yield f"{level} ({record['masks']}): median of the largest r over columns that are alive"
    for title, one in {"modes": record["modes"], **record["channels"]}.items():
        dealt = isfinite(one["correlated_chance"])
        chance, count = (f"chance {one['median_r_chance']:.3f}; ", f"chance {one['correlated_chance']:.1f}; ")
        yield (
            f"  {title}: {one['median_r']:.3f} ({chance if dealt else ''}held out "
            f"{one['median_r_held_out']:.3f}; all columns {one['median_r_all']:.3f}); r > .2: {one['correlated']} of "
            f"{one['alive']} ({count if dealt else ''}held out {one['correlated_held_out']}), "
            f"{one['covered']} {level} covered"
        )
    for quantity, kinds in record["modes_minus_channels"].items():
        told = ", ".join(
            f"{kind.replace('_', ' ')} {one['estimate']:+.3f} [{one['low']:+.3f}, {one['high']:+.3f}]"
            for kind, one in kinds.items()
        )
        yield f"  modes - channels ({quantity}): {told}"
