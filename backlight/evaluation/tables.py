"""Tables of an evaluation: Markdown, LaTeX, CSV and JSON."""

from __future__ import annotations

import csv as csv_module
import io
import json as json_module
import math
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from backlight.evaluation.journal import Failure
from backlight.metrics.controls import is_control

if TYPE_CHECKING:
    from backlight.evaluation.evaluation import Evaluation

UP, DOWN, NONE = "↑", "↓", "–"
COSTS = ("forwards", "backwards", "seconds")
_SUPERSCRIPT = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")
_LATEX = {"\\": r"\textbackslash{}", "↑": r"$\uparrow$", "↓": r"$\downarrow$", "–": "--", "−": "$-$"}
_LATEX["±"] = r"$\pm$"
_LATEX |= {sign: "\\" + sign for sign in "&%$#_{}"} | {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}


@dataclass(frozen=True)
class Cell:
    """A text of a table. `best`: the best of its column. `note`: the number of a footnote, 0 for none."""

    text: str
    best: bool = False
    note: int = 0


@dataclass(frozen=True)
class Grid:
    """Heads and rows of cells. `breaks`: the rows before which a group of explanations begins."""

    heads: list[Cell]
    rows: list[list[Cell]]
    breaks: tuple[int, ...] = ()


def means(evaluation: Evaluation, interval: bool = True) -> Grid:
    """A row for each explanation: means, with their standard errors and 95 % intervals, and costs a sample."""
    notes = {note.metric: place for place, note in enumerate(evaluation.footnotes, 1)}
    heads = [Cell("method"), *(Cell(head(evaluation, one), note=notes.get(one, 0)) for one in evaluation.metrics)]
    rows = [[Cell(name)] for name in evaluation.methods]
    for metric in evaluation.metrics:
        table, best = evaluation.table(metric), evaluation.best(metric)
        shown = formatter((name, one.mean) for name, one in table.items())
        for row, (name, one) in zip(rows, table.items(), strict=True):
            known = interval and not math.isnan(one.low)
            bounds = f" ± {shown(one.error)} [{shown(one.low)}, {shown(one.high)}]" if known else ""
            row.append(Cell(shown(one.mean) + bounds, name in best))
    for column in COSTS:
        heads.append(Cell(column))
        for row, value in zip(rows, evaluation.cost(column).values(), strict=True):
            row.append(Cell(plain_number(value)))
    return Grid(heads, rows, breaks(evaluation.methods))


def medians(evaluation: Evaluation) -> Grid:
    """A row for each explanation: medians."""
    heads = [Cell("median"), *(Cell(head(evaluation, one)) for one in evaluation.metrics)]
    rows = [[Cell(name)] for name in evaluation.methods]
    for metric in evaluation.metrics:
        table = evaluation.table(metric)
        shown = formatter((name, one.median) for name, one in table.items())
        for row, one in zip(rows, table.values(), strict=True):
            row.append(Cell(shown(one.median)))
    return Grid(heads, rows, breaks(evaluation.methods))


def differences(evaluation: Evaluation, baseline: str | None = None) -> Grid:
    """A row for each explanation but the baseline: differences with their intervals, and win rates."""
    name = baseline or evaluation.baseline
    others = [one for one in evaluation.methods if one != name]
    heads = [Cell(f"difference from {name}, wins"), *(Cell(head(evaluation, one)) for one in evaluation.metrics)]
    rows = [[Cell(one)] for one in others]
    for metric in evaluation.metrics:
        found = evaluation.paired(metric, name)
        shown = formatter(((one, found[one].mean) for one in others), sign=True)
        for row, other in zip(rows, others, strict=True):
            one = found[other]
            interval = "" if math.isnan(one.low) else f" [{shown(one.low)}, {shown(one.high)}]"
            wins = "" if math.isnan(one.wins) else f", {100 * one.wins:.0f} %"
            row.append(Cell(shown(one.mean) + interval + wins))
    return Grid(heads, rows, breaks(others))


def head(evaluation: Evaluation, metric: str) -> str:
    """A metric with the sign of its direction."""
    return f"{metric} {UP if evaluation.higher_is_better(metric) else DOWN}"


def title(evaluation: Evaluation) -> str:
    """What was evaluated, in a line."""
    settings = evaluation.run["identity"].get("settings", {})
    model = settings.get("model") or evaluation.run["identity"]["model"]["class"]
    count = len(evaluation.samples)
    failed = f", {len(evaluation.failures)} values failed" if evaluation.failures else ""
    skipped = f", {len(evaluation.skipped)} could not be read" if evaluation.skipped else ""
    return f"{model}, {count} {'sample' if count == 1 else 'samples'}{skipped}{failed}"


def markdown(evaluation: Evaluation) -> str:
    """Means with the footnotes, medians, and differences from the baseline."""
    said = "Means ± standard errors with 95 % bootstrap intervals over samples; costs are of one explanation."
    parts = [f"{title(evaluation)}. {said}", _markdown_grid(means(evaluation))]
    parts += [f"{_raised(place)} {note.text}" for place, note in enumerate(evaluation.footnotes, 1)]
    parts.append(_markdown_grid(medians(evaluation)))
    if len(evaluation.methods) > 1:
        parts.append(
            f"Differences from {evaluation.baseline} at the same samples, with 95 % bootstrap intervals, and the share "
            "of samples where the method is the better one (ties count half)."
        )
        parts.append(_markdown_grid(differences(evaluation)))
    return "\n\n".join(parts) + "\n"


def latex(evaluation: Evaluation) -> str:
    """The same tables for the package booktabs."""
    notes = [f"$^{{{place}}}$ {escaped(note.text)}" for place, note in enumerate(evaluation.footnotes, 1)]
    parts = [f"% {' '.join(title(evaluation).split())}; needs \\usepackage{{booktabs}}", _latex_grid(means(evaluation))]
    parts += [" \\\\\n".join(notes)] if notes else []
    parts.append(_latex_grid(medians(evaluation)))
    if len(evaluation.methods) > 1:
        parts.append(_latex_grid(differences(evaluation)))
    return "\n\n".join(parts) + "\n"


def records(evaluation: Evaluation) -> list[dict[str, Any]]:
    """For each explanation and metric, every statistic."""
    found = []
    costs = {column: evaluation.cost(column) for column in COSTS}
    for name in evaluation.methods:
        for metric in evaluation.metrics:
            pair = evaluation.paired(metric)[name]
            found.append(
                {
                    "method": name,
                    "control": is_control(name),
                    "metric": metric,
                    "higher_is_better": evaluation.higher_is_better(metric),
                    **asdict(evaluation.table(metric)[name]),
                    "baseline": evaluation.baseline,
                    **{f"difference_{key}": value for key, value in asdict(pair).items() if key != "wins"},
                    "wins": pair.wins,
                    **{column: costs[column][name] for column in COSTS},
                }
            )
    return found


def csv(evaluation: Evaluation) -> str:
    """`records` with a line each; what is not defined is empty."""
    lines = records(evaluation)
    return csv_text(list(lines[0]) if lines else [], [line.values() for line in lines])


def failures_csv(failures: Iterable[Failure]) -> str:
    """What failed, with a line each."""
    columns = ["sample", "method", "metric", "reason"]
    return csv_text(columns, [[getattr(one, column) for column in columns] for one in failures])


def as_record(evaluation: Evaluation) -> dict[str, Any]:
    """All of it as JSON can hold it; what is not defined is null."""
    lines = [{key: _null(value) for key, value in line.items()} for line in records(evaluation)]
    return {
        "samples": len(evaluation.samples),
        "baseline": evaluation.baseline if evaluation.rows else None,
        "table": lines,
        "footnotes": [asdict(note) for note in evaluation.footnotes],
        "failures": [asdict(one) for one in evaluation.failures],
        "skipped": [asdict(one) for one in evaluation.skipped],
        "run": dict(evaluation.run),
    }


def json(evaluation: Evaluation) -> str:
    """`as_record` as text."""
    return json_module.dumps(as_record(evaluation), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def formatter(values: Iterable[tuple[str, float]], sign: bool = False) -> Callable[[float], str]:
    """One number of decimals for a column, from the size of its typical entry: about three digits of it.

    `values`: by name. Those of controls, which may be of another size, count where there are no others.
    """
    known = [(name, abs(value)) for name, value in values if math.isfinite(value) and value]
    rounding = 1e-12 * max((size for _, size in known), default=0.0)
    known = [(name, size) for name, size in known if size > rounding]
    sizes = [size for name, size in known if not is_control(name)] or [size for _, size in known]
    typical = float(np.median(sizes)) if sizes else 1.0
    decimals = 2 - math.floor(math.log10(typical))
    form = f"{'+' if sign else ''}.{min(max(decimals, 0), 5)}f" if -3 < decimals < 6 else f"{'+' if sign else ''}.2e"

    def shown(value: float) -> str:
        if math.isnan(value):
            return NONE
        text = "0" if value == 0 else format(value, form)
        return (text if float(text) else text.lstrip("+-")).replace("-", "−")

    return shown


def plain_number(value: float) -> str:
    """A cost: whole where it is."""
    if math.isnan(value):
        return NONE
    return str(int(value)) if value == int(value) else f"{value:.3g}"


def escaped(text: str) -> str:
    """Text for LaTeX."""
    return "".join(_LATEX.get(letter, letter) for letter in text)


def breaks(names: Sequence[str]) -> tuple[int, ...]:
    """The places where controls begin or end."""
    return tuple(row for row in range(1, len(names)) if is_control(names[row]) != is_control(names[row - 1]))


def _raised(number: int) -> str:
    return str(number).translate(_SUPERSCRIPT)


def _markdown_grid(grid: Grid) -> str:
    def text(cell: Cell) -> str:
        shown = cell.text.replace("|", "\\|")
        shown = f"**{shown}**" if cell.best else shown
        return shown + (_raised(cell.note) if cell.note else "")

    lines = [[text(cell) for cell in row] for row in (grid.heads, *grid.rows)]
    lines.insert(1, ["---", *["---:"] * (len(grid.heads) - 1)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _latex_grid(grid: Grid) -> str:
    def text(cell: Cell) -> str:
        shown = escaped(cell.text)
        shown = f"\\textbf{{{shown}}}" if cell.best else shown
        return shown + (f"$^{{{cell.note}}}$" if cell.note else "")

    return booktabs(list(map(text, grid.heads)), [list(map(text, row)) for row in grid.rows], grid.breaks)


def booktabs(heads: Sequence[str], rows: Iterable[Sequence[str]], breaks: Collection[int] = ()) -> str:
    """A table of LaTeX for the package booktabs, of texts that are LaTeX already."""
    lines = [f"\\begin{{tabular}}{{l{'r' * (len(heads) - 1)}}}", "\\toprule"]
    lines += [" & ".join(heads) + " \\\\", "\\midrule"]
    for place, row in enumerate(rows):
        lines += ["\\midrule"] if place in breaks else []
        lines.append(" & ".join(row) + " \\\\")
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}"])


def csv_text(columns: Sequence[str], lines: Iterable[Iterable[Any]]) -> str:
    """A head and lines; what is None or not a number is empty."""
    text = io.StringIO()
    writer = csv_module.writer(text, lineterminator="\n")
    writer.writerows([columns, *([_blank(value) for value in line] for line in lines)])
    return text.getvalue()


def _blank(value: Any) -> Any:
    return "" if value is None or (isinstance(value, float) and math.isnan(value)) else value


def _null(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
