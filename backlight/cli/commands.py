"""The commands and their options. What they need of torch is imported when they run, so that `--help` is quick."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from backlight import __version__
from backlight.cli import console
from backlight.cli.app import start_app
from backlight.cli.attack import attack
from backlight.cli.benchmarking import benchmark
from backlight.cli.cafe import cafe
from backlight.cli.concepts import concepts
from backlight.cli.contribution_maps import maps
from backlight.cli.contribution_statistics import statistics
from backlight.cli.control import control
from backlight.cli.decomposition import decompose
from backlight.cli.evaluation import evaluate
from backlight.cli.explain_text import explain_text
from backlight.cli.extraction import extract
from backlight.cli.graph import graph
from backlight.cli.modes import modes
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
    check_picture,
)
from backlight.cli.report import report
from backlight.cli.retina import retina
from backlight.errors import BacklightError


class Commands(TyperGroup):
    """Turns every error that Backlight raises on purpose into one line and exit status 2."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except BacklightError as error:
            console.report_error(error)
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            print("backlight: interrupted; what was done is kept", file=sys.stderr)
            raise typer.Exit(130) from None


class Along(StrEnum):
    """What a counterfactual follows."""

    pullback = "pullback"
    gradient = "gradient"


class Reduce(StrEnum):
    """How an attribution becomes saliency."""

    magnitude = "magnitude"
    positive = "positive"


app = typer.Typer(
    cls=Commands,
    name="backlight",
    help="Explain what PyTorch networks do.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _version(wanted: bool) -> bool:
    if wanted:
        print(f"backlight {__version__}")
        raise typer.Exit
    return wanted


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Say which.")] = False,
) -> None:
    pass


@app.command()
def explain(
    images: Annotated[list[str], typer.Argument(metavar="IMAGE...", help="Picture files, or folders of them.")],
    model: Model = "efficientnet_lite0",
    method: Annotated[
        list[str] | None, typer.Option(help="A name of `backlight methods` [default: SoftPullback]; repeat, or A,B.")
    ] = None,
    target: Annotated[
        str | None, typer.Option("--target", "-t", metavar="CLASS", help="Name, synset or index; else the prediction.")
    ] = None,
    layer: Annotated[str, typer.Option(metavar="SITE", help="`input`, or a name of `backlight layers`.")] = "input",
    out: Out = Path("out"),
    device: OnDevice = Device.auto,
    batch_size: Annotated[int, typer.Option(min=1, help="The most samples in one pass (points of a path).")] = 8,
    format: Format = Kind.png,
    json: Json = False,
    temperature: Temperature = None,
    weights: Weights = None,
    random_weights: Random = False,
    classes: Classes = None,
    set: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="A setting of the methods, or METHOD.NAME=VALUE.")
    ] = None,
) -> None:
    """Explain what a network saw in pictures: one figure a picture, one .npz a picture and method."""
    from backlight.cli.explaining import Explaining, explain_pictures, find_pictures
    from backlight.cli.networks import open_network
    from backlight.cli.outputs import output_folder
    from backlight.cli.settings import methods_with_settings

    folder = output_folder(out)
    network = open_network(model, weights, random_weights, classes, device)
    methods = methods_with_settings(method or ["SoftPullback"], set or [], network.front, temperature)
    index = None if target is None else network.class_index(target)
    network.site(layer)
    work = Explaining(network, methods, index, layer, folder, format.value, batch_size)
    paths, failed = find_pictures(images)
    if not explain_pictures(work, paths, failed, json):
        raise typer.Exit(2)


@app.command()
def counterfactual(
    image: Annotated[str, typer.Argument(help="A picture file.")],
    to: Annotated[str, typer.Option("--to", metavar="CLASS", help="The class to change it to: name, synset or index.")],
    model: Model = "efficientnet_lite0",
    steps: Annotated[int, typer.Option(min=1, help="Number of steps.")] = 10,
    step: Annotated[float, typer.Option(help="l2 length of a step, over all entries of a picture in [-1, 1].")] = 20.0,
    radius: Annotated[float, typer.Option(min=0, help="l2 distance that is not exceeded.")] = 100.0,
    along: Annotated[Along, typer.Option(help="What to follow.")] = Along.pullback,
    out: Out = Path("out"),
    device: OnDevice = Device.auto,
    format: Format = Kind.png,
    json: Json = False,
    temperature: Temperature = None,
    weights: Weights = None,
    random_weights: Random = False,
    classes: Classes = None,
) -> None:
    """Change a picture until a network takes it for another class: picture, figure and .npz."""
    from backlight.cli.counterfactuals import make_counterfactual
    from backlight.cli.networks import described, open_network
    from backlight.cli.outputs import output_folder
    from backlight.cli.settings import parse_value
    from backlight.methods.perturbation import Counterfactual

    folder = output_folder(out)
    network = open_network(model, weights, random_weights, classes, device)
    target = network.class_index(to)
    default = Counterfactual.settings()["temperature"]
    softness = default if temperature is None else parse_value("temperature", temperature, default)
    method = Counterfactual(
        network.front, n_steps=steps, step=step, radius=radius, along=along.value, temperature=softness
    )
    check_picture(Path(image), "a counterfactual is made of one picture")
    record = make_counterfactual(network, method, Path(image), target, folder, format.value)
    console.say(f"{image}: {described(record['target'])} after {steps} steps -> {record['figure']}")
    if json:
        console.print_json(record)


@app.command()
def segment(
    image: Annotated[str, typer.Argument(help="A picture file.")],
    target: Annotated[
        str | None, typer.Option("--target", "-t", metavar="CLASS", help="Name, synset or index; else the prediction.")
    ] = None,
    model: Model = "efficientnet_lite0",
    method: Annotated[str, typer.Option(help="A name of `backlight methods`.")] = "ClassSaliency",
    set: Annotated[list[str] | None, typer.Option(metavar="NAME=VALUE", help="A setting of the method.")] = None,
    foreground: Annotated[float, typer.Option(help="Pixels above this quantile of the map are seeds.")] = 0.95,
    background: Annotated[float, typer.Option(help="Pixels below it are seeds of the ground.")] = 0.30,
    reduce: Annotated[Reduce | None, typer.Option(help="How the map becomes saliency.")] = None,
    fixed_seeds: Annotated[bool, typer.Option("--fixed-seeds", help="Seeds keep their side in the cut.")] = False,
    cuts: Annotated[int, typer.Option(min=1, help="Cuts; the colour models are fitted again before each.")] = 1,
    out: Out = Path("out"),
    device: OnDevice = Device.auto,
    format: Format = Kind.png,
    json: Json = False,
    temperature: Temperature = None,
    weights: Weights = None,
    random_weights: Random = False,
    classes: Classes = None,
) -> None:
    """Cut out the object that a network sees a class in: mask, box, figure and .npz."""
    from backlight.cli.networks import open_network
    from backlight.cli.outputs import output_folder
    from backlight.cli.segmentation import make_segmentation, one_method

    folder = output_folder(out)
    network = open_network(model, weights, random_weights, classes, device)
    chosen = one_method(method, set or [], network.front, temperature)
    index = None if target is None else network.class_index(target)
    check_picture(Path(image), "one picture is cut at a time")
    cut = {"foreground": foreground, "background": background, "reduce": reduce and reduce.value}
    cut |= {"fixed_seeds": fixed_seeds, "n_iterations": cuts}
    record = make_segmentation(network, chosen, Path(image), index, cut, folder, format.value)
    console.say(f"{image}: {record['target']['name']} in {tuple(record['box'])} -> {record['figure']}")
    if json:
        console.print_json(record)


@app.command()
def class_model(
    classes_: Annotated[list[str], typer.Argument(metavar="CLASS...", help="Classes by name, synset or index.")],
    model: Model = "efficientnet_lite0",
    readable: Annotated[bool, typer.Option("--readable", help="With Adam, Fourier, jitter and blur.")] = False,
    set: Annotated[list[str] | None, typer.Option(metavar="NAME=VALUE", help="A setting of ClassModel.")] = None,
    out: Out = Path("out"),
    device: OnDevice = Device.auto,
    batch_size: Annotated[int, typer.Option(min=1, help="The most classes in one pass.")] = 8,
    format: Format = Kind.png,
    json: Json = False,
    weights: Weights = None,
    random_weights: Random = False,
    classes: Classes = None,
) -> None:
    """Draw the image that a network scores highest for a class: picture, figure and .npz."""
    from backlight.cli.class_models import class_model_with_settings, make_class_models
    from backlight.cli.networks import described, open_network
    from backlight.cli.outputs import output_folder

    folder = output_folder(out)
    network = open_network(model, weights, random_weights, classes, device)
    indices = list(dict.fromkeys(map(network.class_index, classes_)))
    maker = class_model_with_settings(network.loaded.model, set or [], readable)
    records = make_class_models(network, maker, indices, folder, format.value, batch_size)
    for record in records:
        console.say(f"{described(record['target'])} -> {record['figure']}")
    if json:
        console.print_json(records)


app.command()(explain_text)
app.command()(evaluate)
app.add_typer(benchmark)
app.command()(extract)
app.command()(decompose)
app.command()(statistics)
app.command()(modes)
app.command()(control)
app.command()(maps)
app.add_typer(concepts)
app.add_typer(graph)
app.command()(cafe)
app.command()(attack)
app.command("app")(start_app)
app.add_typer(retina)
app.add_typer(report)


@app.command()
def methods(json: Json = False) -> None:
    """List the methods: formula, source, cost, claims, settings."""
    from backlight.cli.listings import method_records, show_methods

    records = method_records()
    console.print_json(records) if json else show_methods(records)


@app.command()
def metrics(json: Json = False) -> None:
    """List the metrics: formula, source, direction, needs, settings by protocol."""
    from backlight.cli.listings import metric_records, show_metrics

    records = metric_records()
    console.print_json(records) if json else show_metrics(records)


@app.command()
def models(
    filter: Annotated[str | None, typer.Argument(help="A part, or a shell pattern.")] = None, json: Json = False
) -> None:
    """List the names that --model takes."""
    from backlight.cli.listings import model_records, show_models

    records = model_records(filter)
    console.print_json(records) if json else show_models(records)


@app.command()
def layers(model: Annotated[str, typer.Argument(help="A name of `backlight models`.")], json: Json = False) -> None:
    """List the layers of a network: the names that --layer takes."""
    from backlight.cli.listings import layer_records, show_layers

    records = layer_records(model)
    console.print_json(records) if json else show_layers(records)
