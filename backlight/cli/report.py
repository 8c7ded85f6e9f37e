"""`backlight report`: one HTML file on pictures, on a network, or on an evaluation."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from backlight.cli.options import Classes, Device, Json, Model, OnDevice, Random, Temperature, Weights

if TYPE_CHECKING:
    from backlight.viz.report_page import Report

report = typer.Typer(
    name="report",
    help="One HTML file that opens from disk: on pictures, on a network, or on an evaluation.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


class Look(StrEnum):
    """Widths of figures."""

    column = "column"
    double = "double"
    text = "text"
    slide = "slide"


Page = Annotated[Path, typer.Option("--out", "-o", metavar="FILE.html", help="The page.")]
Figures = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Write the figures there too, for a paper: PNG and SVG.")
]
Kinds = Annotated[list[str] | None, typer.Option("--figure", help="png, svg, pdf; repeat, or A,B [default: png,svg].")]
Width = Annotated[Look, typer.Option("--style", help="Width of the figures: of one column, of two, of a page.")]
Title = Annotated[str, typer.Option(help="Of the page.")]


@report.command()
def images(
    pictures: Annotated[list[str], typer.Argument(metavar="IMAGE...", help="Picture files, or folders of them.")],
    model: Model = "efficientnet_lite0",
    method: Annotated[
        list[str] | None, typer.Option(help="A name of `backlight methods`; repeat, or A,B [default: four quick ones].")
    ] = None,
    target: Annotated[
        str | None, typer.Option("--target", "-t", metavar="CLASS", help="Name, synset or index; else the prediction.")
    ] = None,
    layer: Annotated[
        list[str] | None, typer.Option(metavar="SITE", help="Whose receptive fields are drawn; repeat; `none`.")
    ] = None,
    places: Annotated[int, typer.Option(min=1, help="Receptive fields a layer.")] = 3,
    dictionaries: Annotated[
        list[Path] | None, typer.Option(metavar="DIR", help="Of `concepts fit`, one layer or all; repeat.")
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="Concepts a layer.")] = 6,
    graph: Annotated[
        list[Path] | None, typer.Option(metavar="GRAPH.json", help="What `graph build` wrote; repeat.")
    ] = None,
    out: Page = Path("out/report.html"),
    figures: Figures = None,
    figure: Kinds = None,
    style: Width = Look.double,
    title: Title = "",
    device: OnDevice = Device.auto,
    batch_size: Annotated[int, typer.Option(min=1, help="The most samples in one pass (points of a path).")] = 8,
    json: Json = False,
    temperature: Temperature = None,
    weights: Weights = None,
    random_weights: Random = False,
    classes: Classes = None,
    set: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="A setting of the methods, or METHOD.NAME=VALUE.")
    ] = None,
) -> None:
    """Pictures by a network: predictions, maps, receptive fields, concepts, graphs. Goes on where it was stopped."""
    from backlight.cli import console
    from backlight.cli.networks import open_network
    from backlight.cli.settings import methods_with_settings, split
    from backlight.graph import ConceptGraph
    from backlight.graph.layers_fitted import open_layers
    from backlight.viz.report_image import METHODS, image_report

    checked(out)
    network = open_network(model, weights, random_weights, classes, device)
    methods = methods_with_settings(method or METHODS, set or [], network.front, temperature)
    layers = None if layer is None else [one for one in split(layer) if one != "none"]
    for one in layers or []:
        network.site(one)
    known = open_layers(dictionaries, model=network.loaded.model) if dictionaries else {}
    graphs = [ConceptGraph.load(path) for path in graph or []]
    with console.progress(0, "explaining") as step:
        made = image_report(
            network.loaded, pictures, methods, target=None if target is None else network.class_index(target),
            layers=layers, places=places, dictionaries=known, graphs=graphs, top=top, internal_batch_size=batch_size,
            figures=figures, kinds=_kinds(figure), style=style.value, parts=out.with_suffix(".parts"), title=title,
            progress=lambda name, done, total: step(f"{name} ({done + 1} of {total})"),
        )  # fmt: skip
    finish(made, out, json)


@report.command()
def model(
    name: Annotated[str, typer.Argument(metavar="MODEL", help="A name of `backlight models`.")],
    image: Annotated[Path | None, typer.Option(help="A picture to try methods on [default: seeded noise].")] = None,
    method: Annotated[
        list[str] | None, typer.Option(help="Methods that are tried; repeat, or A,B [default: all].")
    ] = None,
    out: Page = Path("out/model.html"),
    title: Title = "",
    device: OnDevice = Device.auto,
    json: Json = False,
    weights: Weights = None,
    random_weights: Random = False,
    classes: Classes = None,
) -> None:
    """A network: parameters, input, layers with their shapes, which methods fit, and which rule answers where."""
    from backlight.cli import console
    from backlight.cli.networks import open_network
    from backlight.cli.settings import split
    from backlight.methods import METHODS
    from backlight.viz.report_model import model_report

    checked(out)
    network = open_network(name, weights, random_weights, classes, device)
    methods = split(method) if method else list(METHODS)
    with console.progress(len(methods), "trying") as step:
        made = model_report(network.loaded, image, methods, title=title, progress=lambda name, *_: step(name))
    finish(made, out, json, left_out=False)


@report.command()
def evaluation(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="What `evaluate` or `benchmark` wrote.")],
    out: Page = Path("out/evaluation.html"),
    figures: Figures = None,
    figure: Kinds = None,
    style: Width = Look.column,
    title: Title = "",
    json: Json = False,
) -> None:
    """An evaluation or a benchmark: metrics with intervals, differences, controls, footnotes, settings."""
    from backlight.viz.report_evaluation import evaluation_report

    checked(out)
    made = evaluation_report(folder, figures=figures, kinds=_kinds(figure), style=style.value, title=title)
    finish(made, out, json)


def checked(out: Path) -> None:
    """Make the page's folder. Raises `InputError` where the page cannot be written."""
    from backlight.cli.outputs import output_folder
    from backlight.errors import InputError

    if out.is_dir() or out.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"--out is the page's file and ends in .html, not {str(out)!r}")
    output_folder(out.parent)


def finish(made: Report, out: Path, as_json: bool, left_out: bool = True) -> None:
    """Write the page, and say so. Exit status 2 where something that was asked for is not in it (`left_out`)."""
    from backlight.cli import console

    made.write(out)
    failed = dict(made.failed)
    if left_out:
        for name, reason in failed.items():
            console.report_error(ValueError(reason), name)
    if as_json:
        console.print_json({"page": str(out), "figures": [str(one) for one in made.figures], "failed": failed})
    else:
        console.say(f"{made.title} -> {out}" + (f", {len(made.figures)} figures" if made.figures else ""))
    if failed and left_out:
        raise typer.Exit(2)


def _kinds(given: list[str] | None) -> list[str]:
    from backlight.cli.settings import split

    return split(given or ["png", "svg"])
