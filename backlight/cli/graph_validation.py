"""`backlight graph validate`: whether the edges of a picture's graph find the parents that make a concept."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from backlight.cli.graph_options import Coder, CoderSettings, Picture, coding
from backlight.cli.options import Classes, Device, Json, Model, OnDevice, Random, Weights, check_picture

SHOWN = (("insertion max", True), ("deletion max", False), ("spearman", True))


def validate(
    image: Picture,
    concepts: Annotated[
        list[Path],
        typer.Option("--concepts", "-c", metavar="DIR", help="Of `concepts fit`, two layers or more; repeat."),
    ],
    model: Model = "efficientnet_lite0",
    operator: Annotated[
        list[str] | None, typer.Option("--operator", help="An attribution; repeat, or A,B [default: all].")
    ] = None,
    coder: Coder = None,
    set: CoderSettings = None,
    targets: Annotated[int, typer.Option(min=1, help="Children of a pair of layers.")] = 5,
    by: Annotated[str, typer.Option(help="mass: the strongest; importance: those of the predicted class.")] = "mass",
    points: Annotated[int, typer.Option(min=2, help="Of a curve.")] = 21,
    residual: Annotated[bool, typer.Option("--residual", help="Keep what no concept tells.")] = False,
    seed: Annotated[int, typer.Option(help="Of the random order.")] = 0,
    device: OnDevice = Device.auto,
    json: Json = False,
    weights: Weights = None,
    random_weights: Random = False,
    classes: Classes = None,
) -> None:
    """Add and take away parents in the order of their edges (iERF, section VI-C), and from the running model.

    Areas under the curves of the largest cosine, means over the children, beside a random order and that of the codes;
    and Spearman's correlation of edges with what the child loses in the running model. Many pictures: `benchmark icat`.
    """
    from itertools import pairwise

    from backlight.benchmarks.icat import Icat, chosen_operators, picture
    from backlight.benchmarks.subjects import Subject
    from backlight.cli import console
    from backlight.cli.networks import open_network
    from backlight.cli.settings import split
    from backlight.errors import InputError
    from backlight.graph.layers import in_order
    from backlight.graph.layers_fitted import open_layers
    from backlight.graph.validation import Protocol

    check_picture(image, "`backlight benchmark icat` takes many pictures")
    coded = coding(coder, set)
    settings = Icat(
        operators=chosen_operators(split(operator) if operator else None), targets=targets, by=by,
        protocol=Protocol(points=points, residual=residual),
    )  # fmt: skip
    network = open_network(model, weights, random_weights, classes, device)
    layers = open_layers(concepts, coder, model=network.loaded.model, tags=False, **coded)
    if len(layers) < 2:
        raise InputError(f"edges go between layers: concepts of {', '.join(layers)} alone; give two or more")
    x = network.loaded.preprocessing.tensor(image)[None].to(network.device)
    sites, _ = in_order(network.loaded.model, x, layers)
    subject = Subject(network.loaded.name, network.loaded.model)
    rows, failures = picture(subject, x, image.name, layers, list(pairwise(sites)), settings, seed)
    found = [record(row) for row in rows]
    left_out = [{"method": one.method, "reason": one.reason} for one in failures]
    if json:
        console.print_json({"image": image.name, "rows": found, "left out": left_out})
        return
    show(found)
    for one in left_out:
        console.say(f"left out: {one['method']}: {one['reason']}")


def record(row: dict[str, Any]) -> dict[str, Any]:
    """A pair of layers and an operator: areas, agreements and costs; curves are left out."""
    pair, operator = row["method"].split(": ", 1)
    start, stop = pair.split(" > ")
    left = ("sample", "method", "target", "predicted", "score", "seconds")
    kept = {
        name: None if value != value else value  # JSON has no NaN
        for name, value in row.items()
        if name not in left and not name.startswith(("inserted ", "deleted "))
    }
    return {"from": start, "to": stop, "operator": operator, **kept}


def show(found: list[dict[str, Any]]) -> None:
    """A table a pair of layers, the best of each column in bold."""
    from rich.box import HORIZONTALS
    from rich.table import Table

    from backlight.benchmarks.icat_report import CONTROLS, MEASURED
    from backlight.cli.graph import print_table

    for pair in dict.fromkeys((one["from"], one["to"]) for one in found):
        rows = [one for one in found if (one["from"], one["to"]) == pair]
        table = Table(title=" > ".join(pair), title_justify="left", box=HORIZONTALS)
        table.add_column("operator")
        for name, higher in SHOWN:
            table.add_column(f"{name} {'↑' if higher else '↓'}", justify="right")
        best = {}
        for name, higher in SHOWN:
            values = [
                one[name]
                for one in rows
                if one[name] is not None
                and one["operator"] not in (*CONTROLS, *((MEASURED,) if name == "spearman" else ()))
            ]
            best[name] = (max if higher else min)(values, default=None)
        for one in rows:
            cells = ["–" if one[name] is None else f"{one[name]:.3f}" for name, _ in SHOWN]
            bold = [one[name] is not None and one[name] == best[name] for name, _ in SHOWN]
            told = [f"[bold]{cell}[/]" if on else cell for cell, on in zip(cells, bold, strict=True)]
            table.add_row(one["operator"], *told)
        print_table(table)
