"""The examples that are notebooks: they convert, their code compiles, and one of them runs as a notebook."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

EXAMPLES = sorted(
    path
    for path in (Path(__file__).resolve().parents[1] / "examples").glob("*.py")
    if "format_name: percent" in path.read_text(encoding="utf-8")
)
QUICKEST = "language_model.py"


def notebook(path: Path) -> Any:
    jupytext = pytest.importorskip("jupytext")
    return jupytext.read(path)


def test_there_is_one_for_each_question() -> None:
    assert len(EXAMPLES) == 7
    assert QUICKEST in [path.name for path in EXAMPLES]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_they_convert_and_compile(path: Path) -> None:
    cells = notebook(path).cells
    assert cells[0].cell_type == "markdown"
    assert cells[0].source.startswith("# ")
    code = [cell.source for cell in cells if cell.cell_type == "code"]
    assert len(code) >= 3
    for number, source in enumerate(code):
        compile(source, f"{path.name}, cell {number}", "exec")


def test_the_quickest_runs_as_a_notebook_and_shows_its_results() -> None:
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    pytest.importorskip("transformers")
    path = next(one for one in EXAMPLES if one.name == QUICKEST)
    found = notebook(path)
    nbclient.NotebookClient(found, timeout=300, kernel_name="python3").execute()
    outputs = [output for cell in found.cells if cell.cell_type == "code" for output in cell.outputs]
    assert not [one for one in outputs if one.output_type == "error"]
    (shown,) = [one["data"]["text/html"] for one in outputs if "text/html" in one.get("data", {})]
    assert "ExplainedText" in shown
    assert shown.count("<span") == 6  # a token each
