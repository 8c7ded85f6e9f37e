"""Footnotes: where a metric ranks a map that explains nothing above the methods, or cannot tell a map's sign."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from backlight.metrics.controls import is_control

if TYPE_CHECKING:
    from backlight.evaluation.evaluation import Evaluation

MINUS = "minus "
_SAME = 1e-6  # of the largest value: what rounding leaves of equal scores


@dataclass(frozen=True)
class Footnote:
    """A sentence or several on one metric. `kinds`: among "control", "blind", "negative", "undefined"."""

    metric: str
    kinds: tuple[str, ...]
    text: str


def footnotes(evaluation: Evaluation) -> list[Footnote]:
    """One footnote for each metric that needs one, in the order of the metrics."""
    found = []
    for metric in evaluation.metrics:
        told = {"control": controls_above(evaluation, metric), **signs(evaluation, metric)}
        told["undefined"] = undefined(evaluation, metric)
        said = {kind: text for kind, text in told.items() if text}
        if said:
            found.append(Footnote(metric, tuple(said), " ".join(said.values())))
    return found


def controls_above(evaluation: Evaluation, metric: str) -> str:
    """That the best control's mean is better than the best method's; which methods a control beats in the median."""
    sign = 1 if evaluation.higher_is_better(metric) else -1
    table = evaluation.table(metric)
    methods = {name: one for name, one in table.items() if not is_control(name) and one.n}
    controls = {name: one for name, one in table.items() if _explains_nothing(name) and one.n}
    if not methods or not controls:
        return ""
    said = []
    best, first = (max(group, key=lambda name: sign * group[name].mean) for group in (methods, controls))
    if sign * controls[first].mean > sign * methods[best].mean:
        said.append(
            f"{metric} ranks {first!r} ({number(controls[first].mean)}) above every method "
            f"(the best, {best}: {number(methods[best].mean)})."
        )
    first = max(controls, key=lambda name: sign * controls[name].median)
    beaten = [name for name, one in methods.items() if sign * controls[first].median > sign * one.median]
    if beaten:
        which = "every method" if len(beaten) == len(methods) > 1 else ", ".join(beaten)
        said.append(f"In the median, {first!r} is better than {which}.")
    return " ".join(said)


def signs(evaluation: Evaluation, metric: str) -> dict[str, str]:
    """That a metric gives a map and its negative the same scores, or the negative better ones."""
    values = dict(zip(evaluation.methods, evaluation.values(metric), strict=True))
    pairs = [name for name in values if MINUS + name in values]
    pairs = [name for name in pairs if not np.isnan(values[name] - values[MINUS + name]).all()]
    blind = not evaluation.run["identity"]["metrics"][metric]["sees_sign"]  # few samples may tie by chance
    if blind and all(_equal(values[name], values[MINUS + name]) for name in pairs):
        return {"blind": f"{metric} cannot tell a map from its negative."}
    sign, table = 1 if evaluation.higher_is_better(metric) else -1, evaluation.table(metric)
    worse = [name for name in pairs if sign * table[MINUS + name].mean > sign * table[name].mean]
    worse = [name for name in worse if not _equal(values[name], values[MINUS + name])]
    if worse:
        return {"negative": f"{metric} ranks the negative of {', '.join(worse)} above the map itself."}
    return {}


def undefined(evaluation: Evaluation, metric: str) -> str:
    """For how many samples a metric has no value."""
    total = len(evaluation.samples)
    counts = {one.n for name, one in evaluation.table(metric).items() if not is_control(name)}
    if not total or counts == {total}:
        return ""
    if counts == {0}:
        return f"{metric} is not defined for any sample."
    fewest, most = min(counts), max(counts)
    many = str(most) if fewest == most else f"{fewest} to {most}"
    return f"{metric} is defined for {many} of {total} samples."


def number(value: float) -> str:
    """A number in a sentence."""
    return f"{value:.3g}"


def _explains_nothing(name: str) -> bool:
    return is_control(name) and not name.startswith(MINUS)


def _equal(a: np.ndarray, b: np.ndarray) -> bool:
    both = ~(np.isnan(a) | np.isnan(b))
    scale = max(float(np.abs(a[both]).max(initial=0)), float(np.abs(b[both]).max(initial=0)))
    return bool(np.array_equal(np.isnan(a), np.isnan(b)) and (np.abs(a - b)[both] <= _SAME * scale).all())
