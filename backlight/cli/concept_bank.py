"""`backlight concepts bank`: pictures in; a store of sampled feature vectors of hidden layers out, resumable."""

from __future__ import annotations

import time
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from backlight.cli.extraction import Dtype, Engine, Split, chosen_sites, news
from backlight.cli.options import Classes, Device, Json, Model, OnDevice, Random, Weights

if TYPE_CHECKING:
    from backlight.concepts.bank import Bank


class Sampling(StrEnum):
    """How positions are drawn."""

    relevance = "relevance"
    uniform = "uniform"
    all = "all"


class ClassToken(StrEnum):
    """Whether the class token is in the bank."""

    drop = "drop"
    draw = "draw"
    keep = "keep"


class Attributor(StrEnum):
    """How the relevance of positions is found."""

    auto = "auto"
    srd = "srd"
    attnlrp = "attnlrp"
    gradient = "gradient"


def bank(
    data: Annotated[Path, typer.Option(metavar="FOLDER|FILE.npz", help="Pictures: a folder, or x_test, y_test.")],
    sites: Annotated[
        list[str], typer.Option("--site", "--sites", "-s", help="A,B of `backlight layers`, or patterns, blocks.?.")
    ],
    model: Model = "efficientnet_lite0",
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="DIR", help="The bank; one that is there goes on.")
    ] = Path("bank"),
    sampling: Annotated[
        Sampling, typer.Option(help="In proportion to relevance; uniform, the control; or all positions.")
    ] = Sampling.relevance,
    per_image: Annotated[int, typer.Option(min=1, help="Positions that are drawn of a picture.")] = 1,
    replacement: Annotated[bool, typer.Option("--replacement", help="A position may be drawn twice.")] = False,
    class_token: Annotated[
        ClassToken, typer.Option(help="Drop it, draw it as any position, or keep it besides.")
    ] = ClassToken.drop,
    target: Annotated[
        str, typer.Option("--target", "-t", help="prediction, label, norm (of features), or as in `extract`.")
    ] = "auto",
    attributor: Annotated[
        Attributor, typer.Option(help="Of the relevance; auto: srd for convolutions, attnlrp for attention.")
    ] = Attributor.auto,
    labels: Annotated[bool, typer.Option(help="The folder has labels.csv, or a folder for each class.")] = True,
    split: Annotated[Split, typer.Option(help="Of a file: x_test, or x_train.")] = Split.test,
    limit: Annotated[
        int | None, typer.Option(min=1, help="The most pictures; a larger one later adds to them.")
    ] = None,
    dtype: Annotated[Dtype, typer.Option(help="How vectors are stored.")] = Dtype.float32,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures that are computed together.")] = 8,
    block: Annotated[int, typer.Option(min=1, help="Pictures that are finished together.")] = 128,
    engine: Annotated[
        Engine, typer.Option(help="Processes of this machine, or actors of a Ray cluster.")
    ] = Engine.process,
    workers: Annotated[int, typer.Option("--workers", "-w", min=1, help="How many.")] = 1,
    threads: Annotated[int | None, typer.Option(min=1, help="Of torch in each; else the cores are divided.")] = None,
    device: OnDevice = Device.auto,
    seed: Annotated[int, typer.Option(min=0, help="Of the draws, and of random weights.")] = 0,
    weights: Weights = None,
    random_weights: Random = False,
    classes: Classes = None,
    as_json: Json = False,
) -> None:
    """Sample feature vectors of hidden layers, where they matter for the output, and keep them on disk."""
    from backlight.cli.console import print_json
    from backlight.cli.networks import choose_device
    from backlight.cli.settings import split as listed
    from backlight.concepts.bank import make_bank
    from backlight.data import ClassNames
    from backlight.data.labelled import LabelledFolder
    from backlight.models import load
    from backlight.store import ArraySamples

    place = choose_device(device.value)
    path = None if weights is None else str(Path(weights).absolute())
    loaded = load(model, weights=path, pretrained=not random_weights)
    features = loaded.classes.unit == "feature"  # the labels of the pictures have names all the same
    names = ClassNames.of(classes) if classes else loaded.classes
    chosen = chosen_sites(loaded.model, listed(sites), "blocks")
    samples: Any = (
        ArraySamples(data, split.value, limit)
        if data.suffix == ".npz"
        else LabelledFolder(data, names, loaded.preprocessing, limit, labelled=labels)
    )
    begun = time.monotonic()
    with news(len(samples)) as tell:
        found = make_bank(
            model,
            samples,
            chosen,
            out,
            sampling=sampling.value,
            per_image=per_image,
            replacement=replacement,
            class_token=class_token.value,
            target=target,
            attributor=attributor.value,
            seed=seed,
            weights=path,
            random_weights=random_weights,
            classes=None if features else classes,
            device=str(place),
            engine=engine.value,
            workers=workers,
            threads=threads,
            batch_size=batch_size,
            block=block,
            dtype=dtype.value,
            progress=tell,
        )
    summary = record(found, time.monotonic() - begun)
    print_json(summary) if as_json else show(summary)
    if found.store.skipped:
        raise typer.Exit(2)


def record(bank: Bank, seconds: float) -> dict[str, Any]:
    """What was sampled, as JSON can hold it."""
    shapes = {site: bank.rows(site).shape for site in bank.sites}
    return {
        "bank": str(bank.folder),
        "model": bank.model_name,
        "images": len(bank),
        "skipped": {one.sample: one.reason for one in bank.store.skipped},
        **bank.settings,
        "sites": {site: {"vectors": shape[0], "channels": shape[1]} for site, shape in shapes.items()},
        "bytes": sum(path.stat().st_size for path in bank.folder.rglob("*") if path.is_file()),
        "seconds": seconds,
    }


def show(summary: dict[str, Any]) -> None:
    """A line on stdout for each site, and one for all."""
    for site, told in summary["sites"].items():
        print(f"{site}: {told['vectors']} vectors of {told['channels']} channels")
    way = f"by {summary['attributor']} relevance" if summary["sampling"] == "relevance" else summary["sampling"]
    size = summary["bytes"] / 2**20
    print(f"{summary['images']} images, positions {way}, {size:.3g} MiB -> {summary['bank']}", flush=True)
