"""Reports on evaluations: the page's numbers are the tables', and benchmarks' tables are read as they are."""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("matplotlib")
pytest.importorskip("pyarrow")

from report_networks import HOSTILE, small_network

import backlight
from backlight.errors import InputError, UnknownNameError
from backlight.evaluation import TensorSamples
from backlight.evaluation.tables import differences, means
from backlight.metrics import Infidelity, RandomLogit
from backlight.viz import evaluation_report
from backlight.viz.report_evaluation import markdown


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    front = small_network().pixels()
    samples = TensorSamples(torch.rand(3, 3, 32, 32) * 2 - 1)
    methods = {"Saliency": backlight.Saliency(front), HOSTILE: backlight.InputXGradient(front)}
    metrics = {"Infidelity": Infidelity(repeats=1), "R": RandomLogit()}
    out = tmp_path_factory.mktemp("study") / "small" / "stage"
    backlight.evaluate(front, samples, methods, metrics, out=out)
    return out


def text(page: str) -> str:
    return re.sub(r"<[^>]+>", "\n", page)


def test_every_number_of_the_tables_is_on_the_page(folder: Path) -> None:
    evaluation = backlight.Evaluation.load(folder)
    page = evaluation_report(folder).html
    shown = text(page)
    for grid in (means(evaluation), differences(evaluation)):
        for row in grid.rows:
            for cell in row[1:]:
                assert cell.text in shown, cell
    for note in evaluation.footnotes:
        assert html.escape(note.text) in page
    assert "<img src=x" not in page
    assert evaluation.run["identity"]["model"]["parameters"] in page
    assert evaluation_report(evaluation).html.count("<table") == page.count("<table")


def test_a_benchmarks_folder_has_its_tables_and_evaluations(folder: Path, tmp_path: Path) -> None:
    top = folder.parents[1]
    rows = "| m | <i> |\n|---|---:|\n| a | **1.5** |"
    (top / "table.md").write_text(f"# Title\n\n## Scores\n\n{rows}\n\nsee `run.json`\n")
    found = evaluation_report(top, figures=tmp_path, kinds=["pdf"])
    assert "<h3>Title</h3>" in found.html
    assert "<td><b>1.5</b></td>" in found.html
    assert "&lt;i&gt;" in found.html
    assert "<code>run.json</code>" in found.html
    assert len(found.figures) == 2
    data = found.figures[0].read_bytes()
    assert b"/Type3" not in data  # letters are letters
    (folder / "run.json").rename(folder / "away")
    try:
        assert "<b>1.5</b>" in evaluation_report(top).html  # tables alone
    finally:
        (folder / "away").rename(folder / "run.json")


def test_what_is_no_evaluation_is_said(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no evaluation"):
        evaluation_report(tmp_path)
    with pytest.raises(InputError, match="no folder"):
        evaluation_report(tmp_path / "missing")
    with pytest.raises(UnknownNameError, match="column"):
        evaluation_report(folder, style="colum")


def test_tables_of_text_are_tables() -> None:
    drawn: Any = markdown("| a | b |\n|---|---|\n| 1 | 2 |\n| 3 | 4 |")
    assert drawn.count("<tr>") == 3
