"""A benchmark's tables: one for each metric, our networks and the paper's side by side; Markdown, CSV, LaTeX, JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from backlight.benchmarks.protocols import Protocol
from backlight.benchmarks.published import Published, published
from backlight.benchmarks.study import Study
from backlight.evaluation.identity import versions
from backlight.evaluation.journal import write_text
from backlight.evaluation.tables import DOWN, UP, booktabs, breaks, csv_text, escaped, formatter
from backlight.metrics.correlation import spearman

NONE = "–"


@dataclass(frozen=True)
class Table:
    """A title, heads, rows of texts, and what is said below. `breaks`: rows before which a group begins."""

    title: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    below: Sequence[str] = ()
    breaks: Sequence[int] = ()


@dataclass(frozen=True)
class Report:
    """Tables with what stands above them, and all numbers as records. `overview`: as the paper has it, by network."""

    title: str
    above: Sequence[str]
    tables: Sequence[Table]
    records: Sequence[Mapping[str, Any]]
    run: Mapping[str, Any] = field(default_factory=dict)
    overview: Sequence[Table] = ()

    def markdown(self) -> str:
        """As Markdown."""
        parts = [f"# {self.title}", *self.above]
        for table in (*self.overview, *self.tables):
            lines = [list(table.heads), ["---", *["---:"] * (len(table.heads) - 1)], *map(list, table.rows)]
            grid = "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)
            parts += [f"## {table.title}", grid, *table.below]
        return "\n\n".join(parts) + "\n"

    def latex(self) -> str:
        """For the package booktabs."""
        parts = [f"% {self.title}; needs \\usepackage{{booktabs}}"]
        for table in (*self.overview, *self.tables):
            heads, *rows = ([_latex_cell(cell) for cell in row] for row in (table.heads, *table.rows))
            parts.append(f"% {table.title}\n{booktabs(heads, rows, table.breaks)}")
            parts += [f"{escaped(text)}\\\\" for text in table.below]
        return "\n\n".join(parts) + "\n"

    def csv(self) -> str:
        """A line a number, ours and the paper's."""
        columns = list(dict.fromkeys(key for record in self.records for key in record))
        return csv_text(columns, [[record.get(column) for column in columns] for record in self.records])

    def write(self, out: Path) -> list[Path]:
        """Write `table.md`, `table.csv`, `table.tex` and `run.json`. Returns the paths."""
        out.mkdir(parents=True, exist_ok=True)
        texts = {
            "table.md": self.markdown(),
            "table.csv": self.csv(),
            "table.tex": self.latex(),
            "run.json": json.dumps(self.run, indent=2, ensure_ascii=False) + "\n",
        }
        for name, text in texts.items():
            write_text(out / name, text)
        return [out / name for name in texts]


def report(protocol: Protocol, studies: Sequence[Study], quick: bool) -> Report:
    """The tables of a protocol on some networks."""
    above = [*_said(protocol, studies, quick), *protocol.notes]
    columns = [label for label in protocol.columns if any(label in study.evaluations for study in studies)]
    tables = [_table(protocol, studies, label) for label in columns]
    overview = [_overview(protocol, study, columns) for study in studies]
    records = _records(protocol, studies, columns)
    return Report(protocol.title, above, tables, records, _run(protocol, studies, quick), overview)


def joined(reports: Sequence[Report], title: str) -> Report:
    """Several reports as one."""
    tables = [
        Table(f"{one.run['benchmark']}: {table.title}", table.heads, table.rows, table.below, table.breaks)
        for one in reports
        for table in one.tables
    ]
    above = list(dict.fromkeys(text for one in reports for text in one.above))
    return Report(
        title, above, tables, [record for one in reports for record in one.records],
        {"benchmarks": [dict(one.run) for one in reports]}, [table for one in reports for table in one.overview],
    )  # fmt: skip


def _said(protocol: Protocol, studies: Sequence[Study], quick: bool) -> list[str]:
    beside = {
        "wins": f"in brackets, the share of samples where the method is better than {protocol.baseline}",
        "differences": f"then the difference from {protocol.baseline} with its 95 % bootstrap interval",
    }[protocol.show]
    said = [f"Ours: mean ± standard error over samples; {beside}. The paper's networks: the published mean."]
    if quick:
        said.append("Made with --quick: fewer draws, blocks and samples than the protocol's, as `run.json` says.")
    for study in studies:
        skipped = {one.sample for found in study.evaluations.values() for one in found.skipped}
        if skipped:
            said.append(f"{study.network}: {len(skipped)} pictures could not be read: {', '.join(sorted(skipped))}.")
    reasons: dict[str, dict[str, None]] = {}
    for study in studies:
        for label, reason in study.left_out.items():
            reasons.setdefault(f"on {study.network}: {reason}", {})[label] = None
    return said + [f"Left out {reason}: {', '.join(labels)}." for reason, labels in reasons.items()]


def _table(protocol: Protocol, studies: Sequence[Study], label: str) -> Table:
    there = [study for study in studies if label in study.evaluations]
    numbers = {
        network: {one.row: one for one in published(protocol.table) if one.column == label and one.network == network}
        for network in dict.fromkeys(one.network for one in published(protocol.table) if one.column == label)
    }
    names = _ordered(protocol, (name for study in there for name in study.evaluations[label].methods))
    found = [study.evaluations[label].table(label) for study in there]
    shown = formatter((name, one.mean) for table in found for name, one in table.items())
    rows = [
        [
            name,
            *(_ours(protocol, study, label, name, shown) for study in there),
            *(_theirs(protocol, found, name) for found in numbers.values()),
        ]
        for name in names
    ]
    heads = [
        "method",
        *(f"{study.network} (n = {len(study.evaluations[label].samples)})" for study in there),
        *(f"{network} ({next(iter(found.values())).source})" for network, found in numbers.items()),
    ]
    arrow = UP if there[0].evaluations[label].higher_is_better(label) else DOWN
    below = [line for study in there for line in _below(protocol, study, label, numbers)]
    return Table(f"{label} {arrow}", heads, rows, below, breaks(names))


def _overview(protocol: Protocol, study: Study, columns: Sequence[str]) -> Table:
    """Methods by metrics on one network: means, the best of the methods in bold."""
    there = [label for label in columns if label in study.evaluations]
    names = _ordered(protocol, (name for label in there for name in study.evaluations[label].methods))
    cells: dict[str, list[str]] = {name: [] for name in names}
    heads = []
    for label in there:
        evaluation = study.evaluations[label]
        means = {name: one.mean for name, one in evaluation.table(label).items()}
        shown = formatter(means.items())
        for name in names:
            text = NONE if math.isnan(means.get(name, math.nan)) else shown(means[name])
            cells[name].append(f"**{text}**" if name in evaluation.best(label) else text)
        heads.append(f"{label} {UP if evaluation.higher_is_better(label) else DOWN}")
    counts = sorted({len(study.evaluations[label].samples) for label in there}, reverse=True)
    title = f"{study.network}, means of {' and '.join(map(str, counts))} samples"
    return Table(title, ["method", *heads], [[name, *cells[name]] for name in names], (), breaks(names))


def _ordered(protocol: Protocol, names: Iterable[str]) -> list[str]:
    """The protocol's rows in its order, then the controls."""
    order = {name: place for place, name in enumerate(protocol.rows)}
    return sorted(dict.fromkeys(names), key=lambda name: order.get(name, len(order)))


def _ours(protocol: Protocol, study: Study, label: str, name: str, shown: Any) -> str:
    found = study.evaluations[label]
    if name not in found.methods or math.isnan(found.table(label)[name].mean):
        return NONE
    one, pair = found.table(label)[name], found.paired(label)[name]
    text = shown(one.mean) + (f" ± {shown(one.error)}" if not math.isnan(one.error) else "")
    if name == protocol.baseline or math.isnan(pair.wins):
        return text
    if protocol.show == "wins":
        return f"{text} ({pair.wins:.2f})"
    interval = "" if math.isnan(pair.low) else f" [{shown(pair.low)}, {shown(pair.high)}]"
    return f"{text}, {'+' * (pair.mean >= 0)}{shown(pair.mean)}{interval}"


def _theirs(protocol: Protocol, numbers: Mapping[str, Published], name: str) -> str:
    row = protocol.rows.get(name)
    found = numbers.get(row.published) if row is not None and row.published is not None else None
    return NONE if found is None else f"{found.mean:g}".replace("-", "−")


def _below(protocol: Protocol, study: Study, label: str, numbers: Mapping[str, Mapping[str, Published]]) -> list[str]:
    """How the order of the methods agrees with the published ones; and the metric's footnote."""
    evaluation = study.evaluations[label]
    means = {name: one.mean for name, one in evaluation.table(label).items() if not math.isnan(one.mean)}
    agreements = []
    for network, found in numbers.items():
        if protocol.own and not network.endswith(f" {study.network}"):
            continue
        pairs = [
            (means[name], found[row.published].mean)
            for name, row in protocol.rows.items()
            if name in means and row.published is not None and row.published in found
        ]
        if len(pairs) > 2:
            ours, theirs = torch.tensor(pairs, dtype=torch.float64).T
            agreements.append(f"{float(spearman(ours, theirs)):.2f} with {network} ({len(pairs)} methods)")
    said = [f"{study.network}, rank correlation with the published means: {'; '.join(agreements)}."]
    said = said if agreements else []
    return said + [f"{study.network}: {note.text}" for note in evaluation.footnotes if note.metric == label]


def _records(protocol: Protocol, studies: Sequence[Study], columns: Sequence[str]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for study in studies:
        for label in columns:
            if label not in study.evaluations:
                continue
            evaluation = study.evaluations[label]
            pairs = evaluation.paired(label)
            for name, one in evaluation.table(label).items():
                pair = pairs[name]
                found.append(
                    {"source": "measured", "network": study.network, "metric": label, "method": name, **asdict(one),
                     "baseline": protocol.baseline, "difference": pair.mean, "difference_low": pair.low,
                     "difference_high": pair.high, "wins": pair.wins}
                )  # fmt: skip
    found += [
        {"source": one.source, "network": one.network, "metric": one.column, "method": one.row, "n": one.count,
         "mean": one.mean, "deviation": one.std}
        for one in published(protocol.table)
        if one.column in columns
    ]  # fmt: skip
    return found


def _run(protocol: Protocol, studies: Sequence[Study], quick: bool) -> dict[str, Any]:
    stages = {
        study.network: {
            evaluation.folder.name if evaluation.folder else label: {
                "samples": len(evaluation.samples), **evaluation.run["identity"],
                "contents": evaluation.run.get("contents"), "sessions": evaluation.run["sessions"],
            }
            for label, evaluation in study.evaluations.items()
        }
        for study in studies
    }  # fmt: skip
    return {
        "benchmark": protocol.name,
        "quick": quick,
        "versions": versions(),
        "left_out": {study.network: dict(study.left_out) for study in studies},
        "networks": stages,
    }


def _latex_cell(cell: str) -> str:
    text = escaped(cell.strip("*"))
    return rf"\textbf{{{text}}}" if cell.startswith("**") else text
