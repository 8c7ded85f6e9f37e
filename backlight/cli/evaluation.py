"""`backlight evaluate`: its options."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from backlight.cli.options import (
    Classes,
    Device,
    Format,
    Json,
    Kind,
    Model,
    OnDevice,
    Out,
    Random,
    Temperature,
    Weights,
)


class Explained(StrEnum):
    """Which class is explained."""

    label = "label"
    prediction = "prediction"


Data = Annotated[str, typer.Option(metavar="FOLDER", help="Pictures with labels.csv, or a folder for each class.")]
Methods = Annotated[
    list[str] | None, typer.Option(help="A name of `backlight methods` [default: SoftPullback]; repeat, or A,B.")
]
Metrics = Annotated[
    list[str] | None, typer.Option(help="NAME or NAME:PRESET; repeat, or A,B [default: all of the preset].")
]
Preset = Annotated[str | None, typer.Option(help="The metrics' protocol: pullbacks, ierf, quantus, signed.")]
Limit = Annotated[int | None, typer.Option(min=1, help="The most pictures; a larger one later adds to them.")]
Baseline = Annotated[str | None, typer.Option(help="The method to compare with [default: the first].")]
Masks = Annotated[str | None, typer.Option(metavar="DIR", help="PNG masks of the objects, by picture name.")]
Target = Annotated[Explained, typer.Option("--target", "-t", help="Which class is explained.")]
Seed = Annotated[int, typer.Option(help="Of all draws of metrics and controls.")]
Controls = Annotated[bool, typer.Option(help="Measure maps that explain nothing, too.")]
Negatives = Annotated[
    list[str] | None,
    typer.Option(help="Methods whose negatives are measured too; repeat, or A,B; all, none [default: the baseline]."),
]
AtOnce = Annotated[int, typer.Option(min=1, help="Pictures that are explained together.")]
Batch = Annotated[int, typer.Option(min=1, help="The most samples in one pass of the network.")]
Settings = Annotated[
    list[str] | None, typer.Option(metavar="NAME=VALUE", help="A setting of the methods, or METHOD.NAME=VALUE.")
]
MetricSettings = Annotated[
    list[str] | None, typer.Option(metavar="NAME=VALUE", help="A setting of the metrics, or METRIC.NAME=VALUE.")
]


def evaluate(
    data: Data,
    methods: Methods = None,
    metrics: Metrics = None,
    preset: Preset = None,
    model: Model = "efficientnet_lite0",
    limit: Limit = None,
    out: Out = Path("out"),
    baseline: Baseline = None,
    masks: Masks = None,
    target: Target = Explained.label,
    seed: Seed = 0,
    controls: Controls = True,
    negatives: Negatives = None,
    images_at_once: AtOnce = 4,
    batch_size: Batch = 32,
    device: OnDevice = Device.auto,
    format: Format = Kind.png,
    json: Json = False,
    temperature: Temperature = None,
    weights: Weights = None,
    random_weights: Random = False,
    classes: Classes = None,
    set: Settings = None,
    metric_set: MetricSettings = None,
) -> None:
    """Measure explanations on labelled pictures: rows as they come, resumable; then tables and figures."""
    from backlight.cli import evaluating
    from backlight.cli.networks import open_network
    from backlight.cli.settings import methods_with_settings

    chosen = evaluating.metrics_with_settings(metrics or [], metric_set or [], preset)
    network = open_network(model, weights, random_weights, classes, device)
    explainers = methods_with_settings(methods or ["SoftPullback"], set or [], network.front, temperature)
    samples = evaluating.labelled(network, data, limit, masks, target is Explained.label)
    chosen = evaluating.fitting(chosen, samples, bool(metrics))
    given = (baseline, negatives, target.value, controls, seed, images_at_once, batch_size)
    work = evaluating.Evaluating(network, samples, explainers, chosen, out, *given)
    evaluating.finish(work.run(), out, format.value, json)
