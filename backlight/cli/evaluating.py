"""`backlight evaluate`: labelled pictures in; a resumable journal, tables and figures out."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_type_hints

import typer
from rich.box import HORIZONTALS
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from backlight.cli.console import LINE_EVERY, messages, print_json, report_error, say
from backlight.cli.networks import Network
from backlight.cli.outputs import output_folder
from backlight.cli.settings import parse_setting, parse_typed, split
from backlight.data.labelled import LabelledFolder
from backlight.engine.sites import FEATURES
from backlight.errors import BacklightError, InputError, UnknownNameError
from backlight.evaluation import Evaluation, Failure, Step, evaluate
from backlight.evaluation.tables import as_record, means
from backlight.methods import Method, method
from backlight.metrics import METRICS, Metric, metric
from backlight.metrics.controls import is_control

PRESET = "pullbacks"


@dataclass(frozen=True)
class Evaluating:
    """What is evaluated, and how. `baseline` None: the first method. `negatives`: as typed; None: the baseline's."""

    network: Network
    samples: LabelledFolder
    methods: dict[str, Method]
    metrics: dict[str, Metric]
    out: Path
    baseline: str | None
    negatives: list[str] | None
    target: str
    controls: bool
    seed: int
    images_at_once: int
    batch_size: int

    def __post_init__(self) -> None:
        needy = [label for label, one in self.metrics.items() if "masks" in one.needs]
        if needy and not self.samples.masked:
            raise InputError(
                f"{needy[0]} compares maps with the object's mask, and no picture has one: give --masks DIR, a folder "
                "of PNG files with the pictures' names, or choose others with --metrics"
            )

    def run(self) -> Evaluation:
        """Evaluate, showing progress; what is done is kept when interrupted."""
        about = {
            "model": self.network.loaded.name,
            "preprocessing": asdict(self.network.loaded.preprocessing),
            "target": self.target,
        }
        output_folder(self.out)
        with news(len(self.samples)) as tell:
            return evaluate(
                self.network.front,
                self.samples,
                {name: placed(one, self.network) for name, one in self.methods.items()},
                self.metrics,
                out=self.out,
                controls=self.controls,
                negatives=self._negatives(),
                baseline=None if self.baseline is None else _named("baseline", self.baseline, self.methods),
                seed=self.seed,
                images_at_once=self.images_at_once,
                batch_size=self.batch_size,
                settings=about,
                progress=tell,
            )

    def _negatives(self) -> bool | list[str]:
        given = split(self.negatives or [])
        if len(given) == 1 and given[0] in ("all", "none"):
            return list(self.methods) if given[0] == "all" else False
        return [_named("method to negate", name, self.methods) for name in given] or True


def labelled(network: Network, data: str, limit: int | None, masks: str | None, labels: bool) -> LabelledFolder:
    """A folder's pictures as a network takes them; `labels`: they are needed."""
    loaded = network.loaded
    return LabelledFolder(data, loaded.classes, loaded.preprocessing, limit, masks, labels)


def finish(evaluation: Evaluation, out: Path, kind: str, as_json: bool) -> None:
    """Write tables and figures, and show them; exit with status 2 where not everything could be done."""
    files = written(evaluation, kind)
    if as_json:
        print_json({**as_record(evaluation), "files": [*map(str, files)]})
    else:
        show(evaluation)
    count = len(evaluation.samples)
    say(f"{count} images -> {out}: results.parquet, " + ", ".join(path.name for path in files))
    if evaluation.skipped or evaluation.failures:
        raise typer.Exit(2)


def written(evaluation: Evaluation, kind: str) -> list[Path]:
    """The tables, and the figures where matplotlib is installed, which is said where it is not."""
    drawn = find_spec("matplotlib") is not None
    if not drawn:
        say("no figures: they need pip install 'backlight[plots]'")
    return evaluation.write(figures=drawn, kind=kind)


def placed(one: Method, network: Network) -> Method:
    """The method with a layer of its own by the front's address of it."""
    layer = getattr(one, "layer", None)
    return one if layer in (None, FEATURES) else replace(one, layer=network.site(layer))  # type: ignore[call-arg]


def metrics_with_settings(names: Iterable[str], given: Iterable[str], preset: str | None) -> dict[str, Metric]:
    """The metrics by name, `NAME` or `NAME:PRESET`, each with the settings that it has.

    Without names, all metrics of the preset. A setting is `NAME=VALUE`, or `METRIC.NAME=VALUE`.

    Raises:
        UnknownNameError: an unknown metric, preset or setting, with close matches.
        InputError: a setting that is not NAME=VALUE, or a value of the wrong type.
    """
    chosen = _chosen(split(names), preset)
    settings: dict[str, dict[str, Any]] = {label: {} for label in chosen}
    for key, text in map(parse_setting, given):
        owner, _, name = key.rpartition(".")
        takers = _takers(owner, chosen)
        defaults = {label: cls().settings() for label, (cls, _) in chosen.items() if label in takers}
        takers = [label for label in takers if name in defaults[label]]
        if not takers:
            choices = sorted({setting for known in defaults.values() for setting in known})
            raise UnknownNameError(f"setting of {owner or ', '.join(chosen)}", name, choices)
        for label in takers:
            settings[label][name] = parse_typed(name, text, get_type_hints(chosen[label][0])[name])
    return {
        label: cls(**settings[label]) if wanted is None else cls.preset(wanted, **settings[label])
        for label, (cls, wanted) in chosen.items()
    }


def fitting(metrics: dict[str, Metric], samples: LabelledFolder, named: bool) -> dict[str, Metric]:
    """Without the metrics that need masks, where there are none and nobody asked for them by name; which is said."""
    left = [label for label, one in metrics.items() if "masks" in one.needs]
    if named or samples.masked or not left:
        return metrics
    say(f"no picture has a mask of its object: {', '.join(left)} left out")
    return {label: one for label, one in metrics.items() if label not in left}


def _chosen(names: list[str], preset: str | None) -> dict[str, tuple[type[Metric], str | None]]:
    if not names:
        protocol = preset or PRESET
        found = {label: (cls, protocol) for label, cls in METRICS.items() if protocol in cls.presets}
        if not found:
            raise UnknownNameError(
                "preset", protocol, sorted({name for cls in METRICS.values() for name in cls.presets})
            )
        return dict(found)
    chosen: dict[str, tuple[type[Metric], str | None]] = {}
    for one in names:
        name, _, own = one.partition(":")
        cls, wanted = metric(name), own or preset
        if wanted is not None and wanted not in cls.presets:
            raise UnknownNameError(f"preset of {cls.__name__}", wanted, cls.presets)
        chosen[f"{cls.__name__}:{own}" if own else cls.__name__] = cls, wanted
    return chosen


def _takers(owner: str, chosen: Mapping[str, tuple[type[Metric], str | None]]) -> list[str]:
    """The labels that a setting's owner stands for: all, one, or every preset of a metric."""
    if not owner:
        return list(chosen)
    name, _, own = owner.partition(":")
    wanted = metric(name)
    found = [label for label, (cls, _) in chosen.items() if cls is wanted and (not own or label.endswith(f":{own}"))]
    if not found:
        raise UnknownNameError("metric among those chosen", owner, chosen)
    return found


def _named(what: str, given: str, methods: Mapping[str, Method]) -> str:
    name = method(given).__name__
    if name not in methods:
        raise UnknownNameError(f"{what} among the methods", given, methods)
    return name


@contextmanager
def news(total: int) -> Iterator[Callable[[Step], None]]:
    """Progress on stderr: a bar with the rate where it is a terminal, else a line a minute; failures as they come."""
    console = messages()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"))
    with Progress(
        *columns, TimeElapsedColumn(), console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task("evaluating", total=total, rate="")
        pace, told = _Pace(), set[tuple[str, str]]()

        def tell(step: Step) -> None:
            rate = pace(step)
            bar.update(task, description=escape(step.what or "evaluating"), completed=step.done, rate=rate)
            for skipped in step.skipped:
                report_error(InputError(skipped.reason), skipped.sample)
            for one in step.failures:
                if (one.method, one.metric) not in told:
                    told.add((one.method, one.metric))
                    report_error(BacklightError(failure_line(one)))
            if not console.is_terminal and pace.due():
                say(f"{step.done} of {step.total} images{', ' + rate if rate else ''}")

        try:
            yield tell
        except KeyboardInterrupt:
            bar.stop()
            say(f"{pace.done} of {total} images are done; the same command goes on with the others")
            raise


class _Pace:
    """Images a minute since the first step."""

    def __init__(self) -> None:
        self.begun, self.told, self.before, self.done = time.monotonic(), time.monotonic(), -1, 0

    def __call__(self, step: Step) -> str:
        self.before, self.done = step.done if self.before < 0 else self.before, step.done
        made, minutes = step.done - self.before, (time.monotonic() - self.begun) / 60
        return f"{made / minutes:.3g} images/min" if made and minutes else ""

    def due(self) -> bool:
        if time.monotonic() - self.told < LINE_EVERY:
            return False
        self.told = time.monotonic()
        return True


def failure_line(one: Failure) -> str:
    """A failure as a line of news."""
    what = f"{one.metric} of {one.method}" if one.metric else one.method
    return f"{one.sample}: {what}: {one.reason} (told once; failures.csv lists all)"


def show(evaluation: Evaluation) -> None:
    """The means and costs, and the footnotes, on stdout."""
    grid = means(evaluation, interval=False)
    table = Table(box=HORIZONTALS)
    for place, cell in enumerate(grid.heads):
        note = f" [dim]({cell.note})[/dim]" if cell.note else ""
        table.add_column(escape(_broken(cell.text)) + note, justify="right" if place else "left", no_wrap=not place)
    for row in grid.rows:
        style = "dim" if is_control(row[0].text) else None
        table.add_row(
            *(f"[bold]{escape(cell.text)}[/bold]" if cell.best else escape(cell.text) for cell in row), style=style
        )
    console = Console(highlight=False)
    if not console.is_terminal:  # a file or pipe has no width to fit into
        console.width = max(console.width, 30 + 16 * len(grid.heads))
    console.print(table)
    for number, footnote in enumerate(evaluation.footnotes, 1):
        console.print(f"({number}) {escape(footnote.text)}")


def _broken(name: str) -> str:
    """A metric's name, a line for each of its words."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=:)", "\n", name)
