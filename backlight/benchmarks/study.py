"""One protocol on one network: its rows built, its columns measured in stages, each an evaluation that can resume."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from backlight.benchmarks.protocols import OBJECTS, PICTURES, Column, Protocol, Row
from backlight.benchmarks.subjects import Subject, pictures
from backlight.errors import BacklightError, ImageError, InputError, UnknownNameError
from backlight.evaluation import Evaluation, Samples, Step, evaluate
from backlight.evaluation.identity import plain
from backlight.evaluation.journal import read_run, refuse_others
from backlight.evaluation.run import identity_of
from backlight.methods import Method, method
from backlight.metrics import Metric, metric
from backlight.metrics.explainers import Explainer, MethodExplainer

FEW = 4  # --quick takes one in so many samples for the metrics that repeat
NEGATIVES = ("baseline", "all", "none")
Progress = Callable[[str, Step], None]


def _silent(what: str, step: Step) -> None:
    pass


@dataclass(frozen=True)
class Options:
    """What a user chooses. `data`: labelled pictures; `masks`: of their objects. `limit`: the most samples, `few`: the
    most for metrics that pass through the network anew for every method; None: the protocol's. `seed`: of all draws.
    `negatives`: of which rows they are measured too, one of `NEGATIVES`; None: the baseline's, and none where `quick`
    takes few samples."""

    out: Path
    data: Path | None = None
    masks: Path | None = None
    quick: bool = False
    limit: int | None = None
    few: int | None = None
    seed: int = 314
    images_at_once: int = 4
    batch_size: int = 32
    progress: Progress = _silent
    negatives: str | None = None

    def __post_init__(self) -> None:
        if self.negatives is not None and self.negatives not in NEGATIVES:
            raise UnknownNameError("choice of negatives", self.negatives, NEGATIVES)

    def number(self, protocol: Protocol) -> int:
        """How many samples."""
        return self.limit or protocol.numbers[self.quick]

    def number_of(self, protocol: Protocol, columns: Sequence[Column]) -> int:
        """How many for these columns."""
        number = self.number(protocol)
        if not any(column.repeats for column in columns):
            return number
        return min(number, self.few or (max(number // FEW, min(number, 8)) if self.quick else number))


@dataclass(frozen=True)
class Study:
    """A protocol's evaluations on one network: by column. `left_out`: rows, and why the network has them not."""

    network: str
    evaluations: Mapping[str, Evaluation]
    left_out: Mapping[str, str]


@dataclass
class Magnitude(Explainer):
    """The absolute value of a method's maps."""

    inner: MethodExplainer

    def __post_init__(self) -> None:
        self.cost = self.inner.cost

    def __call__(self, inputs: Tensor, target: Any) -> Tensor:
        return self.inner(inputs, target).abs()

    def reseeded(self, seed: int) -> Explainer:
        found = self.inner.reseeded(seed)
        return self if found is self.inner else Magnitude(found)  # type: ignore[arg-type]

    def on(self, model: nn.Module) -> Explainer:
        return Magnitude(self.inner.on(model))  # type: ignore[arg-type]


def study(protocol: Protocol, subject: Subject, options: Options, given: Samples | None = None) -> Study:
    """Measure a protocol on a network, in the folder `options.out`.

    `given`: the samples of all columns, in place of pictures of `options.data`.

    Raises:
        BacklightError: no pictures, a folder with other settings, no row that the network has.
    """
    stages = list(grouped(protocol, options.quick, given is None and _has_masks(protocol, subject, options)).items())
    samples = {name: given or _samples(protocol, subject, options, columns) for name, columns in stages}
    explainers, left_out = built(protocol, subject, options, samples[stages[0][0]])
    if protocol.baseline not in explainers:
        raise InputError(f"{subject.name} has no {protocol.baseline!r}: {left_out.get(protocol.baseline)}")
    folders = {
        name: options.out / slug(subject.name) / f"{protocol.name}-{name}".replace(" ", "-") for name, _ in stages
    }
    measured = {
        name: {label: _metric(one, options.quick) for label, one in columns.items()} for name, columns in stages
    }
    settings = {name: _settings(protocol, subject, options, columns, explainers) for name, columns in stages}
    for name, folder in folders.items():  # all of them before anything is measured
        identity = identity_of(subject.model, samples[name], explainers, measured[name], **settings[name])
        refuse_others(folder, read_run(folder), identity)
    found: dict[str, Evaluation] = {}
    for name, columns in stages:
        what = f"{subject.name}: {protocol.name}, {name}"
        made = evaluate(
            subject.model, samples[name], explainers, measured[name], out=folders[name], **settings[name],
            images_at_once=options.images_at_once, batch_size=options.batch_size,
            progress=lambda step, what=what: options.progress(what, step),  # type: ignore[misc]
        )  # fmt: skip
        made.write(figures=False)
        found |= dict.fromkeys(columns, made)
    return Study(subject.name, {label: found[label] for label in protocol.columns if label in found}, left_out)


def grouped(protocol: Protocol, quick: bool, masked: bool = False) -> dict[str, dict[str, Column]]:
    """The columns by the stage they are measured in: those of the same pictures that repeat, or do not, together.

    That never depends on how many samples there are, so that a folder goes on with more of them. `masked`: the pictures
    have masks, and no others are needed for the objects.
    """
    found: dict[str, dict[str, Column]] = {}
    for label, column in protocol.columns.items():
        if quick and column.quick is None:
            continue
        kind = PICTURES if masked and column.samples == OBJECTS else column.samples
        found.setdefault(f"few {kind}" if column.repeats else kind, {})[label] = column
    return found


def built(
    protocol: Protocol, subject: Subject, options: Options, samples: Samples
) -> tuple[dict[str, Explainer | Method], dict[str, str]]:
    """The explainers, and the rows that are left out with the reason: each is tried on a sample first."""
    sample = _first(samples)
    x, target = sample.inputs[None].to(subject.device), sample.target
    found: dict[str, Explainer | Method] = {}
    left_out: dict[str, str] = {}
    default: Tensor | None = None
    for label, row in protocol.rows.items():
        if options.quick and row.quick is None:
            left_out[label] = "it is not part of --quick"
            continue
        try:
            one = as_method(row, subject, options.quick)
            value = one.explain(x, target, internal_batch_size=options.batch_size).value
        except (BacklightError, RuntimeError) as error:
            left_out[label] = " ".join(str(error).split())
            continue
        if protocol.show == "differences":
            if label == protocol.baseline:
                default = value
            elif default is not None and torch.equal(value, default):
                left_out[label] = "changes nothing"
                continue
        found[label] = Magnitude(MethodExplainer(one, options.batch_size)) if row.magnitude else one
    return found, left_out


def as_method(row: Row, subject: Subject, quick: bool) -> Method:
    """A row's method on a network."""
    settings = dict(row.settings) | dict((row.quick or {}) if quick else {})
    for part, layer in row.layers.items():
        if part in subject.name:
            settings["layer"] = layer
    if "layer" in settings:
        settings["layer"] = subject.layer(settings["layer"])
    return method(row.method)(subject.model, **settings)


def slug(name: str) -> str:
    """A network's name as a folder's."""
    return re.sub(r"[^\w.-]+", "-", name).strip("-") or "network"


def _metric(column: Column, quick: bool) -> Metric:
    settings = dict(column.settings) | dict((column.quick or {}) if quick else {})
    return metric(column.metric).preset(column.preset, **settings)


def _samples(protocol: Protocol, subject: Subject, options: Options, columns: Mapping[str, Column]) -> Samples:
    kind = next(iter(columns.values())).samples
    number = options.number_of(protocol, list(columns.values()))
    return pictures(options.data, subject, kind, number, options.masks, options.seed)


def _has_masks(protocol: Protocol, subject: Subject, options: Options) -> bool:
    if all(column.samples != OBJECTS for column in protocol.columns.values()):
        return False
    return getattr(pictures(options.data, subject, PICTURES, 10**9, options.masks), "masked", 0) > 0


def _first(samples: Samples) -> Any:
    """The first sample that can be read."""
    for name in samples.names:
        try:
            return samples.load(name)
        except ImageError:
            continue
    raise InputError("none of the pictures can be read")


def _settings(
    protocol: Protocol,
    subject: Subject,
    options: Options,
    columns: Mapping[str, Column],
    explainers: Mapping[str, Any],
) -> dict[str, Any]:
    """The settings of `evaluate` that decide a stage's numbers."""
    usual = not (options.quick and any(column.repeats for column in columns.values()))
    negatives = {"all": list(explainers), "none": False, "baseline": True, None: usual}
    return {
        "controls": protocol.controls,
        "negatives": negatives[options.negatives],
        "baseline": protocol.baseline,
        "seed": options.seed,
        "settings": _described(protocol, subject, options),
    }


def _described(protocol: Protocol, subject: Subject, options: Options) -> dict[str, Any]:
    """What else decides the numbers."""
    rows = {
        label: {"method": row.method, **row.settings, **((row.quick or {}) if options.quick else {})}
        for label, row in protocol.rows.items()
        if row.magnitude
    }
    return plain({"benchmark": protocol.name, "model": subject.name, "size": subject.size, "magnitudes": rows})
