"""Semantic Pullbacks, Table 3: seconds of a batch's explanations, and their ratio to the gradient's."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from backlight.benchmarks.protocols import TIMING_ROWS, TIMING_SIZES, Row
from backlight.benchmarks.published import published
from backlight.benchmarks.report import NONE, Report, Table
from backlight.benchmarks.study import Options, as_method
from backlight.benchmarks.subjects import DATA, Subject, data_folder
from backlight.data.labelled import LabelledFolder
from backlight.errors import BacklightError, ImageError, InputError
from backlight.evaluation.identity import model_hash, plain, tensor_hash, versions

BASE = "Gradient"


@dataclass(frozen=True)
class Timed:
    """`seconds`: the median of the repeats; `passes`: forward and backward ones of a sample."""

    seconds: float
    forwards: float
    backwards: float


def timing(
    subjects: Sequence[Subject],
    options: Options,
    batch: int | None = None,
    repeats: int | None = None,
    told: Callable[[str], None] = lambda text: None,
    rows: Mapping[str, Row] = TIMING_ROWS,
) -> Report:
    """Time every method with the protocol's own settings, also with `--quick`: then on a smaller batch.

    The batch is pictures of the folder, or noise where there is none: that does not change the time.
    """
    sizes = TIMING_SIZES[options.quick]
    batch, repeats = batch or sizes[0], repeats or sizes[1]
    times: dict[str, dict[str, Timed]] = {}
    left_out: dict[str, dict[str, str]] = {}
    about: dict[str, dict[str, Any]] = {}
    for subject in subjects:
        x, data = _batch(subject, options, batch)
        about[subject.name] = _about(subject, rows, options, data)
        times[subject.name], left_out[subject.name] = {}, {}
        for label, row in rows.items():
            told(f"{subject.name}: {label}")
            try:
                times[subject.name][label] = timed(row, subject, x, repeats, options.batch_size)
            except (BacklightError, RuntimeError) as error:
                left_out[subject.name][label] = " ".join(str(error).split())
    found = _report(times, left_out, rows, batch, repeats, about, subjects[0].device)
    found.write(options.out)
    return found


def timed(row: Row, subject: Subject, x: Tensor, repeats: int, batch_size: int) -> Timed:
    """A method on a batch; the first explanation, which warms up, does not count."""
    one = as_method(row, subject, quick=False)
    target = [0] * len(x)
    found = one.explain(x, target, internal_batch_size=batch_size)
    seconds = []
    for _ in range(repeats):
        _wait(x)
        start = time.perf_counter()
        one.explain(x, target, internal_batch_size=batch_size)
        _wait(x)
        seconds.append(time.perf_counter() - start)
    return Timed(statistics.median(seconds), found.cost.forwards / len(x), found.cost.backwards / len(x))


def _wait(x: Tensor) -> None:
    if x.is_cuda:
        torch.cuda.synchronize(x.device)


def _batch(subject: Subject, options: Options, batch: int) -> tuple[Tensor, dict[str, str]]:
    """Pictures that can be read, again from the first where there are too few, and by name the hash of each."""
    if options.data is None and not DATA.is_dir():
        x = torch.rand(batch, 3, subject.size, subject.size, generator=torch.Generator().manual_seed(0)) * 2 - 1
        return x.to(subject.device), {"noise": tensor_hash(x)}
    folder = data_folder(options.data)
    samples = LabelledFolder(folder, subject.classes, subject.preprocessing, labelled=False)
    found: dict[str, Tensor] = {}
    for name in samples.names:
        with suppress(ImageError):
            found[name] = samples.load(name).inputs
        if len(found) == batch:
            break
    if not found:
        raise InputError(f"none of the pictures in {str(folder)!r} can be read")
    x = torch.stack(list(found.values()))[torch.arange(batch) % len(found)]
    return x.to(subject.device), {name: samples.content(name) for name in found}


def _about(subject: Subject, rows: Mapping[str, Row], options: Options, data: Mapping[str, str]) -> dict[str, Any]:
    """What decides a network's numbers."""
    return {
        "parameters": model_hash(subject.model),
        "size": subject.size,
        "device": str(subject.device),
        "batch_size": options.batch_size,
        "methods": {label: plain({"method": row.method, **row.settings}) for label, row in rows.items()},
        "data": dict(data),
    }


def machine(device: torch.device) -> str:
    """What the times are of."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"


def _report(
    times: Mapping[str, Mapping[str, Timed]],
    left_out: Mapping[str, Mapping[str, str]],
    rows: Mapping[str, Row],
    batch: int,
    repeats: int,
    about: Mapping[str, Mapping[str, Any]],
    device: torch.device,
) -> Report:
    tables = [
        Table(
            f"{network}, batch {batch}, median of {repeats}",
            ["method", "seconds", "ratio", "forwards / backwards a sample"]
            + [f"{name}, seconds (ratio), Table 3" for name in _theirs()],
            _lines(found, rows),
            [f"Left out: {label}: {reason}" for label, reason in left_out[network].items()],
        )
        for network, found in times.items()
    ]
    records = [
        {"source": "measured", "network": network, "method": label, "batch": batch, **one.__dict__}
        for network, found in times.items()
        for label, one in found.items()
    ] + [
        {"source": number.source, "network": number.network, "method": number.row, "batch": 20, "seconds": number.mean}
        for number in published("timing")
    ]
    above = [
        f"Seconds of one explanation of a batch, and their ratio to the gradient's. The paper's: batch 20 on an A100. "
        f"Ours: {machine(device)}.",
    ]
    run = {"benchmark": "timing", "batch": batch, "repeats": repeats, "versions": versions(), "networks": dict(about)}
    return Report("Semantic Pullbacks, Table 3: seconds of explanations", above, tables, records, run)


def _theirs() -> dict[str, dict[str, float]]:
    """The published seconds, by network and row."""
    found: dict[str, dict[str, float]] = {}
    for number in published("timing"):
        found.setdefault(number.network, {})[number.row] = number.mean
    return found


def _lines(found: Mapping[str, Timed], rows: Mapping[str, Row]) -> list[list[str]]:
    base = found[BASE].seconds if BASE in found else float("nan")
    lines = []
    for label, one in found.items():
        name = rows[label].published
        beside = [
            f"{numbers[name]:g} ({numbers[name] / numbers[BASE]:.1f})" if name is not None and name in numbers else NONE
            for numbers in _theirs().values()
        ]
        passes = f"{one.forwards:g} / {one.backwards:g}"
        lines.append([label, f"{one.seconds:.3f}", f"{one.seconds / base:.1f}", passes, *beside])
    return lines
