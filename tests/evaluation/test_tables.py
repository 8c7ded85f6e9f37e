"""Tables, footnotes and figures of an evaluation that is written down by hand."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backlight.errors import InputError, UnknownNameError
from backlight.evaluation import Evaluation, Failure, Skipped
from backlight.evaluation.tables import formatter

NAN = float("nan")


def made(values: dict[str, dict[str, list[float]]], higher: dict[str, bool], blind: tuple[str, ...] = ()) -> Evaluation:
    """From `{metric: {method: scores}}`; the first method is the baseline."""
    methods = list(next(iter(values.values())))
    count = len(next(iter(values.values()))[methods[0]])
    rows: dict[str, Any] = {
        "sample": np.array([f"{place}.png" for place in range(count) for _ in methods], dtype=object),
        "method": np.array(methods * count, dtype=object),
    }
    for metric, scores in values.items():
        rows[metric] = np.array([scores[name][place] for place in range(count) for name in methods])
    rows |= {"seconds": np.full(count * len(methods), 0.25)}
    rows |= {"forwards": np.array([NAN if "?" in name else 20.0 for name in methods] * count)}
    rows |= {"backwards": np.array([1.5] * (count * len(methods)))}
    about = {m: {"higher_is_better": higher[m], "sees_sign": m not in blind} for m in values}
    identity = {"metrics": about, "settings": {"model": "net_1"}, "model": {"class": "N"}}
    return Evaluation({"identity": identity, "baseline": methods[0], "sessions": []}, rows)


@pytest.fixture
def small() -> Evaluation:
    return made(
        {
            "Error": {
                "soft": [0.1, 0.2, 0.3],
                "a|b": [0.2, 0.2, 0.2],
                "minus soft": [0.1, 0.2, 0.3],
                "control: edges": [0.4, 0.1, 0.7],
            },
            "Gain": {
                "soft": [1.0, 2.0, NAN],
                "a|b": [4.0, 1.0, 1.0],
                "minus soft": [-1.0, -2.0, NAN],
                "control: edges": [NAN, NAN, NAN],
            },
        },
        {"Error": False, "Gain": True},
        blind=("Error", "Gain"),
    )


def test_values_and_the_best(small: Evaluation) -> None:
    assert small.samples == ["0.png", "1.png", "2.png"]
    np.testing.assert_array_equal(small.values("Error")[3], [0.4, 0.1, 0.7])
    assert small.best("Error") == ["soft", "a|b"]
    assert small.best("Gain") == ["a|b"]
    assert small.table("Gain")["soft"].n == 2
    assert small.paired("Gain")["a|b"].mean == 1.0
    assert small.paired("Gain")["a|b"].wins == 0.5
    assert small.paired("Error")["a|b"].wins == 0.5
    assert small.paired("Error", baseline="a|b")["soft"].wins == 0.5
    assert small.cost("forwards")["soft"] == 20
    for call in (small.values, small.table, small.higher_is_better):
        with pytest.raises(UnknownNameError, match="close matches: Error"):
            call("Eror")
    with pytest.raises(UnknownNameError, match="baseline"):
        small.paired("Error", "softy")


def test_markdown(small: Evaluation) -> None:
    text = small.to_markdown()
    lines = text.splitlines()
    assert lines[0].startswith("net_1, 3 samples.")
    assert lines[2] == "| method | Error ↓¹ | Gain ↑² | forwards | backwards | seconds |"
    cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", lines[4])[1:-1]]
    assert cells[0] == "soft"
    assert re.fullmatch(r"\*\*0\.200 ± 0\.058 \[0\.\d{3}, 0\.\d{3}\]\*\*", cells[1])  # 0.1 / sqrt(3)
    assert re.fullmatch(r"1\.50 ± 0\.50 \[1\.00, 2\.00\]", cells[2])
    assert cells[3:] == ["20", "1.5", "0.25"]
    assert lines[5].startswith("| a\\|b | **0.200 ± 0.000 [0.200, 0.200]** | **2.00 ± 1.00 [")
    assert lines[7].startswith("| control: edges | 0.400 ± 0.173 [0.100, 0.700] | – | 20 |")
    assert (
        "| median | Error ↓ | Gain ↑ |\n| --- | ---: | ---: |\n| soft | 0.200 | 1.50 |\n| a\\|b | 0.200 | 1.00 |"
        in text
    )
    assert "¹ Error cannot tell a map from its negative." in text
    assert "² Gain is defined for 2 to 3 of 3 samples." in text
    assert "| difference from soft, wins | Error ↓ | Gain ↑ |" in text
    assert re.search(r"\| control: edges \| \+0\.2000? \[−0\.1\d+, \+0\.4\d+\], 33 % \| – \|", text)


def test_latex(small: Evaluation) -> None:
    text = small.to_latex()
    assert text.count("\\begin{tabular}{lrrrrr}") == 1
    assert text.count("\\toprule") == text.count("\\bottomrule") == 3
    assert "median & Error $\\downarrow$ & Gain $\\uparrow$ \\\\\n\\midrule\nsoft & 0.200 & 1.50 \\\\" in text
    assert "method & Error $\\downarrow$$^{1}$ & Gain $\\uparrow$$^{2}$ & forwards" in text
    assert "\\textbf{0.200 $\\pm$ 0.000 [0.200, 0.200]}" in text
    assert "33 \\% & -- \\\\" in text
    body = text[text.index("\\begin") :]
    assert not re.search(r"(?<!\\)[%#&_](?! )", body.replace(" & ", " "))
    rows = body[: body.index("\\bottomrule")].split("\\midrule")
    assert len(rows) == 3  # heads, methods, what explains nothing
    assert rows[2].strip().startswith("minus soft")


def test_csv_and_json_hold_every_statistic(small: Evaluation) -> None:
    lines = list(csv.DictReader(io.StringIO(small.to_csv())))
    assert len(lines) == 4 * 2
    one = next(line for line in lines if (line["method"], line["metric"]) == ("soft", "Error"))
    assert (one["n"], one["median"], one["higher_is_better"], one["control"]) == ("3", "0.2", "False", "False")
    assert float(one["error"]) == pytest.approx(0.1 / np.sqrt(3))
    empty = next(line for line in lines if (line["method"], line["metric"]) == ("control: edges", "Gain"))
    assert (empty["n"], empty["mean"], empty["wins"]) == ("0", "", "")
    record = json.loads(small.to_json())
    assert record["samples"] == 3
    assert record["table"][-1]["mean"] is None
    assert record["table"][0]["mean"] == pytest.approx(0.2)
    assert [note["metric"] for note in record["footnotes"]] == ["Error", "Gain"]


def scores(*methods: float, control: float, minus: float | None = None, spread: float = 0.0) -> dict[str, list[float]]:
    """The same score everywhere, but for one image of the control's, which moves its mean by `spread`."""
    found = {f"m{place}": [value] * 5 for place, value in enumerate(methods)}
    found |= {} if minus is None else {"minus m0": [minus] * 5}
    return found | {"control: edges": [control] * 4 + [control + 5 * spread]}


@pytest.mark.parametrize(
    ("higher", "given", "kinds", "said"),
    [
        (
            True,
            scores(1.0, 2.0, control=3.0),
            ("control",),
            "X ranks 'control: edges' (3) above every method (the best, m1: 2)",
        ),
        (
            False,
            scores(1.0, 2.0, control=0.5),
            ("control",),
            "In the median, 'control: edges' is better than every method",
        ),
        (True, scores(1.0, 2.0, control=1.5), ("control",), "In the median, 'control: edges' is better than m0."),
        (True, scores(1.0, 2.0, control=0.5), (), ""),
        (True, scores(1.0, 2.0, control=0.5, spread=2.0), ("control",), "above every method (the best, m1: 2)."),
        (True, scores(1.0, 2.0, control=0.5, minus=1.0), ("blind",), "X cannot tell a map from its negative."),
        (
            True,
            scores(1.0, 2.0, control=0.5, minus=1.5),
            ("negative",),
            "X ranks the negative of m0 above the map itself.",
        ),
        (False, scores(1.0, 2.0, control=2.5, minus=1.5), (), ""),
    ],
)
def test_footnotes(higher: bool, given: dict, kinds: tuple[str, ...], said: str) -> None:
    notes = made({"X": given}, {"X": higher}, ("X",) if "blind" in kinds else ()).footnotes
    assert [note.kinds for note in notes] == ([kinds] if kinds else [])
    assert said in (notes[0].text if notes else "")


def test_a_metric_that_declares_to_be_blind_is_so_where_no_negative_was_measured() -> None:
    (note,) = made({"X": scores(1.0, control=0.5)}, {"X": True}, blind=("X",)).footnotes
    assert note.text == "X cannot tell a map from its negative."


def test_a_metric_that_is_nowhere_defined() -> None:
    found = made({"X": {"m": [NAN, NAN], "control: edges": [NAN, NAN]}}, {"X": True})
    assert found.best("X") == []
    assert found.footnotes[0].text == "X is not defined for any sample."
    assert "| m | – | 20 |" in found.to_markdown()


def test_small_and_large_numbers_are_legible() -> None:
    values = {"tiny": 2.5e-7, "small": 0.0123, "large": 43210.0, "zero": 0.0}
    found = made({name: {"m": [value, value]} for name, value in values.items()}, dict.fromkeys(values, True))
    row = found.to_markdown().splitlines()[4]
    assert "| **2.50e−07 ± 0 [2.50e−07, 2.50e−07]** | **0.0123 ± 0 [0.0123, 0.0123]** | **43210 ± 0 [43210, " in row


def test_the_methods_decide_the_decimals() -> None:
    """A control of another size does not take the methods' digits, nor give them more."""
    for control in (4321.0, 4.3e-7):
        given = {"m": [0.125, 0.125], **{f"control: {name}": [control] * 2 for name in ("edges", "input", "random")}}
        found = made({"X": given}, {"X": True}).to_markdown()
        assert "**0.125 ± 0 [0.125, 0.125]**" in found
    assert formatter([("control: edges", 4321.0)])(4321.0) == "4321"
    assert formatter([("a", 0.5), ("control: edges", 4321.0)])(0.5) == "0.500"


def test_files(small: Evaluation, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    with pytest.raises(InputError, match="no folder"):
        small.write()
    small.folder = tmp_path
    small.failures, small.skipped = [Failure("0.png", "soft", "", 'a "why", so')], [Skipped("x.png", "torn")]
    paths = small.write()
    assert [str(path.relative_to(tmp_path)) for path in paths] == [
        "table.md",
        "table.csv",
        "table.tex",
        "table.json",
        "failures.csv",
        "figures/Error.png",
        "figures/Gain.png",
    ]
    assert list(csv.reader((tmp_path / "failures.csv").open()))[1] == ["0.png", "soft", "", 'a "why", so']
    assert (tmp_path / "table.md").read_text(encoding="utf-8") == small.to_markdown()
    assert "3 samples, 1 could not be read, 1 values failed" in small.to_markdown()
    assert small.write(kind="svg")[-1].read_text().startswith("<?xml")


def test_figures_have_the_best_on_top_and_controls_grey(small: Evaluation) -> None:
    pytest.importorskip("matplotlib")
    from backlight.evaluation.figures import CONTROL, METHOD, metric_figure

    (axes,) = metric_figure(small, "Error").axes
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names[-1] == "control: edges"
    assert axes.get_ylim()[0] > axes.get_ylim()[1]
    dots = {line.get_ydata()[0]: line for line in axes.lines if line.get_marker() == "o"}
    assert dots[3].get_color() == CONTROL
    assert dots[names.index("soft")].get_color() == METHOD
    assert float(np.ravel(dots[3].get_xdata())[0]) == pytest.approx(0.4)
    bars = [line for line in axes.lines if line.get_marker() != "o"]
    assert len(bars) == 4
    (axes,) = metric_figure(small, "Gain").axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a|b", "soft", "minus soft"]
