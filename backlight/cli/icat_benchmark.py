"""`backlight benchmark icat`: which attribution finds the parents that make a concept."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from backlight.cli.options import Classes, Device, OnDevice, Random, Weights


def icat(
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model", "-m", help="A name of `backlight models`; repeat, or A,B [default: the embedded ones]."
        ),
    ] = None,
    data: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Pictures; no labels are needed.")] = None,
    layers: Annotated[
        list[str] | None,
        typer.Option("--layers", metavar="A,B,C", help="Each and the next are a pair [default: known ones]."),
    ] = None,
    concepts: Annotated[
        list[Path] | None,
        typer.Option(metavar="DIR", help="A folder of `backlight concepts fit`, one a layer; in place of --fit."),
    ] = None,
    fit: Annotated[
        str, typer.Option(metavar="NAME:SETTING=VALUE", help="A dictionary to fit on the other pictures.")
    ] = "KMeans:n_modes=8x",
    rows: Annotated[int, typer.Option(min=1, help="Vectors a layer that it is fitted on.")] = 20_000,
    coder: Annotated[
        str | None, typer.Option(metavar="NAME:SETTING=VALUE", help="Of the codes [default: the dictionary's own].")
    ] = None,
    operator: Annotated[
        list[str] | None, typer.Option("--operator", help="An attribution; repeat, or A,B [default: all].")
    ] = None,
    samples: Annotated[
        int | None, typer.Option(min=2, help="Of KernelSHAP [default: twice the number of parents].")
    ] = None,
    targets: Annotated[int, typer.Option(min=1, help="Children of a picture and pair.")] = 3,
    by: Annotated[str, typer.Option(help="mass: the strongest; importance: those of the predicted class.")] = "mass",
    points: Annotated[int, typer.Option(min=2, help="Of a curve.")] = 21,
    residual: Annotated[bool, typer.Option("--residual", help="Keep what no concept tells.")] = False,
    causal: Annotated[bool, typer.Option("--causal/--no-causal", help="Take parents out of the running model.")] = True,
    quick: Annotated[bool, typer.Option("--quick", help="4 pictures.")] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="The most pictures [default: 100].")] = None,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="The same call goes on.")] = Path("out"),
    seed: Annotated[int, typer.Option(help="Of all draws.")] = 314,
    device: OnDevice = Device.auto,
    weights: Weights = None,
    random_weights: Random = False,
    classes: Classes = None,
) -> None:
    """iERF, Figure 11: insertion and deletion of parents, and what the running model says, by attribution."""
    from backlight.benchmarks.icat import Icat, chosen_operators
    from backlight.benchmarks.icat import icat as run
    from backlight.benchmarks.icat_dictionaries import coder_named
    from backlight.benchmarks.study import Options
    from backlight.cli.benchmarking import open_subjects, show_report, stages, tables_folder
    from backlight.cli.console import say
    from backlight.cli.settings import split
    from backlight.graph.validation import Protocol

    settings = Icat(
        layers=tuple(split(layers)) if layers else None, concepts=tuple(concepts or ()), fit=fit, rows=rows,
        coder=coder_named(coder), operators=chosen_operators(split(operator) if operator else None, samples),
        targets=targets, by=by, protocol=Protocol(points=points, residual=residual), causal=causal,
    )  # fmt: skip
    subjects = open_subjects(model, weights, random_weights, classes, device)
    with stages() as tell:
        options = Options(tables_folder(out), data, quick=quick, limit=limit, seed=seed, progress=tell)
        show_report(run(subjects, options, settings, say), out)
