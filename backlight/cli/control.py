"""`backlight control`: decompositions and pictures in; curves, areas, their intervals, a controlled network out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from backlight.cli import console
from backlight.cli.console import LINE_EVERY
from backlight.cli.options import Classes, Device, Format, Json, Kind, OnDevice, Out, Random, Weights

if TYPE_CHECKING:
    from backlight.cli.networks import Network
    from backlight.contributions.control_curves import ControlCurves, Told
    from backlight.contributions.control_statistics import Interval
    from backlight.contributions.control_study import ControlStudy
    from backlight.contributions.decomposed import Decomposed


SPLITS = {"held out": "others", "halves": "others, all of which were fitted", "none": "the same"}


class Fill(StrEnum):
    """What removed channels hold."""

    zero = "zero"
    mean = "mean"
    resample = "resample"


class Preset(StrEnum):
    """Which images are measured."""

    paired = "paired"
    paper = "paper"


class Split(StrEnum):
    """Which pictures of an .npz file."""

    test = "test"
    train = "train"


def control(
    folders: Annotated[list[Path], typer.Argument(metavar="FOLDER...", help="What `backlight decompose` wrote.")],
    data: Annotated[Path, typer.Option(metavar="FOLDER|FILE.npz", help="Labelled pictures, such as were extracted.")],
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="A name of `backlight models` [default: the store's].")
    ] = None,
    class_: Annotated[
        list[str] | None, typer.Option("--class", metavar="NAME", help="Name, synset or index; repeat [default: all].")
    ] = None,
    concept: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A concept of --hierarchy: all its classes; repeat.")
    ] = None,
    hierarchy: Annotated[str, typer.Option(metavar="NAME", help="imagenet, or a JSON file.")] = "imagenet",
    ablate: Annotated[bool, typer.Option("--ablate", help="Only remove channels [default: both].")] = False,
    preserve: Annotated[bool, typer.Option("--preserve", help="Only remove all others [default: both].")] = False,
    fill: Annotated[Fill, typer.Option(help="What removed channels hold.")] = Fill.zero,
    fractions: Annotated[
        str | None, typer.Option(metavar="F,F,...", help="Shares of the channels [default: the paper's nine].")
    ] = None,
    together: Annotated[bool, typer.Option("--together", help="Edit the sites of all folders at once.")] = False,
    preset: Annotated[Preset, typer.Option(help="paired: all images; paper: trials of 10 and 10.")] = Preset.paired,
    trials: Annotated[int | None, typer.Option(min=1, help="The most trials [default: all; paper: 20].")] = None,
    images: Annotated[int | None, typer.Option(min=1, help="The most images of a target [default: all].")] = None,
    off_images: Annotated[int | None, typer.Option(min=1, help="The most images of others [default: all].")] = None,
    held_out: Annotated[bool, typer.Option(help="Measure other images than those that channels are chosen by.")] = True,
    above: Annotated[
        float | None, typer.Option(metavar="R", help="Sum all modes with a larger r [default: the best mode].")
    ] = None,
    random: Annotated[int, typer.Option(min=0, help="Draws of random channels.")] = 3,
    min_images: Annotated[int, typer.Option(min=1, help="Leave out classes with fewer.")] = 5,
    limit: Annotated[int | None, typer.Option(min=1, help="The most pictures.")] = None,
    split: Annotated[Split, typer.Option(help="Of a file: x_test, or x_train.")] = Split.test,
    store: Annotated[Path | None, typer.Option(metavar="DIR", help="Where the store is now, if it has moved.")] = None,
    export: Annotated[
        Path | None, typer.Option(metavar="FILE.pt2", help="Write the network controlled by the first direction.")
    ] = None,
    fraction: Annotated[float, typer.Option(help="Of the channels that are edited for --export.")] = 0.1,
    seed: Annotated[int, typer.Option(help="Of all draws.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="The most samples in one pass of the network.")] = 64,
    out: Out = Path("out/control"),
    device: OnDevice = Device.auto,
    format: Format = Kind.png,
    json: Json = False,
    weights: Weights = None,
    random_weights: Random = False,
    classes: Classes = None,
) -> None:
    """Remove the channels of modes, or all others, and see what the network still knows; against controls."""
    from backlight.cli.outputs import output_folder
    from backlight.contributions.control_curves import FRACTIONS
    from backlight.contributions.control_study import control_study
    from backlight.contributions.control_tables import summary, write_tables
    from backlight.contributions.decomposed import open_decomposed
    from backlight.data.labelled import LabelledFolder
    from backlight.store import ArraySamples

    decomposed = [open_decomposed(folder, store) for folder in folders]
    network = opened(decomposed[0], model, weights, random_weights, classes, device.value)
    chosen = concepts_of(network, class_ or [], concept or [], hierarchy)
    grid = FRACTIONS if fractions is None else numbers(fractions)
    actions = [name for name, on in (("ablate", ablate), ("preserve", preserve)) if on] or ["ablate", "preserve"]
    loaded = network.loaded
    samples: Any = (
        ArraySamples(data, split.value, limit)
        if data.suffix == ".npz"
        else LabelledFolder(data, loaded.classes, loaded.preprocessing, limit)
    )
    output_folder(out)
    study = control_study(
        decomposed,
        network.front,
        samples,
        concepts=chosen or None,
        classes=loaded.classes,
        prefix="network.",
        together=together,
        preset=preset.value,
        actions=actions,
        fill=fill.value,
        fractions=grid,
        trials=trials,
        images=images,
        off_images=off_images,
        held_out=held_out,
        above=above,
        random=random,
        least=min_images,
        seed=seed,
        batch_size=batch_size,
    )
    written = [] if export is None else [exported(study, network, export, fraction, actions)]
    console.say(f"{len(study.design.trials)} trials: {study.design.images():,} images to run")
    with news() as tell:
        found = study.measure(out, tell)
    record = summary(found)
    files = write_tables(found, out, record) + figures(found, out, format.value) + written
    console.print_json({**record, "files": [*map(str, files)]}) if json else show(found)
    console.say(f"{len(found.concepts)} trials -> {out}: " + ", ".join(path.name for path in files))


def opened(
    one: Decomposed, model: str | None, weights: str | None, random_weights: bool, classes: str | None, device: str
) -> Network:
    """The network that was decomposed: by name, with the weights that the store remembers, unless others are given."""
    import torch

    from backlight.cli.networks import open_network
    from backlight.errors import InputError

    identity, about = one.store.identity, one.store.about
    name = model or identity.get("model", {}).get("name")
    if name is None:
        raise InputError(f"the store of {str(one.folder)!r} does not say of which network it is: give --model")
    if weights is None and not random_weights and model is None:
        weights, random_weights = about.get("weights"), bool(about.get("random_weights"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(about.get("seed") or 0))  # of random weights
        return open_network(name, weights, random_weights, classes, device)


def concepts_of(network: Network, classes: list[str], concepts: list[str], hierarchy: str) -> list[Any]:
    """What is named, as sets of classes. Raises `UnknownNameError`, with close matches."""
    from backlight.data.hierarchy import Concept, Hierarchy

    names = network.loaded.classes
    found = [Concept((names.name(index),), (index,)) for index in map(network.class_index, classes)]
    if concepts:
        known = Hierarchy.of(hierarchy, names)
        found += [known.concept(name) for name in concepts]
    return found


def numbers(text: str) -> tuple[float, ...]:
    """`.1,.5` as numbers. Raises `InputError`."""
    from backlight.errors import InputError

    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"fractions are numbers between commas, got {text!r}") from None


def exported(study: ControlStudy, network: Network, path: Path, fraction: float, actions: list[str]) -> Path:
    """Write the network with the first site's (or all sites') channels edited. Raises `InputError` for several classes.

    It takes the network's own normalised inputs.
    """
    import torch

    from backlight.contributions.control_export import save_program
    from backlight.errors import InputError

    if len(study.design.concepts) != 1 or len(study.design.places) != 1 or not 0 < fraction <= 1:
        raise InputError(
            f"--export writes one network: give one --class or --concept, one FOLDER or --together, and a fraction in "
            f"(0, 1]; there are {len(study.design.concepts)} concepts at {len(study.design.places)} places"
        )
    size = study.samples.load(study.samples.names[0]).inputs.shape
    example = torch.zeros(2, *size, device=network.device)
    return save_program(network.loaded.model, study.edits(fraction=fraction, action=actions[0]), example, path)


def figures(found: ControlCurves, out: Path, kind: str) -> list[Path]:
    """Curves and areas; none without matplotlib, which is said."""
    from backlight.contributions.control_figures import area_figure, curve_figure
    from backlight.evaluation.journal import whole
    from backlight.viz import save_figure

    if find_spec("matplotlib") is None:
        console.say("no figures: they need pip install 'backlight[plots]'")
        return []
    drawn = {"curves": curve_figure(found), "areas": area_figure(found)}
    paths = [out / f"{name}.{kind}" for name in drawn]
    for path, figure in zip(paths, drawn.values(), strict=True):
        with whole(path) as partial:
            save_figure(figure, partial, kind)
    return paths


@contextmanager
def news() -> Iterator[Callable[[Told], None]]:
    """Progress on stderr: a bar where it is a terminal, else a line a minute; when stopped, what to do."""
    import time

    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    shown, told, last = console.messages(), time.monotonic(), 0
    columns = (TextColumn("measuring"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[batches]}"))
    with Progress(*columns, TimeElapsedColumn(), console=shown, transient=True, disable=not shown.is_terminal) as bar:
        task = bar.add_task("measuring", total=None, batches="")

        def tell(step: Told) -> None:
            nonlocal told, last
            last = step.done
            bar.update(
                task, total=step.total, completed=step.done, batches=f"batch {step.batches}" * bool(step.batches)
            )
            if not shown.is_terminal and time.monotonic() - told > LINE_EVERY:
                told = time.monotonic()
                console.say(f"{step.done} of {step.total} trials, batch {step.batches} of the next")

        try:
            yield tell
        except KeyboardInterrupt:
            bar.stop()
            console.say(f"{last} trials are done; the same command goes on with the others")
            raise


def show(found: ControlCurves) -> None:
    """Areas and what they differ by, on stdout."""
    from rich.box import HORIZONTALS
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from backlight.contributions.control_statistics import ControlStatistics
    from backlight.contributions.control_tables import published_relative

    table = Table(box=HORIZONTALS)
    heads = ["site", "", "direction", "AUC target", "AUC off", "absolute", "relative", "first - this (absolute)"]
    told = {
        (p, a, d): published_relative(found, p, d, a)
        for p in found.places
        for a in found.actions
        for d in found.directions
    }
    heads += ["published (relative)"] if any(value is not None for value in told.values()) else []
    for number, head in enumerate(heads):
        table.add_column(head, justify="left" if number < 3 else "right")
    statistics = ControlStatistics(found)
    for (place, action, direction), known in told.items():
        areas = statistics.areas(place, direction, action)
        beaten = statistics.against(place, found.directions[0], direction, action).absolute
        cells = [f"{areas.target.value:.3f}", f"{areas.off.value:.3f}", cell(areas.absolute), cell(areas.relative)]
        cells.append("" if direction == found.directions[0] else cell(beaten))
        cells += [("" if known is None else f"{known:.3f}")] if len(heads) > len(cells) + 3 else []
        table.add_row(escape(place), action, direction, *cells)
    shown = Console(highlight=False)
    if not shown.is_terminal:
        shown.width = max(shown.width, 170)
    shown.print(table)
    before, excluded = found.before[:, :, 0].mean(0), (found.before[:, :, 0] == 0).sum(0)
    shown.print(
        f"areas of accuracy after / before (top-1), means of {len(found.concepts)} trials and 95 % intervals over "
        f"{len(set(found.concepts))} concepts; before: {before[0]:.3f} target, {before[1]:.3f} off-target; without a "
        f"ratio, for 0 before: {excluded[0]} and {excluded[1]} trials; images that choose and are measured: "
        f"{SPLITS[found.settings['split']]}"
    )


def cell(one: Interval) -> str:
    """`-0.123 [-0.2, -0.1]`."""
    return f"{one.value:+.3f} [{one.low:+.3f}, {one.high:+.3f}]"
