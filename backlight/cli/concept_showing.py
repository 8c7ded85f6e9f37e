"""`backlight concepts show`: what concepts are about; a table of all, or pages of some."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from backlight.cli.concept_fitting import BankPlace, Folder
from backlight.cli.options import Classes, Format, Json, Kind, Out

if TYPE_CHECKING:
    from backlight.concepts.concepts import Concepts
    from backlight.concepts.exemplars import Exemplar
    from backlight.concepts.naming import ClassNaming
    from backlight.data import ClassNames


class Diverse(StrEnum):
    """How exemplars are chosen among the strongest."""

    no = "no"
    vectors = "vectors"
    classes = "classes"


class Order(StrEnum):
    """Which concepts come first in the table."""

    explained = "explained"
    frequency = "frequency"
    names = "names"


def show(
    folder: Folder,
    concept: Annotated[list[int] | None, typer.Option("--concept", "-k", help="Draw its page; repeat.")] = None,
    top: Annotated[int, typer.Option(min=1, help="Exemplars on a page, or concepts in the table.")] = 8,
    order: Annotated[
        Order, typer.Option(help="Of the table: by R2 that is lost without, frequency, or the r of the first name.")
    ] = Order.explained,
    diverse: Annotated[Diverse, typer.Option(help="Far from each other, or of each class in turn.")] = Diverse.no,
    mass: Annotated[float, typer.Option(help="The share of a field that crops hold.")] = 0.9,
    coder: Annotated[str | None, typer.Option(help="Whose codes: of `concepts encode` [the dictionary's].")] = None,
    hierarchy: Annotated[str | None, typer.Option(metavar="NAME", help="imagenet, or a JSON file of concepts.")] = None,
    by: Annotated[str, typer.Option(help="label, or prediction: it needs no labels.")] = "label",
    min_images: Annotated[int, typer.Option(min=1, help="Leave out classes and concepts with fewer.")] = 10,
    bank: BankPlace = None,
    data: Annotated[Path | None, typer.Option(metavar="FOLDER", help="The pictures, where they have moved.")] = None,
    classes: Classes = None,
    format: Format = Kind.png,
    json: Json = False,
    out: Out = Path("out/concepts"),
) -> None:
    """Show concepts: how often they are on and what they go with; of some, exemplars with what each is made of."""
    from backlight.cli import console
    from backlight.cli.outputs import output_folder, write_figure
    from backlight.concepts.concepts import Concepts
    from backlight.concepts.exemplars import exemplars
    from backlight.data import ClassNames

    concepts = Concepts.open(folder, coder, bank=bank)
    names = ClassNames.of(classes) if classes else concepts.bank.classes
    naming = _naming(concepts, hierarchy, names, by, min_images)
    if not concept:
        rows = overview(concepts, naming, top, order.value)
        console.print_json(rows) if json else _show_overview(concepts, rows)
        return
    if data is not None:
        concepts = _with_pictures(concepts, data)
    place, records = output_folder(out), []
    for k in concept:
        found = exemplars(concepts, k, top, diverse=diverse.value)
        told = described(concepts, k, naming)
        figure = write_figure(
            place / f"concept-{k}.{format.value}", _page(concepts, found, told, mass, names), format.value
        )
        records.append({**told, "exemplars": [exemplar_record(one, mass, names) for one in found], "figure": figure})
        if not json:
            _show_page(records[-1])
    if json:
        console.print_json(records)


def overview(concepts: Concepts, naming: ClassNaming | None, top: int, order: str) -> list[dict[str, Any]]:
    """The first concepts of an order, as plain values. Raises `InputError`: by names, and there are none."""
    import torch

    from backlight.errors import InputError

    if order == "names" and naming is None:
        raise InputError("there are no names to order concepts by")
    by = naming.r.amax(1) if order == "names" and naming is not None else concepts.statistics[order]
    places = torch.where(by.isnan(), -torch.inf, by).argsort(descending=True, stable=True)
    return [described(concepts, int(k), naming) for k in places[:top]]


def described(concepts: Concepts, k: int, naming: ClassNaming | None) -> dict[str, Any]:
    """What is known of a concept, as plain values."""
    from backlight.errors import InputError

    if not 0 <= k < len(concepts):
        raise InputError(f"there are concepts 0 to {len(concepts) - 1}, not {k}")
    numbers = {name: float(concepts.statistics[name][k]) for name in ("frequency", "explained")}
    return {
        "concept": k,
        "alive": bool(concepts.statistics["alive"][k]),
        **{name: value if value == value else None for name, value in numbers.items()},
        "classes": [] if naming is None else [{"name": name, "r": r} for name, r in naming.top(k)],
    }


def exemplar_record(one: Exemplar, mass: float, names: ClassNames) -> dict[str, Any]:
    """An exemplar as plain values."""
    return {
        "image": one.name,
        "class": names.name(one.label) if one.label >= 0 else None,
        "rank": one.rank,
        "position": list(one.position),
        "code": one.code,
        "strength": one.strength,
        "box": list(one.box(mass)),
    }


def _naming(
    concepts: Concepts, hierarchy: str | None, names: ClassNames, by: str, min_images: int
) -> ClassNaming | None:
    """What concepts go with; None where no image has a class, or no class has enough images, which is said."""
    from backlight.cli.console import say
    from backlight.concepts.naming import name_by_class
    from backlight.data.hierarchy import Hierarchy
    from backlight.errors import InputError

    above = None if hierarchy is None else Hierarchy.of(hierarchy, names)
    try:
        return name_by_class(concepts, hierarchy=above, names=names, by=by, min_images=min_images)
    except InputError as error:
        say(f"no names by class: {error}")
        return None


def _with_pictures(concepts: Concepts, data: Path) -> Concepts:
    """The same with the pictures of a folder."""
    from backlight.concepts.bank import Bank
    from backlight.concepts.concepts import Concepts as Opened
    from backlight.data import ClassNames
    from backlight.data.labelled import LabelledFolder
    from backlight.errors import InputError
    from backlight.models import LoadedModel

    loaded = concepts.bank.loaded
    if not isinstance(loaded, LoadedModel):
        raise InputError("pictures of a folder need a network whose preprocessing is known")
    samples = LabelledFolder(data, ClassNames(), loaded.preprocessing, labelled=False)
    bank = Bank(concepts.bank.store, loaded, samples)
    return Opened(concepts.decomposed, concepts.coder, bank)


def _page(concepts: Concepts, found: list[Exemplar], told: dict[str, Any], mass: float, names: ClassNames) -> Any:
    from backlight.viz.concept_sheet import ConceptPanel, concept_figure

    panels = []
    for one in found:
        height, width = one.picture.shape[1:]
        rows, columns = concepts.bank.grid(one.site)
        row, column = one.position
        point = None if row < 0 else ((column + 0.5) * width / columns, (row + 0.5) * height / rows)
        label = names.name(one.label).partition(",")[0] if one.label >= 0 else one.name
        where = "class token" if row < 0 else f"({row}, {column})"
        lines = (label, f"{one.strength:.3g} at {where}")
        panels.append(ConceptPanel(one.picture, one.ierf, one.box(mass), one.crop(mass, masked=True), point, lines))
    best = ", ".join(f"{one['name'].partition(',')[0]} r {one['r']:.2f}" for one in told["classes"][:2])
    title = f"{concepts.model_name}, {concepts.site}: concept {told['concept']}, on in {100 * told['frequency']:.2g} %"
    return concept_figure(panels, f"{title} of vectors{': ' + best if best else ''}")


def _show_page(record: dict[str, Any]) -> None:
    best = ", ".join(f"{one['name']} r {one['r']:.2f}" for one in record["classes"])
    print(f"concept {record['concept']}: on in {100 * record['frequency']:.3g} % of vectors; {best or 'no class'}")
    for one in record["exemplars"]:
        print(f"  {one['strength']:9.3g}  {one['image']} {tuple(one['position'])} {one['class'] or ''}")
    print(f"  -> {record['figure']}", flush=True)


def _show_overview(concepts: Concepts, rows: list[dict[str, Any]]) -> None:
    from rich.box import HORIZONTALS
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    alive = int(concepts.statistics["alive"].sum())
    print(f"{concepts.model_name}, {concepts.site}: {len(concepts)} concepts, {alive} alive; codes: {concepts.coder}")
    table = Table(box=HORIZONTALS)
    for name in ("concept", "on in %", "R2 lost without", "goes with"):
        table.add_column(name, justify="left" if name == "goes with" else "right")
    for one in rows:
        lost = "-" if one["explained"] is None else f"{one['explained']:.4f}"
        best = ", ".join(f"{name['name'].partition(',')[0]} {name['r']:.2f}" for name in one["classes"])
        table.add_row(str(one["concept"]), f"{100 * one['frequency']:.3g}", lost, escape(best) or "-")
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = max(console.width, 120)
    console.print(table)
