"""Evaluate explanations on samples: in groups, with a journal that a kill at any point does no harm to."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from typing import Any

import torch
from torch import nn

from backlight.data.labelled import Sample
from backlight.errors import ImageError, InputError, UnknownNameError
from backlight.evaluation.evaluation import FAILURES, SKIPPED, Evaluation, Skipped
from backlight.evaluation.identity import described_explainer, described_metric, model_hash, names_hash, plain, versions
from backlight.evaluation.journal import COST, Failure, Journal, write_text
from backlight.evaluation.samples import Samples
from backlight.evaluation.scoring import Scoring
from backlight.methods.method import Method
from backlight.metrics.controls import Control, Negative
from backlight.metrics.controls import controls as control_maps
from backlight.metrics.explainers import Explainer, MethodExplainer, as_explainer
from backlight.metrics.metric import Metric
from backlight.metrics.scorer import BATCH_SIZE

RESERVED = ("sample", "method", "target", "predicted", "score", "data", *COST)


@dataclass(frozen=True)
class Step:
    """What is under way: `done` of `total` samples, and the explanation or metric that begins; what failed just now."""

    done: int
    total: int
    what: str = ""
    failures: tuple[Failure, ...] = ()
    skipped: tuple[Skipped, ...] = ()


def _silent(_: Step) -> None:
    pass


def evaluate(
    model: nn.Module,
    samples: Samples,
    explainers: Mapping[str, Any],
    metrics: Mapping[str, Metric],
    *,
    out: str | os.PathLike[str],
    controls: bool = True,
    negatives: Sequence[str] | bool = True,
    baseline: str | None = None,
    seed: int = 0,
    images_at_once: int = 4,
    batch_size: int = BATCH_SIZE,
    settings: Mapping[str, Any] | None = None,
    progress: Callable[[Step], None] = _silent,
) -> Evaluation:
    """Every metric of every explanation at every sample, written to the folder `out` as it goes.

    The folder is a journal: after a kill, the same call goes on where it stopped. A sample that cannot be read is
    skipped, listed, and tried again by the next call; one that has changed since it was done is an error. A method or
    metric that fails at a sample gives NaN there, and its reason is kept.

    Args:
        model: gives logits `[N, K]`; takes what `samples` load, on the device of its parameters.
        explainers: by name: methods, attributions of Captum, or functions `(inputs, target) -> maps`.
        metrics: by the name of their column.
        controls: measure maps that explain nothing, too; see `backlight.metrics.controls`.
        negatives: the explanations whose negatives are measured too, as "minus NAME"; True: the baseline's alone.
        baseline: the method that the others are compared with; by default the first.
        seed: of all draws. A sample's depend on it and on the sample's name, not on `images_at_once`.
        images_at_once: samples that are loaded and explained together.
        batch_size: the most samples in one pass of the network.
        settings: what else decides the numbers, such as the model's name, for `run.json`: with the parameters' hash,
            the data's, the explainers' and metrics' settings and the seed it must be the same where a run goes on.
        progress: called before each explanation and metric, and after each group.

    Raises:
        InputError: nothing to do, a name that is taken, or a folder that holds an evaluation with other settings, or of
            samples that have changed since.
        UnknownNameError: a baseline or negative that is not among the explainers; a setting that names nothing.
        TargetError: a target that is not among the network's outputs.
        MissingExtraError: pyarrow is not installed.
    """
    first = _baseline(explainers, baseline)
    chosen = _negatives(explainers, first, negatives)
    measured = _measured(explainers, chosen, controls, seed, batch_size)
    _check(measured, metrics, samples, images_at_once)
    identity = identity_of(
        model, samples, explainers, metrics,
        controls=controls, negatives=chosen, baseline=first, seed=seed, settings=settings,
    )  # fmt: skip
    with Journal(out, identity, list(metrics)) as journal:
        journal.unchanged(samples.names, samples.content)
        device = next((tensor.device for tensor in (*model.parameters(), *model.buffers())), torch.device("cpu"))
        sizes = {"images_at_once": images_at_once, "batch_size": batch_size, "device": str(device)}
        _begin(journal, samples.names, first, sizes)
        run = _Run(samples, journal, Scoring(model, measured, metrics, seed, batch_size, lambda _: None), progress)
        run.all(images_at_once)
        journal.merge(samples.names)
        journal.run["contents"] = names_hash(f"{name} {journal.done[name]}" for name in sorted(journal.done))
        journal.write_run()
    return Evaluation.load(out)


def identity_of(
    model: nn.Module,
    samples: Samples,
    explainers: Mapping[str, Any],
    metrics: Mapping[str, Metric],
    *,
    controls: bool = True,
    negatives: Sequence[str] | bool = True,
    baseline: str | None = None,
    seed: int = 0,
    settings: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What decides the numbers that `evaluate` finds with the same arguments, as `run.json` holds it."""
    return {
        "backlight": versions()["backlight"],
        "model": {"class": type(model).__name__, "parameters": model_hash(model)},
        "data": samples.fingerprint,
        "methods": {name: described_explainer(_explainer(one)) for name, one in explainers.items()},
        "negatives": _negatives(explainers, _baseline(explainers, baseline), negatives),
        "controls": controls,
        "metrics": {label: described_metric(metric) for label, metric in metrics.items()},
        "seed": seed,
        "settings": plain(settings or {}),
    }


class _Run:
    """The samples of one call that have no rows yet, group by group."""

    def __init__(self, samples: Samples, journal: Journal, scoring: Scoring, progress: Callable[[Step], None]) -> None:
        self.samples, self.journal, self.scoring, self.progress = samples, journal, scoring, progress
        self.total = len(samples.names)
        self.todo = [name for name in samples.names if name not in journal.done]
        self.passed = self.total - len(self.todo)
        self.skipped: list[Skipped] = []
        scoring.step = lambda what: progress(Step(self.passed, self.total, what))

    def all(self, images_at_once: int) -> None:
        self._write_skipped()
        self.progress(Step(self.passed, self.total))
        names = iter(self.todo)
        while group := list(islice(names, images_at_once)):
            known = len(self.skipped)
            loaded = [found for name in group if (found := self._loaded(name)) is not None]
            rows, failures = self.scoring([sample for _, sample in loaded]) if loaded else ([], [])
            if rows:
                contents = {sample.name: content for content, sample in loaded}
                self.journal.append([{**row, "data": contents[row["sample"]]} for row in rows], failures)
            if len(self.skipped) > known:
                self._write_skipped()
            self.passed += len(group)
            self.progress(Step(self.passed, self.total, "", tuple(failures), tuple(self.skipped[known:])))

    def _loaded(self, name: str) -> tuple[str, Sample] | None:
        """The hash of what a sample is made of, and the sample."""
        try:
            return self.samples.content(name), self.samples.load(name)
        except ImageError as error:
            self.skipped.append(Skipped(name, " ".join(str(error).split())))
            return None

    def _write_skipped(self) -> None:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerows([("sample", "reason"), *((one.sample, one.reason) for one in self.skipped)])
        write_text(self.journal.folder / SKIPPED, text.getvalue())


def _begin(journal: Journal, names: Sequence[str], baseline: str, sizes: Mapping[str, Any]) -> None:
    """Note in `run.json` that a call begins, with what need not be the same as before."""
    session = {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "samples": len(names),
        "done_before": len(journal.done.keys() & set(names)),
        "names": names_hash(names),
        **sizes,
        "versions": versions(),
    }
    journal.run["baseline"] = baseline
    journal.run["sessions"].append(session)
    journal.write_run()


def _baseline(explainers: Mapping[str, Any], baseline: str | None) -> str:
    if not explainers:
        raise InputError("there is nothing to evaluate: give explainers={name: ...}")
    if baseline is not None and baseline not in explainers:
        raise UnknownNameError("baseline", baseline, explainers)
    return baseline or next(iter(explainers))


def _negatives(explainers: Mapping[str, Any], baseline: str, negatives: Sequence[str] | bool) -> list[str]:
    if isinstance(negatives, bool):
        return [baseline] if negatives else []
    for name in negatives:
        if name not in explainers:
            raise UnknownNameError("explanation", name, explainers)
    return list(negatives)


def _measured(
    explainers: Mapping[str, Any], negatives: Sequence[str], controls: bool, seed: int, batch_size: int
) -> dict[str, Explainer]:
    """All that is measured: methods, negatives, controls."""
    found = {name: _explainer(one, batch_size) for name, one in explainers.items()}
    added: dict[str, Explainer] = {f"minus {name}": Negative(found[name]) for name in negatives}
    extra: Mapping[str, Control] = control_maps(seed) if controls else {}
    taken = (set(added) | set(extra)) & set(found)
    if taken:
        raise InputError(f"the name {min(taken)!r} is taken by a control: give the explanation another one")
    return {**found, **added, **extra}


def _explainer(one: Any, batch_size: int = BATCH_SIZE) -> Explainer:
    return MethodExplainer(one, batch_size) if isinstance(one, Method) else as_explainer(one)


def _check(measured: Mapping[str, Explainer], metrics: Mapping[str, Metric], samples: Samples, at_once: int) -> None:
    if not metrics:
        raise InputError("there is nothing to measure: give metrics={name: ...}")
    taken = set(RESERVED) & set(metrics)
    if taken:
        raise InputError(f"the name {min(taken)!r} is another column's: give the metric another one")
    if not samples.names or len(set(samples.names)) != len(samples.names):
        raise InputError("samples need names, each once" if samples.names else "there are no samples")
    if at_once < 1:
        raise InputError(f"images_at_once must be at least 1, got {at_once}")


__all__ = ["FAILURES", "Step", "evaluate"]
