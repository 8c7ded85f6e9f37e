"""An evaluation that was made: its rows, their statistics, tables and figures."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from backlight.displayed import Displayed
from backlight.errors import InputError, UnknownNameError
from backlight.evaluation import tables
from backlight.evaluation.footnotes import Footnote, footnotes
from backlight.evaluation.journal import COST, Failure, read_rows, read_run, write_text
from backlight.evaluation.statistics import Paired, Summary, paired, summaries
from backlight.metrics.controls import is_control
from backlight.shapes import Float

SKIPPED, FAILURES = "skipped.csv", "failures.csv"
TABLES = {"table.md": "markdown", "table.csv": "csv", "table.tex": "latex", "table.json": "json"}
Values = Float[np.ndarray, "M N"]


@dataclass(frozen=True)
class Skipped:
    """A sample that could not be read."""

    sample: str
    reason: str


@dataclass(eq=False, repr=False)
class Evaluation(Displayed):
    """Rows by column, one for each sample and explanation, and what is derived from them.

    `rows`: sample, method, target, predicted, score (the target's output), data (a hash of what the sample was made
    of), a column for each metric, and what one explanation cost: seconds, forwards, backwards. `run`: what `run.json`
    says.
    """

    run: Mapping[str, Any]
    rows: Mapping[str, np.ndarray]
    failures: Sequence[Failure] = ()
    skipped: Sequence[Skipped] = ()
    folder: Path | None = None
    _cache: dict[Any, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Evaluation:
        """From a folder, also one whose run is not over.

        Raises:
            InputError: a folder without an evaluation, or a file that cannot be read.
            MissingExtraError: pyarrow is not installed.
        """
        folder = Path(folder)
        run = read_run(folder)
        if run is None:
            raise InputError(f"there is no evaluation in {str(folder)!r}: no run.json")
        table, failures = read_rows(folder)
        names = [] if table is None else table.column_names
        rows = {name: table.column(name).to_numpy() for name in names}
        return cls(run, rows, failures, _read_skipped(folder / SKIPPED), folder)

    @property
    def samples(self) -> list[str]:
        """The samples that have rows, in order."""
        return list(dict.fromkeys(self.rows.get("sample", ())))

    @property
    def methods(self) -> list[str]:
        """Explanations, then negatives, then controls."""
        return list(dict.fromkeys(self.rows.get("method", ())))

    @property
    def metrics(self) -> list[str]:
        """The metrics, in the order of the columns."""
        return list(self.run["identity"]["metrics"])

    @property
    def baseline(self) -> str:
        """What the methods are compared with, where nothing else is asked for."""
        return self.run["baseline"]

    def higher_is_better(self, metric: str) -> bool:
        """The direction of a metric."""
        return self.run["identity"]["metrics"][self._known(metric)]["higher_is_better"]

    def values(self, column: str) -> Values:
        """A column `[M, N]`, by explanation and sample."""
        if column not in COST:
            self._known(column)
        methods, samples = ({name: place for place, name in enumerate(names)} for names in (self.methods, self.samples))
        found = np.full((len(methods), len(samples)), np.nan)
        if self.rows:
            rows = [methods[name] for name in self.rows["method"]], [samples[name] for name in self.rows["sample"]]
            found[rows] = self.rows[column]
        return found

    def table(self, metric: str) -> dict[str, Summary]:
        """Each explanation's statistics of a metric; see `Summary`."""
        key = ("table", metric)
        if key not in self._cache:
            self._cache[key] = dict(zip(self.methods, summaries(self.values(metric).T), strict=True))
        return self._cache[key]

    def paired(self, metric: str, baseline: str | None = None) -> dict[str, Paired]:
        """Each explanation's differences from the baseline's; see `Paired`."""
        name = self.baseline if baseline is None else baseline
        if name not in self.methods:
            raise UnknownNameError("baseline", name, self.methods)
        key = ("paired", metric, name)
        if key not in self._cache:
            values = self.values(metric)
            own = values[self.methods.index(name)]
            found = paired(values.T, own, self.higher_is_better(metric))
            self._cache[key] = dict(zip(self.methods, found, strict=True))
        return self._cache[key]

    def cost(self, column: str) -> dict[str, float]:
        """Each explanation's mean "seconds", "forwards" or "backwards" a sample; NaN where nobody counts."""
        if column not in COST:
            raise UnknownNameError("cost", column, COST)
        return {name: _mean(values) for name, values in zip(self.methods, self.values(column), strict=True)}

    def best(self, metric: str) -> list[str]:
        """The methods with the best mean, controls and negatives left out; several where they tie."""
        means = {name: one.mean for name, one in self.table(metric).items() if not is_control(name)}
        known = [mean for mean in means.values() if not np.isnan(mean)]
        if not known:
            return []
        top = max(known) if self.higher_is_better(metric) else min(known)
        return [name for name, mean in means.items() if mean == top]

    @cached_property
    def footnotes(self) -> list[Footnote]:
        """What readers of the tables must know of the metrics."""
        return footnotes(self)

    def to_markdown(self) -> str:
        """Means with their intervals, footnotes, and differences from the baseline, as Markdown."""
        return tables.markdown(self)

    def to_latex(self) -> str:
        """The same two tables for the package booktabs."""
        return tables.latex(self)

    def to_csv(self) -> str:
        """A line for each explanation and metric with every statistic."""
        return tables.csv(self)

    def to_json(self) -> str:
        """The lines of `to_csv`, footnotes, failures, skipped samples, and `run.json`."""
        return tables.json(self)

    def write(self, figures: bool = True, kind: str = "png") -> list[Path]:
        """Write tables, lists and figures to the folder. Returns the paths.

        Raises:
            InputError: an evaluation without a folder.
            MissingExtraError: matplotlib is not installed (with `figures`).
        """
        if self.folder is None:
            raise InputError("this evaluation has no folder: it was not made by evaluate() or load()")
        texts = {name: getattr(self, f"to_{form}")() for name, form in TABLES.items()}
        texts[FAILURES] = tables.failures_csv(self.failures)
        for name, text in texts.items():
            write_text(self.folder / name, text)
        found = [self.folder / name for name in texts]
        if figures:
            from backlight.evaluation.figures import write_figures

            found += write_figures(self, self.folder / "figures", kind)
        return found

    def _known(self, metric: str) -> str:
        if metric not in self.metrics:
            raise UnknownNameError("metric", metric, self.metrics)
        return metric


def _mean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")


def _read_skipped(path: Path) -> list[Skipped]:
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [Skipped(row["sample"], row["reason"]) for row in csv.DictReader(file)]
