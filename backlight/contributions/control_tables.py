"""Tables of control, for readers and for programs, beside the published numbers."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Iterator
from functools import cache
from importlib import resources
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from backlight.contributions.control_curves import SIDES, ControlCurves
from backlight.contributions.control_statistics import MEASURES, ControlStatistics, Interval
from backlight.evaluation.journal import write_text

AREAS, CURVES, SUMMARY = "areas.csv", "curves.csv", "control.json"
RANKS = (1, 5)
_STAGES = (0, 3, 7, 13)  # blocks of a ResNet-50 before each stage


@cache
def published() -> dict[tuple[str, str, int], float]:
    """Relative differences of the paper's figure 6E, digitised: by action, direction and block of ResNet-50."""
    text = resources.files("backlight.contributions").joinpath("numbers", "control.csv").read_text(encoding="utf-8")
    rows = csv.DictReader(io.StringIO(text))
    return {(row["action"], row["direction"], int(row["layer"])): float(row["value"]) for row in rows}


def published_relative(curves: ControlCurves, place: str, direction: str, action: str) -> float | None:
    """The paper's number, where it has one for this network, site and direction, by zeros and ratios."""
    block = re.fullmatch(r"layer([1-4])\.(\d+)", place)
    names = [str(name).lower().replace("-", "") for name in curves.settings.get("networks", [])]
    if block is None or curves.settings.get("fill") != "zero" or not any("resnet50" in name for name in names):
        return None
    return published().get((action, direction, _STAGES[int(block[1]) - 1] + int(block[2])))


def area_rows(curves: ControlCurves, **settings: Any) -> Iterator[dict[str, Any]]:
    """A row for each measure, rank, place, action and direction. `settings`: of `ControlStatistics`."""
    for statistics, place, action, direction in _parts(curves, settings):
        yield _area_row(statistics, place, action, direction)


def _parts(curves: ControlCurves, settings: dict[str, Any]) -> Iterator[tuple[ControlStatistics, str, str, str]]:
    for measure, top in product(MEASURES, RANKS):
        statistics = ControlStatistics(curves, measure, top, **settings)
        yield from product([statistics], curves.places, curves.actions, curves.directions)


def _area_row(statistics: ControlStatistics, place: str, action: str, direction: str) -> dict[str, Any]:
    curves, found = statistics.curves, statistics.areas(place, direction, action)
    first = curves.directions[0]
    row: dict[str, Any] = {"site": place, "action": action, "direction": direction}
    row |= {"measure": statistics.measure, "top": statistics.top, "trials": len(curves.concepts)}
    row |= {"excluded_target": found.excluded[0], "excluded_off": found.excluded[1]}
    for name in ("target", "off", "absolute", "relative"):
        row |= _cells(name, getattr(found, name))
    beaten = statistics.against(place, first, direction, action)
    row |= _cells("first_minus_this_absolute", beaten.absolute)
    row |= _cells("first_minus_this_relative", beaten.relative)
    ours = statistics.measure == "ratio" and statistics.top == 1
    row["published_relative"] = published_relative(curves, place, direction, action) if ours else None
    return row


def curve_rows(curves: ControlCurves, **settings: Any) -> Iterator[dict[str, Any]]:
    """A row for each point of each curve."""
    for statistics, place, action, direction in _parts(curves, settings):
        for number, side in enumerate(SIDES):
            band = statistics.band(place, direction, action, number)
            row: dict[str, Any] = {"site": place, "action": action, "direction": direction, "side": side}
            row |= {"measure": statistics.measure, "top": statistics.top, "n": band.n, "excluded": band.excluded}
            for at, fraction in enumerate(curves.grid):
                points = (float(values[at]) for values in (band.mean, band.low, band.high))
                yield row | {"fraction": fraction} | _cells("mean", Interval(*points))


def summary(curves: ControlCurves, **settings: Any) -> dict[str, Any]:
    """Plain values: what was measured, on what, and the areas."""
    before = {
        side: {f"top{top}": _number(float(curves.before[:, number, rank].mean())) for rank, top in enumerate(RANKS)}
        for number, side in enumerate(SIDES)
    }
    return {
        "trials": len(curves.concepts),
        "concepts": list(curves.concepts),
        "images": {side: curves.sizes[:, number].tolist() for number, side in enumerate(SIDES)},
        "before": before,
        "sites": list(curves.places),
        "directions": list(curves.directions),
        "actions": list(curves.actions),
        "fractions": list(curves.grid),
        "modes": {name: list(notes) for name, notes in curves.notes.items()},
        "settings": curves.settings,
        "areas": list(area_rows(curves, **settings)),
    }


def write_tables(curves: ControlCurves, folder: Path, found: dict[str, Any], **settings: Any) -> list[Path]:
    """`control.json`, `areas.csv` and `curves.csv`. `found`: what `summary` gave. Returns the paths."""
    write_text(folder / SUMMARY, json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    write_text(folder / AREAS, _csv(found["areas"]))
    write_text(folder / CURVES, _csv(list(curve_rows(curves, **settings))))
    return [folder / SUMMARY, folder / AREAS, folder / CURVES]


def _csv(rows: list[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _cells(name: str, one: Interval) -> dict[str, float | None]:
    return {name: _number(one.value), f"{name}_low": _number(one.low), f"{name}_high": _number(one.high)}


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(np.round(value, 6))
