"""Tables of an interlayer benchmark: areas and agreements by operator, over all pairs of layers and for each.

A picture is the unit: its children and pairs are averaged first, so that what is resampled is independent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from backlight.benchmarks.report import NONE, Report, Table
from backlight.evaluation.identity import versions
from backlight.evaluation.statistics import Paired, Summary, paired, summaries
from backlight.graph.validation import METRICS, Protocol
from backlight.shapes import Float

REFERENCE = "IntegratedGradients"
CONTROLS = ("Activation", "Random")
MEASURED = "Ablation"  # what the running model loses: agreements of the score are with it
AGREEMENTS = ("pearson", "spearman", "pearson of max", "spearman of max")
PAPER = (
    "The paper (iERF, Figure 11) shows a figure without numbers: ResNet-50, 100 pictures of ImageNet, consecutive "
    "pairs of layer1.2, 2.3, 3.0, 3.2, 3.5 and 4.2; integrated gradients consistently outperform gradient x input, "
    "SHAP, DeepLIFT and LRP in insertion and deletion, by the largest cosine. It says neither how many children were "
    "taken and which, nor the penalty of the codes."
)
EXPLAINED = (
    "Areas under the curves over the share of active parents, of what is left of the child as a share of what it is "
    "with all of them. Insertion: the first parents alone, more is better. Deletion: without them, less is better. "
    "`max`: the largest cosine of a position with the child, as in the paper; `mean`: of all positions; `top`: of the "
    "largest 5 %; `score`: weighed by the child's codes, which is what edges attribute.",
    "Agreement: correlation, over the parents of a child, of edges with what the score (or the largest cosine) loses "
    "when a parent is taken out of the running model, where nothing is reconstructed.",
    "Mean ± standard error over pictures; in brackets the share of pictures where the operator is better than "
    "integrated gradients.",
)


@dataclass(frozen=True, eq=False)
class Found:
    """One network's numbers: `table` `[pictures, pairs, operators, columns]`, NaN where there is none."""

    network: str
    pictures: tuple[str, ...]
    pairs: tuple[str, ...]
    operators: tuple[str, ...]
    columns: tuple[str, ...]
    table: Float[np.ndarray, "pictures pairs operators columns"]
    points: int
    left_out: Mapping[str, str]
    identity: Mapping[str, Any]

    def values(self, column: str, pair: str | None = None) -> Float[np.ndarray, "pictures operators"]:
        """Of each picture and operator: of a pair, or the mean over pairs."""
        found = self.table[:, :, :, self.columns.index(column)]
        return _nanmean(found, 1) if pair is None else found[:, self.pairs.index(pair)]

    def curve(self, half: str, metric: str, pair: str | None = None) -> Float[np.ndarray, "operators points"]:
        """The mean curve of each operator, over pictures."""
        points = [_nanmean(self.values(f"{half} {metric} {point}", pair), 0) for point in range(self.points)]
        return np.stack(points, 1)

    def spread(self, half: str, metric: str, pair: str | None = None) -> Float[np.ndarray, "operators points"]:
        """The standard error of those means."""
        found = []
        for point in range(self.points):
            values = self.values(f"{half} {metric} {point}", pair)
            count = (~np.isnan(values)).sum(0)
            spread = np.array(
                [np.nanstd(one, ddof=1) if n > 1 else np.nan for one, n in zip(values.T, count, strict=True)]
            )
            found.append(spread / np.sqrt(np.maximum(count, 1)))
        return np.stack(found, 1)


def collected(
    network: str,
    rows: Sequence[Mapping[str, Any]],
    pairs: Sequence[str],
    operators: Sequence[str],
    protocol: Protocol,
    left_out: Mapping[str, str],
    identity: Mapping[str, Any],
) -> Found:
    """The rows of a journal as one table; operators without any are left out."""
    fixed = {"sample", "method", "target", "predicted", "score", "data"}
    columns = [name for name in (rows[0] if rows else {}) if name not in fixed]
    pictures = list(dict.fromkeys(row["sample"] for row in rows))
    there = [name for name in operators if any(row["method"].endswith(f": {name}") for row in rows)]
    table = np.full((len(pictures), len(pairs), len(there), len(columns)), np.nan)
    places = {name: place for place, name in enumerate(pictures)}
    for row in rows:
        pair, name = row["method"].split(": ", 1)
        if pair in pairs and name in there:
            values = [np.nan if row[column] is None else row[column] for column in columns]
            table[places[row["sample"]], pairs.index(pair), there.index(name)] = values
    return Found(
        network, tuple(pictures), tuple(pairs), tuple(there), tuple(columns), table, protocol.points, left_out, identity
    )


def icat_report(found: Sequence[Found], quick: bool = False) -> Report:
    """The tables of some networks."""
    above = [*EXPLAINED, PAPER]
    if quick:
        above.append("Made with --quick: fewer pictures than the paper's.")
    for one in found:
        above += [f"Left out on {one.network}: {name}: {reason}" for name, reason in one.left_out.items()]
    tables = [table for one in found for table in (*_tables(one), *(_pair(one, pair) for pair in one.pairs))]
    run = {
        "benchmark": "icat", "quick": quick, "versions": versions(),
        "networks": {one.network: {"pictures": len(one.pictures), **one.identity} for one in found},
    }  # fmt: skip
    title = "iERF, Figure 11: interlayer concept insertion and deletion"
    return Report(title, above, tables, [record for one in found for record in _records(one)], run)


def _tables(found: Found) -> list[Table]:
    count = len(found.pictures)
    parents = _nanmean(found.values("parents")[:, :1], 0)[0] if found.operators else np.nan
    dropped = {
        metric: float(np.nansum(found.table[:, :, :1, found.columns.index(f"dropped {metric}")])) for metric in METRICS
    }
    whole = float(np.nansum(found.table[:, :, :1, found.columns.index("targets")]))
    below = [
        f"{whole:.0f} children in {len(found.pairs)} pairs of layers, {parents:.0f} active parents on the average; "
        "left out, their value with all parents being less than what is divided by: "
        + ", ".join(f"{number:.0f} ({metric})" for metric, number in dropped.items()) + ".",
        *( [f"What lies between the layers' vectors and their reconstruction: {_mean(found, 'relative error'):.2f} of "
            f"their norm. Completeness gap of {REFERENCE}: {_mean(found, 'gap', REFERENCE):.2f} of S(end) - S(base)."]
           if REFERENCE in found.operators else []),
    ]  # fmt: skip
    heads = ["operator", *(f"{half} {metric} {'↑' if half == 'insertion' else '↓'}" for metric in METRICS
                           for half in ("insertion", "deletion"))]  # fmt: skip
    areas = [
        _cells(found, f"{half} {metric}", half == "insertion") for metric in METRICS
        for half in ("insertion", "deletion")
    ]  # fmt: skip
    tables = [Table(f"{found.network}, all pairs, {count} pictures", heads, _rows(found, areas), below)]
    if any(not np.isnan(found.values(column)).all() for column in AGREEMENTS):
        cells = [_cells(found, column, True) for column in AGREEMENTS]
        names = ["operator", *(f"{column} ↑" for column in AGREEMENTS)]
        tables.append(Table(f"{found.network}, agreement with the running model", names, _rows(found, cells)))
    return tables


def _pair(found: Found, pair: str) -> Table:
    """The paper's metric, and what edges attribute, of one pair of layers."""
    chosen = [(half, metric) for metric in ("max", "score") for half in ("insertion", "deletion")]
    heads = ["operator", *(f"{half} {metric}" for half, metric in chosen), "spearman"]
    cells = [_cells(found, f"{half} {metric}", half == "insertion", pair) for half, metric in chosen]
    return Table(f"{found.network}, {pair}", heads, _rows(found, [*cells, _cells(found, "spearman", True, pair)]))


def _rows(found: Found, columns: Sequence[Sequence[str]]) -> list[list[str]]:
    return [[name, *(column[place] for column in columns)] for place, name in enumerate(found.operators)]


def _cells(found: Found, column: str, higher: bool, pair: str | None = None) -> list[str]:
    """Mean ± error (wins), the best in bold; controls are never bold, nor what an agreement is measured with."""
    means, pairs = standing(found, column, higher, pair)
    aside = (*CONTROLS, MEASURED) if column in AGREEMENTS else CONTROLS
    ranked = [
        one.mean * (1 if higher else -1) if name not in aside else -np.inf
        for name, one in zip(found.operators, means, strict=True)
    ]
    best = int(np.nanargmax(ranked)) if np.isfinite(ranked).any() else -1
    cells = []
    for place, (name, one, pair_) in enumerate(zip(found.operators, means, pairs, strict=True)):
        if np.isnan(one.mean):
            cells.append(NONE)
            continue
        text = f"{one.mean:.3f} ± {one.error:.3f}" if not np.isnan(one.error) else f"{one.mean:.3f}"
        text = f"**{text}**" if place == best else text
        cells.append(text if name == REFERENCE or np.isnan(pair_.wins) else f"{text} ({pair_.wins:.2f})")
    return cells


def standing(found: Found, column: str, higher: bool, pair: str | None = None) -> tuple[list[Summary], list[Paired]]:
    """Each operator's statistics over pictures, and its differences from integrated gradients."""
    values = found.values(column, pair)
    known = REFERENCE in found.operators
    base = values[:, found.operators.index(REFERENCE)] if known else np.full(len(values), np.nan)
    return summaries(values), paired(values, base, higher)


def _records(found: Found) -> list[dict[str, Any]]:
    records = []
    columns = [
        *((f"{half} {metric}", half == "insertion") for metric in METRICS for half in ("insertion", "deletion")),
        *((column, True) for column in AGREEMENTS),
    ]
    for pair in (None, *found.pairs):
        for column, higher in columns:
            for name, one, other in zip(found.operators, *standing(found, column, higher, pair), strict=True):
                records.append(
                    {"source": "measured", "network": found.network, "pair": pair or "all", "metric": column,
                     "operator": name, **asdict(one), "baseline": REFERENCE, "difference": other.mean,
                     "difference_low": other.low, "difference_high": other.high, "wins": other.wins}
                )  # fmt: skip
    return records


def _mean(found: Found, column: str, operator: str | None = None) -> float:
    values = found.values(column)
    return float(np.nanmean(values if operator is None else values[:, found.operators.index(operator)]))


def _nanmean(values: np.ndarray, axis: int) -> np.ndarray:
    """The mean of what is defined; NaN where nothing is."""
    there = ~np.isnan(values)
    count = there.sum(axis)
    total = np.where(there, values, 0.0).sum(axis)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)
