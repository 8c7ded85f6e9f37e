"""iERF, Figure 4: how far the manipulation attack moves explanations, method by method, on pairs of pictures."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from backlight.benchmarks.protocols import MANIPULATION_ROWS, MANIPULATION_SIZES, Row
from backlight.benchmarks.report import Report, Table
from backlight.benchmarks.study import Options, as_method, slug
from backlight.benchmarks.subjects import Subject, data_folder
from backlight.data.images import Preprocessing
from backlight.data.labelled import LabelledFolder
from backlight.errors import BacklightError, ImageError, InputError
from backlight.evaluation.identity import combined_hash, model_hash, plain, versions
from backlight.evaluation.journal import Journal, read_rows
from backlight.evaluation.statistics import Summary, summaries
from backlight.evaluation.tables import formatter
from backlight.methods import Method
from backlight.robustness import Manipulation, manipulate, pearson

COLUMNS = (
    "moved pcc", "moved ssim", "noise pcc", "reached pcc", "reached ssim", "apart pcc", "apart ssim", "closed",
    "change/255", "mse", "logit change", "p before", "p after", "top-1 kept", "steps", "s/step",
)  # fmt: skip
EXPLAINED = (
    "`moved`: of the maps before and after, low where the attack succeeds (the paper's scores); `noise`: the same "
    "where the picture is changed by Gaussian noise of the same mean square; `reached`: of the map after and the one "
    "aimed at; `closed`: the share of that gap in PCC that was closed.",
    "The paper shows its scores in a figure, without numbers. There, SRD is attacked with all weights of the last "
    "layer set to 1, so that its map does not depend on the class; here it explains the class, as the others do.",
)


def manipulation(
    subjects: Sequence[Subject],
    options: Options,
    pairs: int | None = None,
    size: int | None = None,
    n_steps: int | None = None,
    preset: str = "paper",
    rows: Mapping[str, Row] = MANIPULATION_ROWS,
    told: Callable[[str], None] = lambda text: None,
) -> Report:
    """Attack each method on each pair: the first picture is changed until its map is that of the second.

    Each picture is explained for its own largest logit. Pairs that are done are not attacked again by the same call.
    `size`: of the pictures, in pixels; the networks take any.
    """
    sizes = MANIPULATION_SIZES[options.quick]
    pairs, size, n_steps = pairs or sizes[0], size or sizes[1], n_steps or sizes[2]
    found: dict[str, dict[str, list[Summary]]] = {}
    left_out: list[str] = []
    identities: list[dict[str, Any]] = []
    for subject in subjects:
        data, x, unread = couples(options.data, subject, pairs, size)
        left_out += [one for one in unread if one not in left_out]
        found[subject.name] = {}
        for label, row in rows.items():
            told(f"{subject.name}: {label}")
            try:
                explainer = as_method(row, subject, options.quick)
                folder = options.out / slug(subject.name) / f"manipulation-{slug(label)}"
                identity = _identity(subject, explainer, data, preset, n_steps, size)
                found[subject.name][label] = attacked(folder, identity, label, explainer, x, preset, n_steps)
                identities.append(identity)
            except (BacklightError, RuntimeError) as error:
                if isinstance(error, InputError):
                    raise
                left_out.append(f"Left out on {subject.name}: {label}: {' '.join(str(error).split())}")
    tables = [_table(name, one, pairs, size, n_steps) for name, one in found.items()]
    records = [
        {"source": "measured", "network": network, "method": label, "metric": column, **summary.__dict__}
        for network, one in found.items()
        for label, values in one.items()
        for column, summary in zip(COLUMNS, values, strict=True)
    ]
    run = {"benchmark": "manipulation", "versions": versions(), "attacks": identities}
    made = Report("iERF, Figure 4: manipulated explanations", [*EXPLAINED, *left_out], tables, records, run)
    made.write(options.out)
    return made


@dataclass(frozen=True)
class Couple:
    """A picture to change and one whose map is aimed at, `[1, 3, size, size]`. `content`: a hash of both."""

    name: str
    content: str
    x: Tensor
    other: Tensor


def couples(data: Path | None, subject: Subject, pairs: int, size: int) -> tuple[str, list[Couple], list[str]]:
    """The folder's fingerprint, the first `pairs` whose pictures can be read, and what is said of the others.

    A picture has the same partner whichever pictures cannot be read.

    Raises:
        InputError: too few pictures.
    """
    samples = LabelledFolder(data_folder(data), subject.classes, Preprocessing.paper(size), labelled=False)
    found: list[Couple] = []
    unread: list[str] = []
    for first, second in zip(samples.names[::2], samples.names[1::2], strict=False):
        if len(found) == pairs:
            break
        try:
            x, other = (samples.load(name).inputs[None].to(subject.device) for name in (first, second))
            content = combined_hash(samples.content(first), samples.content(second))
            found.append(Couple(f"{first} to {second}", content, x, other))
        except ImageError as error:
            unread.append(f"Left out: the pair {first} to {second}: {error}")
    if len(found) < pairs:
        unreadable = f", {len(unread)} pairs cannot be read" if unread else ""
        raise InputError(
            f"{pairs} pairs need {2 * pairs} pictures, there are {len(samples.names)}{unreadable}: give --pairs"
        )
    return samples.fingerprint, found, unread


def attacked(
    folder: Path,
    identity: Mapping[str, Any],
    label: str,
    explainer: Method,
    pairs: Sequence[Couple],
    preset: str,
    n_steps: int,
) -> list[Summary]:
    """One method on all pairs, in a journal; the statistics of each column."""
    names = [pair.name for pair in pairs]
    with Journal(folder, identity, COLUMNS) as journal:
        journal.unchanged(names, {pair.name: pair.content for pair in pairs}.__getitem__)
        for pair in pairs:
            if pair.name in journal.done:
                continue
            start = time.perf_counter()
            half = (0.5, 0.5, 0.5)
            front = Preprocessing(mean=half, std=half)
            found = manipulate(explainer, pair.x, pair.other, preprocessing=front, preset=preset, n_steps=n_steps)
            taken = time.perf_counter() - start
            figures = row(found, under_noise(explainer, found), taken / int(found.steps.max()))
            best = int(found.prediction.top1)
            about = {"sample": pair.name, "method": label, "target": best, "predicted": best, "data": pair.content}
            cost = {"seconds": taken, "forwards": np.nan, "backwards": np.nan}
            journal.append([{**about, "score": float(found.prediction.before[0, best]), **figures, **cost}])
        journal.merge(names)
    table, _ = read_rows(folder)
    rows = [one for one in table.to_pylist() if one["sample"] in set(names)]
    return summaries(np.array([[one[column] for column in COLUMNS] for one in rows], dtype=float))


def under_noise(explainer: Method, found: Manipulation) -> Tensor:
    """PCC of the map before, and the map of the image with noise of the size of the attack's change."""
    noise = torch.randn(found.original.shape, generator=torch.Generator().manual_seed(0)).to(found.original)
    noisy = found.original + noise * found.mse.sqrt().reshape(-1, 1, 1, 1)
    return pearson(found.before, found.attack.reduced(explainer.explain(noisy, found.target).value))


def row(found: Manipulation, noise: Tensor, seconds: float) -> dict[str, float]:
    """The figures of one pair; `seconds`: of a step."""
    moved, reached, apart = found.moved, found.reached, found.apart
    before, after = found.prediction.probability
    closed = 1 - (1 - reached.pcc) / (1 - apart.pcc)
    values: tuple[Any, ...] = (
        moved.pcc, moved.ssim, noise, reached.pcc, reached.ssim, apart.pcc, apart.ssim, closed,
        255 * found.largest_change.amax(), found.mse, found.prediction.largest, before, after,
        found.prediction.kept.double(), found.steps.double(), seconds,
    )  # fmt: skip
    return {name: float(value) for name, value in zip(COLUMNS, values, strict=True)}


def _identity(subject: Subject, explainer: Method, data: str, preset: str, n_steps: int, size: int) -> dict[str, Any]:
    settings = {name: plain(getattr(explainer, name)) for name in explainer.settings()}
    return {
        "backlight": versions()["backlight"],
        "model": {"name": subject.name, "parameters": model_hash(subject.model)},
        "data": data,
        "method": {"class": type(explainer).__name__, "settings": settings},
        "attack": {"preset": preset, "n_steps": n_steps, "size": size},
    }


def _table(network: str, found: Mapping[str, Sequence[Summary]], pairs: int, size: int, n_steps: int) -> Table:
    shown = [formatter((label, values[place].mean) for label, values in found.items()) for place in range(len(COLUMNS))]
    rows = [
        [label, *(show(one.mean) for show, one in zip(shown, values, strict=True))] for label, values in found.items()
    ]
    title = f"{network}: means over {pairs} pairs, {size} pixels, at most {n_steps} steps"
    return Table(title, ["method", *COLUMNS], rows)
