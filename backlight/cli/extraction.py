"""`backlight extract`: pictures in; a store of contributions, activations and gradients out, resumable."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from backlight.cli import console
from backlight.cli.console import LINE_EVERY
from backlight.cli.options import Classes, Device, Json, Model, OnDevice, Random, Weights

if TYPE_CHECKING:
    from torch import nn

    from backlight.contributions.algorithms import Algorithm
    from backlight.store import Progress, Store


class SiteKind(StrEnum):
    """Sites by structure."""

    blocks = "blocks"
    tokens = "tokens"
    mlp = "mlp"
    attention = "attention"


class Engine(StrEnum):
    """Where the workers are."""

    process = "process"
    ray = "ray"


class Split(StrEnum):
    """Which pictures of an .npz file."""

    test = "test"
    train = "train"


class Dtype(StrEnum):
    """How rows are stored."""

    float32 = "float32"
    float16 = "float16"


def extract(
    data: Annotated[Path, typer.Option(metavar="FOLDER|FILE.npz", help="Pictures: a folder, or x_test, y_test.")],
    model: Model = "efficientnet_lite0",
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="DIR", help="The store; one that is there goes on.")
    ] = Path("store"),
    sites: Annotated[
        list[str] | None, typer.Option(help="A,B of `backlight layers`, A:input, or patterns, layer?.*; else --kind.")
    ] = None,
    kind: Annotated[SiteKind, typer.Option(help="Sites by structure, where none are named.")] = SiteKind.blocks,
    algorithm: Annotated[str, typer.Option(help="Of contributions.")] = "HiddenIntegratedGradients",
    set: Annotated[list[str] | None, typer.Option(metavar="NAME=VALUE", help="A setting of the algorithm.")] = None,
    rules: Annotated[str, typer.Option(help="How cotangents travel back: gradient, soft_pullback, ...")] = "gradient",
    target: Annotated[
        str, typer.Option("--target", "-t", help="top1, topK, probability, contrast[:A,B], entropy, logit:C, label.")
    ] = "top1",
    baseline: Annotated[
        str | None,
        typer.Option(
            help="grey (the mean colour), black, white, blur, mean (its own colours), data-mean (of the first 1000 "
            "pictures), none, or a file with a tensor [default: grey where the algorithm follows a path]."
        ),
    ] = None,
    quantities: Annotated[
        str, typer.Option(help="Of contributions, activations, gradients.")
    ] = "contributions,activations,gradients",
    positions: Annotated[bool, typer.Option("--positions", help="Keep what is at every position, too.")] = False,
    class_token: Annotated[bool, typer.Option(help="Sum over class and register tokens, too.")] = True,
    heads: Annotated[int | None, typer.Option(min=1, help="Sum over each of so many heads, too.")] = None,
    labels: Annotated[bool, typer.Option(help="The folder has labels.csv, or a folder for each class.")] = True,
    split: Annotated[Split, typer.Option(help="Of a file: x_test, or x_train.")] = Split.test,
    limit: Annotated[
        int | None, typer.Option(min=1, help="The most pictures; a larger one later adds to them.")
    ] = None,
    dtype: Annotated[Dtype, typer.Option(help="How rows are stored.")] = Dtype.float32,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures that are computed together.")] = 8,
    block: Annotated[int, typer.Option(min=1, help="Pictures that are finished together.")] = 128,
    engine: Annotated[
        Engine, typer.Option(help="Processes of this machine, or actors of a Ray cluster.")
    ] = Engine.process,
    workers: Annotated[int, typer.Option("--workers", "-w", min=1, help="How many.")] = 1,
    threads: Annotated[int | None, typer.Option(min=1, help="Of torch in each; else the cores are divided.")] = None,
    device: OnDevice = Device.auto,
    seed: Annotated[int, typer.Option(help="Of random weights.")] = 0,
    weights: Weights = None,
    random_weights: Random = False,
    classes: Classes = None,
    as_json: Json = False,
) -> None:
    """Compute contributions of hidden units to the output for many pictures, and keep them in a store on disk."""
    from dataclasses import replace

    from backlight.cli.networks import choose_device
    from backlight.cli.settings import split as listed
    from backlight.contributions import ContributionCollector
    from backlight.contributions.recipe import DATA_MEAN, MEANT, mean_picture
    from backlight.data.labelled import LabelledFolder
    from backlight.store import ArraySamples
    from backlight.store import extract as extracted

    place = choose_device(device.value)
    asked = ContributionCollector(
        model,
        ("input",),  # replaced below: the network says which sites it has
        algorithm=algorithm_with_settings(algorithm, set or []),
        rules=rules,
        target=target,
        baseline=None if baseline == DATA_MEAN else baseline,
        quantities=tuple(listed([quantities])),
        class_token=class_token,
        heads=heads,
        weights=None if weights is None else str(Path(weights).absolute()),
        random_weights=random_weights,
        classes=classes,
        seed=seed,
        device=str(place),
    )
    loaded: Any = asked.loaded
    collector = replace(asked, sites=chosen_sites(loaded.model, listed(sites or []), kind.value), positions=positions)

    def pictures(most: int | None) -> Any:
        if data.suffix == ".npz":
            return ArraySamples(data, split.value, most)
        return LabelledFolder(data, loaded.classes, loaded.preprocessing, most, labelled=labels)

    if baseline == DATA_MEAN:  # of the same pictures whatever the limit
        collector = replace(collector, baseline=mean_picture(pictures(MEANT)))
    samples = pictures(limit)
    begun = time.monotonic()
    with news(len(samples)) as tell:
        store = extracted(
            collector,
            samples,
            out,
            engine=engine.value,
            workers=workers,
            threads=threads,
            batch_size=batch_size,
            block=block,
            dtype=dtype.value,
            progress=tell,
        )
    summary = record(store, time.monotonic() - begun)
    console.print_json(summary) if as_json else show(summary)
    if store.skipped:
        raise typer.Exit(2)


def algorithm_with_settings(name: str, given: Iterable[str]) -> Algorithm:
    """A contribution algorithm with its settings, `NAME=VALUE`.

    Raises:
        UnknownNameError: an unknown algorithm or setting; InputError: a value of the wrong type.
    """
    from dataclasses import fields, replace

    from backlight.cli.settings import parse_setting, parse_value
    from backlight.contributions import as_algorithm
    from backlight.errors import UnknownNameError

    algorithm = as_algorithm(name)
    known = {one.name: getattr(algorithm, one.name) for one in fields(algorithm) if one.init}
    settings = {}
    for key, text in map(parse_setting, given):
        if key not in known:
            raise UnknownNameError(f"setting of {name}", key, known)
        settings[key] = parse_value(key, text, known[key])
    return replace(algorithm, **settings)


def chosen_sites(model: nn.Module, given: Iterable[str], kind: str) -> tuple[str, ...]:
    """The sites that are named, patterns replaced by the layers that match; without any, those of the kind.

    Raises:
        UnknownNameError: a name that no layer has, or a pattern that none matches; SiteError: no sites of that kind.
    """
    from backlight.contributions import default_sites
    from backlight.engine.sites import INPUT, Site
    from backlight.models import find_layers, resolve_layer

    found: list[str] = []
    for address in given:
        name, colon, side = address.partition(":")
        if any(sign in name for sign in "*?["):
            found += [f"{layer}{colon}{side}" for layer in find_layers(model, name)]
            continue
        if address != INPUT:
            resolve_layer(model, Site.parse(address).layer)
        found.append(address)
    return tuple(dict.fromkeys(found)) or default_sites(model, kind)


def record(store: Store, seconds: float) -> dict[str, Any]:
    """What was extracted, as JSON can hold it."""
    channels = {site: store.rows(site, store.quantities(site)[0]).shape[1] for site in store.sites}
    return {
        "store": str(store.folder),
        "samples": len(store),
        "skipped": {one.sample: one.reason for one in store.skipped},
        "channels": channels,
        "quantities": list(store.quantities(store.sites[0])),
        "bytes": sum(path.stat().st_size for path in store.folder.rglob("*") if path.is_file()),
        "seconds": seconds,
    }


def show(summary: dict[str, Any]) -> None:
    """A line on stdout for each site, and one for all."""
    for site, channels in summary["channels"].items():
        print(f"{site}: {channels} channels of {', '.join(summary['quantities'])}")
    size = summary["bytes"] / 2**20
    print(f"{summary['samples']} samples, {size:.3g} MiB -> {summary['store']}", flush=True)


@contextmanager
def news(total: int) -> Iterator[Callable[[Progress], None]]:
    """Progress on stderr: a bar with the rate where it is a terminal, else a line a minute; what is skipped at once."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    shown = console.messages()
    columns = (TextColumn("extracting"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"))
    times = (TimeElapsedColumn(), TimeRemainingColumn())
    with Bars(*columns, *times, console=shown, transient=True, disable=not shown.is_terminal) as bar:
        task = bar.add_task("extracting", total=total, rate="")
        told, done = time.monotonic(), 0

        def tell(step: Progress) -> None:
            nonlocal told, done
            done = step.done
            rate = f"{step.rate:.3g} images/s" if step.rate else ""
            bar.update(task, completed=step.done, rate=rate)
            for one in step.skipped:
                console.report_error(ValueError(one.reason), one.sample)
            if not shown.is_terminal and time.monotonic() - told > LINE_EVERY:
                told = time.monotonic()
                console.say(f"{step.done} of {step.total} images{', ' + rate if rate else ''}")

        try:
            yield tell
        except KeyboardInterrupt:
            bar.stop()
            console.say(f"{done} of {total} images were reached; the same command goes on after the last whole block")
            raise
