"""`backlight benchmark`: the papers' tables, one command each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from backlight.cli.cafe_benchmark import cafe
from backlight.cli.icat_benchmark import icat
from backlight.cli.options import Classes, Device, OnDevice, Random, Weights

if TYPE_CHECKING:
    from backlight.benchmarks.report import Report
    from backlight.benchmarks.subjects import Subject
    from backlight.evaluation import Step

benchmark = typer.Typer(
    name="benchmark",
    help="Make the papers' tables, with the published numbers beside ours.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


class Negated(StrEnum):
    """Whose negatives are measured."""

    baseline = "baseline"
    all = "all"
    none = "none"


Models = Annotated[
    list[str] | None,
    typer.Option("--model", "-m", help="A name of `backlight models`; repeat, or A,B [default: the embedded ones]."),
]
Data = Annotated[
    Path | None, typer.Option(metavar="FOLDER", help="Pictures with labels.csv, or a folder for each class.")
]
Masks = Annotated[Path | None, typer.Option(metavar="DIR", help="PNG masks of the objects, by picture name.")]
Quick = Annotated[bool, typer.Option("--quick", help="For a small machine: fewer draws, blocks and samples.")]
Limit = Annotated[int | None, typer.Option(min=1, help="The most samples [default: the protocol's].")]
Few = Annotated[
    int | None, typer.Option(min=1, help="The most for metrics that pass through the network for every method anew.")
]
Out = Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Where the files go; the same call goes on.")]
Seed = Annotated[int, typer.Option(help="Of all draws.")]
Batch = Annotated[int, typer.Option(min=1, help="The most samples in one pass of the network.")]
AtOnce = Annotated[int, typer.Option(min=1, help="Pictures that are explained together.")]
Negatives = Annotated[
    Negated | None,
    typer.Option(help="Methods whose negatives are measured too [default: baseline; none where --quick takes few]."),
]


def _table(name: str, text: str) -> Callable[..., None]:
    """The command of a table of evaluations."""

    def command(
        model: Models = None,
        data: Data = None,
        masks: Masks = None,
        quick: Quick = False,
        limit: Limit = None,
        few: Few = None,
        out: Out = Path("out"),
        seed: Seed = 314,
        device: OnDevice = Device.auto,
        batch_size: Batch = 32,
        images_at_once: AtOnce = 4,
        negatives: Negatives = None,
        weights: Weights = None,
        random_weights: Random = False,
        classes: Classes = None,
    ) -> None:
        from backlight.benchmarks import tables
        from backlight.benchmarks.study import Options

        subjects = open_subjects(model, weights, random_weights, classes, device)
        with stages() as tell:
            options = Options(
                tables_folder(out), data, masks, quick, limit, few, seed, images_at_once, batch_size, tell,
                negatives and negatives.value,
            )  # fmt: skip
            show_report(getattr(tables, name)(subjects, options), out)

    return benchmark.command(name, help=text)(command)


_table("pullbacks", "Semantic Pullbacks, Tables 2, 5, 6: twelve methods, six metrics, and versions that see the sign.")
_table("ablations", "Semantic Pullbacks, ablations: temperatures, steps and step lengths, one at a time.")
_table("focus", "Semantic Pullbacks, Focus: relevance on the target's tiles of mosaics.")
_table("local", "iERF, Table I: pointing game, localisation, sparseness, fidelity, stability.")
_table("refinement", "iERF, Table IV: the head of SRD.")


@benchmark.command(help="Semantic Pullbacks, Table 3: seconds of explanations, as a ratio to the gradient's.")
def timing(
    model: Models = None,
    data: Data = None,
    quick: Quick = False,
    batch: Annotated[
        int | None, typer.Option(min=1, help="Pictures that are explained [default: 20, quick 2].")
    ] = None,
    repeats: Annotated[int | None, typer.Option(min=1, help="Of which the median is taken [default: 5, 3].")] = None,
    out: Out = Path("out"),
    device: OnDevice = Device.auto,
    batch_size: Batch = 32,
    weights: Weights = None,
    random_weights: Random = False,
    classes: Classes = None,
) -> None:
    from backlight.benchmarks.study import Options
    from backlight.benchmarks.timing import timing
    from backlight.cli.console import say

    subjects = open_subjects(model, weights, random_weights, classes, device)
    options = Options(tables_folder(out), data, quick=quick, batch_size=batch_size)
    show_report(timing(subjects, options, batch, repeats, say), out)


@benchmark.command(help="iERF, Table II: networks of six activations, trained here on pictures of 32 pixels.")
def activations(
    data: Annotated[
        Path | None, typer.Option(metavar="FILE", help="An .npz: x_train, y_train, x_test, y_test.")
    ] = None,
    quick: Quick = False,
    limit: Limit = None,
    depth: Annotated[int | None, typer.Option(min=8, help="6 n + 2 layers [default: 20, quick 8].")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Of training [default: 20, quick 6].")] = None,
    out: Out = Path("out"),
    seed: Seed = 314,
    device: OnDevice = Device.auto,
    batch_size: Batch = 32,
    images_at_once: AtOnce = 4,
) -> None:
    from dataclasses import replace

    from backlight.benchmarks.activations import activations, default_training
    from backlight.benchmarks.study import Options
    from backlight.cli.console import say
    from backlight.cli.networks import choose_device

    place = choose_device(device.value)
    with stages() as tell:
        options = Options(tables_folder(out), data, None, quick, limit, None, seed, images_at_once, batch_size, tell)
        chosen = {name: value for name, value in (("depth", depth), ("epochs", epochs)) if value is not None}
        training = replace(default_training(options), **chosen)
        show_report(activations(options, training, device=place, told=say), out)


@benchmark.command(help="iERF, Figure 4: how far the manipulation attack moves explanations.")
def manipulation(
    model: Models = None,
    data: Data = None,
    quick: Quick = False,
    pairs: Annotated[int | None, typer.Option(min=1, help="Of pictures [default: 100, quick 2].")] = None,
    size: Annotated[int | None, typer.Option(min=8, help="Of the pictures, in pixels [default: 224, 96].")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="The most steps [default: 1500, quick 60].")] = None,
    preset: Annotated[str, typer.Option(help="paper, or reference (Dombrowski et al. 2019).")] = "paper",
    out: Out = Path("out"),
    device: OnDevice = Device.auto,
    weights: Weights = None,
    random_weights: Random = False,
    classes: Classes = None,
) -> None:
    from backlight.benchmarks.manipulation import manipulation
    from backlight.benchmarks.study import Options
    from backlight.cli.console import say

    subjects = open_subjects(model, weights, random_weights, classes, device)
    options = Options(tables_folder(out), data, quick=quick)
    show_report(manipulation(subjects, options, pairs, size, steps, preset, told=say), out)


benchmark.command()(cafe)
benchmark.command()(icat)


@contextmanager
def stages() -> Iterator[Callable[[str, Step], None]]:
    """Progress on stderr, anew for each stage."""
    from backlight.cli.console import say
    from backlight.cli.evaluating import news

    with ExitStack() as stack:
        current: dict[str, Any] = {"what": None, "tell": None}

        def tell(what: str, step: Step) -> None:
            if what != current["what"]:
                stack.close()
                say(what)
                current.update(what=what, tell=stack.enter_context(news(step.total)))
            current["tell"](step)

        yield tell


def open_subjects(
    model: list[str] | None, weights: str | None, random_weights: bool, classes: str | None, device: Device
) -> list[Subject]:
    """The networks that are asked for, or those of `NETWORKS`."""
    from backlight.benchmarks.subjects import NETWORKS, open_subject
    from backlight.cli.networks import choose_device
    from backlight.cli.settings import split

    place = choose_device(device.value)
    return [open_subject(name, weights, random_weights, classes, place) for name in split(model or NETWORKS)]


def tables_folder(out: Path) -> Path:
    """Where the tables go; made if need be."""
    from backlight.cli.outputs import output_folder

    return output_folder(out)


def show_report(report: Report, out: Path) -> None:
    """Print the tables, and where they are."""
    from backlight.cli.console import say

    print(report.markdown(), flush=True)
    say(f"-> {out}: table.md, table.csv, table.tex, run.json")
