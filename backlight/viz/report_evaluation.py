"""A report on an evaluation, or on a benchmark's folder of them: metrics, differences, controls, footnotes."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from backlight.errors import BacklightError, InputError
from backlight.evaluation import Evaluation
from backlight.evaluation.figures import metric_figure
from backlight.evaluation.tables import Cell, Grid, differences, means, medians, title
from backlight.metrics.controls import is_control
from backlight.viz import styles
from backlight.viz.report_markup import Markup, escape, figure_picture, join, table, tag
from backlight.viz.report_page import Report, Section, failures, page, settings_section

RUN, TABLES = "run.json", "table.md"
ACROSS = 4  # metrics beside each other
SAID = "Means ± standard errors with 95 % bootstrap intervals over samples; the best method of a column is bold."
PAIRED = "with 95 % bootstrap intervals, and the share of samples where the method is the better one (ties count half)."


def evaluation_report(
    found: Evaluation | str | os.PathLike[str],
    *,
    figures: str | os.PathLike[str] | None = None,
    kinds: Sequence[str] = ("png", "svg"),
    style: str = "column",
    title: str = "",
) -> Report:
    """An evaluation on one page; or a folder that `backlight evaluate` or `benchmark` wrote, with all of those in it.

    Args:
        figures: a folder for the figures of metrics, in `kinds` and a `style` of `backlight.viz.styles`.

    Raises:
        InputError: a folder without an evaluation or tables.
        MissingExtraError: pyarrow or matplotlib is not installed.
    """
    styles.style(style)
    known, failed, tables = _found(found)
    folder = None if figures is None else Path(figures)
    sections = [] if tables is None else [Section("Tables", tables)]
    written: list[Path] = []
    settings: dict[str, Any] = {}
    for name, one in known.items():
        own = folder if folder is None or len(known) == 1 else folder / _slug(name)
        sections.append(Section(name, evaluation_body(one), new_page=len(known) > 1))
        written += [] if own is None else paper_figures(one, own, kinds, style)
        settings |= {name: _settings(one)} if len(known) > 1 else _settings(one)
    heading = title or (next(iter(known)) if len(known) == 1 else f"Evaluations in {Path(str(found)).name}")
    lead = join([tag("p", SAID), failures(failed)])
    return Report(heading, page(heading, lead, [*sections, settings_section(settings)]), failed, tuple(written))


def _found(
    given: Evaluation | str | os.PathLike[str],
) -> tuple[dict[str, Evaluation], dict[str, str], Markup | None]:
    """The evaluations by what they are of, what could not be read, and a benchmark's own tables."""
    if isinstance(given, Evaluation):
        return {title(given): given}, {}, None
    place = Path(given)
    if not place.is_dir():
        raise InputError(f"there is no folder {str(place)!r}: give what `backlight evaluate` or `benchmark` wrote")
    inside = sorted(path.parent for path in place.rglob(RUN) if _is_evaluation(path))
    folders = [place] if place in inside else inside
    known: dict[str, Evaluation] = {}
    failed: dict[str, str] = {}
    for folder in folders:
        try:
            one = Evaluation.load(folder)
            known[title(one) if len(folders) == 1 else f"{folder.relative_to(place)}: {title(one)}"] = one
        except (BacklightError, KeyError) as error:
            failed[str(folder)] = " ".join(str(error).split())
    own = place / TABLES
    tables = markdown(own.read_text(encoding="utf-8")) if own.is_file() and folders != [place] else None
    if not known and tables is None:
        raise InputError(f"there is no evaluation in {str(place)!r}, and no {TABLES}")
    return known, failed, tables


def _is_evaluation(run: Path) -> bool:
    try:
        held = json.loads(run.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    identity = held.get("identity") if isinstance(held, dict) else None
    return isinstance(identity, dict) and "metrics" in identity


def evaluation_body(evaluation: Evaluation) -> Markup:
    """Tables and figures of an evaluation."""
    notes = [tag("li", tag("sup", place), " ", note.text) for place, note in enumerate(evaluation.footnotes, 1)]
    controls = [name for name in evaluation.methods if is_control(name)]
    below = f"Below the line stand maps that explain nothing: {', '.join(controls)}." if controls else ""
    parts = [
        tag("p", title(evaluation) + "."),
        grid_table(means(evaluation)),
        tag("ul", *notes, class_="notes") if notes else "",
        tag("p", below, class_="muted") if below else "",
        tag("div", *_pictures(evaluation), class_="grid wide"),
    ]
    if len(evaluation.methods) > 1:
        said = f"Differences from {evaluation.baseline} at the same samples, {PAIRED}"
        parts += [tag("h3", f"Differences from {evaluation.baseline}"), tag("p", said, class_="muted")]
        parts.append(grid_table(differences(evaluation)))
    parts += [tag("h3", "Medians"), grid_table(medians(evaluation))]
    lost = {f"{one.sample}, {one.method}, {one.metric}": one.reason for one in evaluation.failures}
    lost |= {one.sample: one.reason for one in evaluation.skipped}
    return join([*parts, failures(lost)])


def _pictures(evaluation: Evaluation) -> list[Markup]:
    there = [one for one in evaluation.metrics if any(s.n for s in evaluation.table(one).values())]
    return [
        tag("figure", figure_picture(metric_figure(evaluation, one), f"{one}: means and intervals of all explanations"))
        for one in there
    ]


def grid_table(grid: Grid) -> Markup:
    """A table of an evaluation, in pieces of some columns, which fit on a page; the rows' names stand in each."""
    heads, rows = [_cell(one) for one in grid.heads], [[_cell(one) for one in row] for row in grid.rows]
    pieces = []
    for start in range(1, len(heads), ACROSS):
        own = [0, *range(start, min(start + ACROSS, len(heads)))]
        body = [[row[place] for place in own] for row in rows]
        drawn = table([heads[place] for place in own], body, groups=grid.breaks, class_="numbers")
        pieces.append(tag("div", drawn, class_="scroll", tabindex="0"))
    return join(pieces)


def _cell(cell: Cell) -> Markup:
    text = tag("b", cell.text) if cell.best else escape(cell.text)
    return join([text, tag("sup", cell.note)], "") if cell.note else text


def paper_figures(evaluation: Evaluation, folder: Path, kinds: Sequence[str], style: str) -> list[Path]:
    """A figure for each metric, at a style's width. Returns the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    found: list[Path] = []
    for metric in evaluation.metrics:
        if any(one.n for one in evaluation.table(metric).values()):
            found += styles.save(metric_figure(evaluation, metric), folder / _slug(metric), style, kinds)
    return found


def _settings(evaluation: Evaluation) -> dict[str, Any]:
    """Of `run.json` what decides the numbers, and who ran it."""
    run = evaluation.run
    sessions = run.get("sessions") or []
    last = sessions[-1] if sessions else {}
    return {**run["identity"], "baseline": run.get("baseline"), "sessions": len(sessions), "last session": last}


def markdown(text: str) -> Markup:
    """Headings, paragraphs and tables of a benchmark's `table.md`; everything else is text."""
    parts: list[Markup] = []
    for block in re.split(r"\n\s*\n", text.strip()):
        lines = block.strip().splitlines()
        if lines[0].startswith("|") and len(lines) > 2:
            rows = [[_bold(cell.strip()) for cell in line.strip().strip("|").split("|")] for line in lines]
            drawn = table(rows[0], rows[2:], class_="numbers")
            parts.append(tag("div", drawn, class_="scroll", tabindex="0"))
        elif lines[0].startswith("#"):
            parts.append(tag("h3", lines[0].lstrip("# ")))
        else:
            parts.append(tag("p", _bold(" ".join(lines))))
    return join(parts)


def _bold(text: str) -> Markup:
    bold = re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", escape(text))
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", bold))


def _slug(name: str) -> str:
    return re.sub(r"[^\w.+-]+", "-", name).strip("-.")[:100] or "metric"
