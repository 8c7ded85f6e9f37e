"""iERF, Figure 11: interlayer concept insertion and deletion, all attribution operators side by side.

For each picture and pair of consecutive layers: a few children, the edges of all their parents by every operator, the
curves of the parents inserted and deleted in that order, and how far edges agree with what happens when a parent is
taken out of the running model. A picture is done whole or not at all; the same call goes on after a kill.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from backlight.benchmarks.icat_dictionaries import as_layers, fit_named, fitted, layers_of, opened
from backlight.benchmarks.icat_report import AGREEMENTS, CONTROLS, Found, collected, icat_report
from backlight.benchmarks.report import Report
from backlight.benchmarks.study import Options, slug
from backlight.benchmarks.subjects import Subject, data_folder
from backlight.data.labelled import LabelledFolder
from backlight.engine.segment import Segment
from backlight.errors import BacklightError, ImageError, InputError
from backlight.evaluation.identity import model_hash, plain, sample_seed, tensor_hash, versions
from backlight.evaluation.journal import Failure, Journal, read_rows, whole
from backlight.evaluation.run import Step
from backlight.graph.causal import Changes, agreement, changes
from backlight.graph.coded import Coded, code_sites
from backlight.graph.icat import edges
from backlight.graph.layers import Coder, LayerConcepts
from backlight.graph.operators import OPERATORS, Random, operator
from backlight.graph.operators_base import Operator, Passes
from backlight.graph.validation import METRICS, Curves, Protocol, choose_targets, validate
from backlight.shapes import Float

FAILURES = (
    BacklightError,
    RuntimeError,
)  # an operator's own, others go on (RuntimeError: Captum, memory)
NUMBERS = (100, 4)  # of pictures: the paper's, and with --quick


@dataclass(frozen=True, kw_only=True)
class Icat:
    """What a run of this benchmark does.

    `layers`: of which each and the next are a pair; None: those known for the network. `concepts`: folders of
    `backlight concepts fit`, in place of `fit`, a dictionary to fit on `rows` vectors of the second half of the
    pictures; curves are taken of the first. `coder`: of the codes; None: the dictionary's own. `operators`: by the name
    of their row. `targets`: children of a pair and picture, chosen by `by` (`mass` or `importance`). `causal`: take
    parents out of the running model too.
    """

    layers: tuple[str, ...] | None = None
    concepts: tuple[Path, ...] = ()
    fit: str = "KMeans:n_modes=8x"
    rows: int = 20_000
    coder: Coder | None = None
    operators: Mapping[str, Operator] = field(default_factory=lambda: {name: operator(name) for name in OPERATORS})
    targets: int = 3
    by: str = "mass"
    protocol: Protocol = field(default_factory=Protocol)
    causal: bool = True


def icat(
    subjects: Sequence[Subject],
    options: Options,
    settings: Icat | None = None,
    told: Callable[[str], None] = lambda text: None,
) -> Report:
    """The curves of some networks, their areas and agreements; with what the paper says of its own.

    Raises:
        InputError: no pictures, layers or dictionaries; a folder of other settings.
        MissingExtraError: pyarrow, or matplotlib for the figure.
    """
    settings = settings or Icat()
    found = [measured(subject, options, settings, told) for subject in subjects]
    made = icat_report(found, options.quick)
    made.write(options.out)
    draw(found, options.out)
    return made


def draw(found: Sequence[Found], out: Path) -> list[Path]:
    """`curves-max.png` and so on: a figure a metric, insertion and deletion of each network. Returns the paths."""
    from backlight.viz.icat_curves import icat_figure

    paths = []
    for metric in METRICS:
        panels = {
            f"{one.network}: {half}": tuple(
                dict(zip(one.operators, values(half, metric), strict=True)) for values in (one.curve, one.spread)
            )
            for one in found
            for half in ("inserted", "deleted")
            if one.operators
        }
        if panels:
            shares = [point / (found[0].points - 1) for point in range(found[0].points)]
            title = f"Interlayer insertion and deletion, {metric}"
            path = out / f"curves-{metric}.png"
            with whole(path) as partial:
                icat_figure(panels, shares, CONTROLS, title).savefig(partial, format="png", dpi=130)  # type: ignore[arg-type]
            paths.append(path)
    return paths


def measured(subject: Subject, options: Options, settings: Icat, told: Callable[[str], None]) -> Found:
    """One network, in a journal."""
    samples = LabelledFolder(data_folder(options.data), subject.classes, subject.preprocessing, labelled=False)
    count = options.limit or NUMBERS[options.quick]
    half = -(-len(samples.names) // 2)  # the others are fitted on, however many are validated
    names, others = samples.names[: min(count, half)], samples.names[half:]
    folder = options.out / slug(subject.name)
    layers, hashes = _layers(subject, options, settings, samples, others, folder, told)
    pairs = list(zip(layers, list(layers)[1:], strict=False))
    identity = _identity(subject, samples, settings, hashes, options.seed)
    left_out: dict[str, str] = {}
    with Journal(folder / "icat", identity, columns(settings.protocol)) as journal:
        journal.unchanged(names, samples.content)
        for done, name in enumerate(names):
            options.progress(subject.name, Step(done, len(names), name))
            if name in journal.done:
                continue
            try:
                x = samples.load(name).inputs[None].to(subject.device)
                content = samples.content(name)
            except ImageError as error:
                left_out[name] = str(error)
                continue
            rows, failures = picture(subject, x, name, layers, pairs, settings, options.seed)
            journal.append([{**row, "data": content} for row in rows], failures)
        journal.merge(names)
        options.progress(subject.name, Step(len(names), len(names)))
    table, failures = read_rows(folder / "icat")
    rows = [] if table is None else [row for row in table.to_pylist() if row["sample"] in set(names)]
    for failure in failures:
        left_out.setdefault(failure.method.split(": ", 1)[1], failure.reason)
    named = [f"{start} > {stop}" for start, stop in pairs]
    return collected(subject.name, rows, named, list(settings.operators), settings.protocol, left_out, identity)


def _layers(
    subject: Subject, options: Options, settings: Icat, samples: LabelledFolder, others: Sequence[str], folder: Path,
    told: Callable[[str], None],
) -> tuple[dict[str, LayerConcepts], dict[str, str]]:  # fmt: skip
    """Dictionaries by layer, in the network's order, and the hash of each."""
    if settings.concepts:
        known = opened(subject, settings.concepts)
        order = settings.layers or tuple(known)
        absent = [layer for layer in order if layer not in known]
        if absent or len(order) < 2:
            raise InputError(f"{subject.name}: two layers or more with concepts, there are none of {absent or order}")
        dictionaries = {layer: known[layer][0] for layer in order}
    else:
        order = layers_of(subject, settings.layers)
        made = fit_named(settings.fit, options.seed)
        dictionaries = fitted(
            subject, order, samples, others, made, settings.rows, options.seed, folder / "dictionaries", told
        )
    for one in dictionaries.values():
        one.to(subject.device)
    hashes = {layer: tensor_hash(one.atoms) for layer, one in dictionaries.items()}
    return as_layers(dictionaries, settings.coder), hashes


def _identity(
    subject: Subject, samples: LabelledFolder, settings: Icat, hashes: Mapping[str, str], seed: int
) -> dict[str, Any]:
    operators = {name: {"class": type(one).__name__, **plain(vars(one))} for name, one in settings.operators.items()}
    return {
        "backlight": versions()["backlight"],
        "model": {"name": subject.name, "parameters": model_hash(subject.model)},
        "data": samples.fingerprint,
        "dictionaries": dict(hashes),
        "coder": "own" if settings.coder is None else plain(settings.coder),
        "operators": operators,
        "targets": {"count": settings.targets, "by": settings.by},
        "protocol": plain(vars(settings.protocol)),
        "causal": settings.causal,
        "seed": seed,
    }


def columns(protocol: Protocol) -> list[str]:
    """The numbers of a picture, pair and operator."""
    curves = [
        f"{half} {metric} {point}" for metric in METRICS for half in ("inserted", "deleted")
        for point in range(protocol.points)
    ]  # fmt: skip
    areas = [f"{half} {metric}" for metric in METRICS for half in ("insertion", "deletion")]
    counts = ["targets", *(f"dropped {metric}" for metric in METRICS), "parents", "relative error", "gap"]
    return [*areas, *AGREEMENTS, *counts, *curves]


def picture(
    subject: Subject, x: Tensor, name: str, layers: Mapping[str, LayerConcepts], pairs: Sequence[tuple[str, str]],
    settings: Icat, seed: int,
) -> tuple[list[dict[str, Any]], list[Failure]]:  # fmt: skip
    """The rows of one picture: a pair and operator each, means over the children."""
    sites = {subject.layer(layer): (one.encode, one.atoms, one.offset) for layer, one in layers.items()}
    coded = code_sites(subject.model, x, sites)
    rows: list[dict[str, Any]] = []
    failures: list[Failure] = []
    for number, (start, stop) in enumerate(pairs):
        parents, children = coded[subject.layer(start)], coded[subject.layer(stop)]
        targets = choose_targets(settings.by, subject.model, x, children, settings.targets)
        if not targets:
            continue
        chosen = {
            label: replace(one, seed=sample_seed(seed, f"{name} {number}")) if isinstance(one, Random) else one
            for label, one in settings.operators.items()
        }
        segment = Segment(subject.model, x, parents.site, children.site)
        lost = changes(segment, parents, children, targets) if settings.causal else None
        for label, one in chosen.items():
            method, begun = f"{start} > {stop}: {label}", time.process_time()
            try:
                values, passes = _values(subject, x, parents, children, targets, label, one, settings, segment, lost)
            except FAILURES as error:
                failures.append(Failure(name, method, "", " ".join(str(error).split())))
                continue
            seconds = time.process_time() - begun
            rows.append(
                {"sample": name, "method": method, "target": targets[0], "predicted": None, "score": None,
                 "seconds": seconds, "forwards": passes.forwards, "backwards": passes.backwards, **values}
            )  # fmt: skip
    return rows, failures


def _values(
    subject: Subject, x: Tensor, parents: Coded, children: Coded, targets: Sequence[int], label: str, one: Operator,
    settings: Icat, segment: Segment, lost: Changes | None,
) -> tuple[dict[str, float], Passes]:  # fmt: skip
    """Of one operator: areas, curves, and where asked for how far its edges agree with the running model."""
    found = validate(subject.model, x, parents, children, targets, {label: one}, settings.protocol, segment=segment)
    if label in found.left_out:
        raise InputError(found.left_out[label])
    known = found.edges[label]
    missed, change = known.completeness_gap.abs().sum(), (known.reached - known.base).abs().sum()
    values = figures(found.curves[label], len(targets))
    values["gap"] = float(missed / change)  # of all children together: single ones may hardly change
    values["relative error"] = float(parents.relative_error[0])
    values["parents"] = float((parents.codes != 0).flatten(0, 1).any(0).sum())
    if lost is not None:
        own = edges(subject.model, x, parents, children, targets, attribution=one, segment=segment)
        values |= agreements(own.values[0], lost)
    return values, known.passes


def figures(found: Curves, targets: int) -> dict[str, float]:
    """Areas and curves of each metric, means over the children that the metric can be divided for."""
    values: dict[str, float] = {"targets": float(targets)}
    for m, metric in enumerate(METRICS):
        kept = ~found.insertion[m].isnan()
        values[f"dropped {metric}"] = float(targets - int(kept.sum()))
        for half, curves, areas in (
            ("inserted", found.inserted[m], found.insertion[m]),
            ("deleted", found.deleted[m], found.deletion[m]),
        ):
            mean = curves[kept].mean(0) if bool(kept.any()) else curves[0] * torch.nan
            values |= {f"{half} {metric} {point}": float(value) for point, value in enumerate(mean)}
            area = {"inserted": "insertion", "deleted": "deletion"}[half]
            values[f"{area} {metric}"] = float(areas[kept].mean()) if bool(kept.any()) else np.nan
    return values


def agreements(known: Float[Tensor, "T K"], lost: Changes) -> dict[str, float]:
    """How edges, with the residual on their path, agree with what the running model loses; means over the children."""
    found = []
    for target, values in enumerate(known):
        both = [agreement(values, one[:, target], lost.concepts) for one in (lost.score, lost.largest)]
        found.append([number for one in both for number in (one.pearson, one.spearman)])
    numbers = np.array(found)
    there = ~np.isnan(numbers)
    means = np.where(there.any(0), np.where(there, numbers, 0).sum(0) / np.maximum(there.sum(0), 1), np.nan)
    return dict(zip(AGREEMENTS, map(float, means), strict=True))


def chosen_operators(names: Sequence[str] | None, samples: int | None = None) -> dict[str, Operator]:
    """Operators by name; None: all. `samples`: of KernelSHAP.

    Raises:
        UnknownNameError: another name.
    """
    found = {name: operator(name) for name in names or OPERATORS}
    if samples is not None and "KernelSHAP" in found:
        found["KernelSHAP"] = replace(found["KernelSHAP"], n_samples=samples)  # type: ignore[call-arg]
    return found
