"""The benchmarks that are tables of evaluations, from pictures to files, on a small network."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import SIZE, Tiny, photographs, subject

from backlight.benchmarks import subjects, tables
from backlight.benchmarks.protocols import LOCAL_COLUMNS, MOSAICS, OBJECTS, PICTURES, PULLBACKS, REFINEMENT, Protocol
from backlight.benchmarks.report import report
from backlight.benchmarks.study import Options, grouped, study
from backlight.benchmarks.subjects import Subject, pictures, stage
from backlight.errors import InputError, SiteError, UnknownNameError

pytest.importorskip("pyarrow")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return photographs(tmp_path_factory.mktemp("data") / "pictures", 6)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    folder = tmp_path_factory.mktemp("out")
    tables.pullbacks([subject()], Options(folder, data=data, quick=True, limit=2))
    return folder


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def only_infidelity(*names: str) -> Protocol:
    """Some rows, and the first column."""
    rows = {name: PULLBACKS.rows[name] for name in names}
    return replace(PULLBACKS, rows=rows, columns={"Infidelity": PULLBACKS.columns["Infidelity"]})


def test_pullbacks_writes_tables_with_the_published_numbers_beside(out: Path) -> None:
    text = (out / "table.md").read_text(encoding="utf-8")
    assert "ResNet50 (Semantic Pullbacks, Table 5)" in text
    assert "--quick" in text
    quick = [column for column in PULLBACKS.columns.values() if column.quick is not None]
    assert text.count("\n## ") - 1 == len(quick) >= 8  # six metrics, and those that see the sign; an overview
    overview, first = text.split("\n## ")[1:3]
    assert overview.startswith("tiny0, means of 2 samples\n\n| method | Infidelity ↓ | FaithfulnessCorrelation ↑ |")
    assert "**" in overview
    line = next(line for line in first.splitlines() if line.startswith("| SoftPullback |"))
    assert line.endswith("| 5.989 | 16.303 | 6.264 |")
    assert "| SoftPullback (relative) |" in text
    assert "| control: input |" in text
    assert "cannot tell a map from its negative" in text
    assert "\\toprule" in (out / "table.tex").read_text(encoding="utf-8")


def test_the_csv_holds_ours_and_theirs(out: Path) -> None:
    found = rows(out / "table.csv")
    (theirs,) = [
        one for one in found
        if (one["network"], one["method"], one["metric"]) == ("VGG11-BN", "Gradient", "Infidelity")
    ]  # fmt: skip
    assert (theirs["source"], theirs["mean"], theirs["deviation"], theirs["n"]) == (
        "Semantic Pullbacks, Table 6", "100.09", "107.94", "1000",
    )  # fmt: skip
    (ours,) = [
        one for one in found
        if (one["network"], one["method"], one["metric"]) == ("tiny0", "Gradient", "Infidelity")
    ]  # fmt: skip
    assert (ours["source"], ours["n"], ours["baseline"]) == ("measured", "2", "Gradient")
    assert float(ours["mean"]) > 0


def test_run_json_says_what_decides_the_numbers(out: Path) -> None:
    run = json.loads((out / "run.json").read_text(encoding="utf-8"))
    assert run["quick"] is True
    assert {"backlight", "torch", "python"} <= set(run["versions"])
    one, few = (run["networks"]["tiny0"][f"pullbacks-{name}"] for name in ("pictures", "few-pictures"))
    assert one["seed"] == 314
    assert len(one["model"]["parameters"]) == len(one["data"]) == len(one["contents"]) == 64
    assert one["methods"]["SmoothGrad"]["settings"]["n_samples"] == 4
    assert few["metrics"]["FaithfulnessEstimate"]["settings"]["blocks"] == 12
    assert run["left_out"]["tiny0"]["SmoothPullback (relative)"] == "it is not part of --quick"


def test_a_call_goes_on_and_a_fresh_one_gives_the_same(out: Path, data: Path, tmp_path: Path) -> None:
    told = []
    before = rows(out / "table.csv")
    protocol = replace(PULLBACKS, rows={name: PULLBACKS.rows[name] for name in ("Gradient", "SmoothGrad")})
    options = Options(tmp_path / "a", data=data, quick=True, limit=2, progress=lambda what, step: told.append(step))
    study(protocol, subject(), options)
    whole = study(protocol, subject(), replace(options, limit=3))
    assert {step.total for step in told} == {2, 3}
    assert next(step.done for step in told if step.total == 3) == 2
    again = study(protocol, subject(), replace(options, out=tmp_path / "b", limit=3))
    for name in ("Infidelity", "MaxSensitivity", "RandomLogit"):
        values = [one.evaluations[name].values(name) for one in (whole, again)]
        assert np.allclose(*values, rtol=1e-5, atol=1e-9, equal_nan=True)
    tables.pullbacks([subject()], Options(out, data=data, quick=True, limit=2))
    assert rows(out / "table.csv") == before
    with pytest.raises(InputError, match="other settings"):
        tables.pullbacks([subject()], Options(out, data=data, quick=True, limit=2, seed=1))


def test_quick_takes_fewer_samples_for_what_repeats(tmp_path: Path) -> None:
    options = Options(tmp_path, quick=True, limit=200)
    found = grouped(PULLBACKS, True)
    assert list(found) == [PICTURES, f"few {PICTURES}"]
    assert options.number_of(PULLBACKS, list(found[PICTURES].values())) == 200
    repeating = list(found[f"few {PICTURES}"].values())
    assert options.number_of(PULLBACKS, repeating) == 50
    assert replace(options, few=200).number_of(PULLBACKS, repeating) == 200
    assert replace(options, quick=False).number_of(PULLBACKS, repeating) == 200
    assert set(found[f"few {PICTURES}"]) == {
        "MonotonicityCorrelation", "FaithfulnessEstimate", "MaxSensitivity", "RandomLogit",
    }  # fmt: skip
    exact = grouped(PULLBACKS, False)
    assert {name: len(columns) for name, columns in exact.items()} == {PICTURES: 5, f"few {PICTURES}": 6}


SMALL = {"Sparseness": LOCAL_COLUMNS["Sparseness"], "RandomLogit": PULLBACKS.columns["RandomLogit"]}


def two_columns() -> Protocol:
    """Two rows; a column that repeats, and one that does not."""
    rows = {name: PULLBACKS.rows[name] for name in ("Gradient", "SmoothGrad")}
    columns = {name: PULLBACKS.columns[name] for name in ("FaithfulnessCorrelation", "RandomLogit")}
    return replace(PULLBACKS, rows=rows, columns=columns)


def test_limits_grow_in_the_same_folder_and_nothing_is_done_again(tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    begun = Options(
        tmp_path / "out", data=photographs(tmp_path / "pictures", 40), quick=True, limit=2,
        progress=lambda what, step: told.append((what, step.done, step.total)),
    )  # fmt: skip

    def measured(**changed: int) -> tuple[list[int], dict[str, tuple[int, int]]]:
        """How many samples each column has; of each stage: how many were there before, and in all."""
        told.clear()
        found = study(two_columns(), subject(), replace(begun, **changed)).evaluations
        stages: dict[str, tuple[int, int]] = {}
        for what, done, total in told:
            stages.setdefault(what.rpartition(", ")[2], (done, total))
        return [len(one.samples) for one in found.values()], stages

    assert measured() == ([2, 2], {"pictures": (0, 2), "few pictures": (0, 2)})
    assert measured(limit=12) == ([12, 8], {"pictures": (2, 12), "few pictures": (2, 8)})
    assert measured(limit=12, few=12) == ([12, 12], {"pictures": (12, 12), "few pictures": (8, 12)})
    assert measured(limit=40, few=13) == ([40, 13], {"pictures": (12, 40), "few pictures": (12, 13)})
    names = sorted(path.name for path in (tmp_path / "out" / "tiny0").iterdir())
    assert names == ["pullbacks-few-pictures", "pullbacks-pictures"]


def test_without_quick_its_folder_is_refused(data: Path, tmp_path: Path) -> None:
    options = Options(tmp_path, data=data, quick=True, limit=1)
    study(two_columns(), subject(), options)
    with pytest.raises(InputError, match=r"other settings: methods\.SmoothGrad\.settings\.n_samples: 4 there, 50 now"):
        study(two_columns(), subject(), replace(options, quick=False))


def test_negatives_of_all_of_none_or_of_the_baseline(data: Path, tmp_path: Path) -> None:
    def minus(negatives: str | None, quick: bool = True) -> list[list[str]]:
        """By stage, the rows whose negatives were measured."""
        protocol = replace(two_columns(), columns={name: SMALL[name] for name in SMALL})
        folder = tmp_path / f"{negatives} {quick}"
        found = study(protocol, subject(), Options(folder, data=data, quick=quick, limit=1, negatives=negatives))
        return [[name for name in one.methods if name.startswith("minus")] for one in found.evaluations.values()]

    assert minus(None) == [["minus Gradient"], []]
    assert minus("baseline") == [["minus Gradient"], ["minus Gradient"]]
    assert minus("all") == [["minus Gradient", "minus SmoothGrad"]] * 2
    assert minus("none") == [[], []]
    with pytest.raises(UnknownNameError, match="baseline"):
        minus("basline")


def test_a_folder_that_will_be_refused_is_refused_before_anything_is_measured(data: Path, tmp_path: Path) -> None:
    """The first stage is the same without --quick; the second is not."""
    columns = {"PointingGame": REFINEMENT.columns["PointingGame"], "Fidelity": REFINEMENT.columns["Fidelity"]}
    protocol = replace(REFINEMENT, columns=columns)
    told: list[str] = []
    options = Options(tmp_path, data=data, quick=True, limit=1, progress=lambda what, step: told.append(what))
    study(protocol, subject(), options)
    told.clear()
    with pytest.raises(InputError, match=r"refinement-pictures' holds an evaluation with other settings: .*runs: 30"):
        study(protocol, subject(), replace(options, quick=False))
    assert told == []


def test_focus_is_measured_on_mosaics(data: Path, tmp_path: Path) -> None:
    found = tables.focus([subject()], Options(tmp_path, data=data, quick=True, limit=3))
    (table,) = found.tables
    assert any(row[0] == "GuidedGradCAM" and row[2] == "0.8493" for row in table.rows)
    constant = next(one for one in found.records if one["method"] == "control: constant")
    samples = pictures(data, subject(), MOSAICS, 3)
    one = samples.load(samples.names[0])
    assert int(one.mask.sum()) == SIZE**2 // 2
    assert 0 <= constant["mean"] <= 1


def test_local_measures_localisation_on_pairs_where_there_are_no_masks(data: Path, tmp_path: Path) -> None:
    found = tables.local([subject()], Options(tmp_path, data=data, quick=True, limit=2))
    assert [table.title for table in found.tables] == [
        "PointingGame ↑", "AttributionLocalisation ↑", "Sparseness ↑", "Fidelity ↑", "Stability ↓",
    ]  # fmt: skip
    assert sorted(path.name for path in (tmp_path / "tiny0").iterdir()) == [
        "local-few-pictures", "local-objects", "local-pictures",
    ]  # fmt: skip
    names = [row[0] for row in found.tables[1].rows]
    assert "SRD (high)" in names
    assert "ScoreCAM" not in names
    means = {one["method"]: one["mean"] for one in found.records if one["metric"] == "AttributionLocalisation"}
    assert means["control: constant"] == pytest.approx(0.5)  # a pair's half


def test_masks_of_the_user_are_taken(tmp_path: Path) -> None:
    folder = photographs(tmp_path / "pictures", 3)
    (folder / "masks").mkdir()
    for number in range(3):
        mask = np.zeros((SIZE, SIZE), np.uint8)
        mask[:, : SIZE // 4] = 255
        Image.fromarray(mask).save(folder / "masks" / f"{number}.png")
    found = tables.refinement([subject()], Options(tmp_path / "out", data=folder, quick=True, limit=2))
    stages = sorted(path.name for path in (tmp_path / "out" / "tiny0").iterdir())
    assert stages == ["refinement-few-pictures", "refinement-pictures"]
    means = {one["method"]: one["mean"] for one in found.records if one["metric"] == "AttributionLocalisation"}
    assert means["control: constant"] == pytest.approx(0.25)
    assert [row[0] for row in found.tables[0].rows[:3]] == ["SRD (raw)", "SRD (mean)", "SRD (clamped)"]


def test_ablations_leave_out_what_changes_nothing(data: Path, tmp_path: Path) -> None:
    found = tables.ablations([subject()], Options(tmp_path, data=data, quick=True, limit=2))
    assert len(found.tables) == 8
    assert "changes nothing" in found.markdown()
    first = {row[0]: row[1] for row in found.tables[0].rows}
    assert "SoftPullback (tau relu 0.3)" in first
    assert "SoftPullback (tau max_pool 0.5)" in first
    assert "SoftPullback (tau gelu 2)" not in first
    assert "[" in first["SoftPullback (tau relu 0.3)"]  # a difference with its interval
    assert any(row[0] == "PullbackAscent (n_steps 1)" for row in found.tables[4].rows)


def test_methods_that_a_network_does_not_have_are_left_out_with_the_reason(data: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    other = Subject("other", Tiny(torch.nn.ReLU6).eval(), size=SIZE)
    protocol, options = only_infidelity("Gradient", "DeepLIFT"), Options(tmp_path, data=data, quick=True, limit=1)
    found = study(protocol, other, options)
    assert "Captum's DeepLIFT does not see 'hardtanh'" in found.left_out["DeepLIFT"]
    made = report(protocol, [found, study(protocol, subject(), options)], True)
    lines = {row[0]: row for row in made.tables[0].rows}
    assert lines["DeepLIFT"][1] == "–" != lines["DeepLIFT"][2]


def test_the_rank_correlation_is_that_of_the_means(data: Path, tmp_path: Path) -> None:
    names = ("SoftPullback", "Gradient", "GradientAscent", "SmoothGrad")
    protocol = only_infidelity(*names)
    found = study(protocol, subject(), Options(tmp_path, data=data, quick=True, limit=2))
    means = [found.evaluations["Infidelity"].table("Infidelity")[name].mean for name in names]
    theirs = np.array([5.989, 83.294, 29.48, 66.883]).argsort().argsort()
    expected = np.corrcoef(np.argsort(np.argsort(means)), theirs)[0, 1]
    (line,) = [text for text in report(protocol, [found], True).tables[0].below if "rank correlation" in text]
    assert f"{expected:.2f} with ResNet50 (4 methods)" in line


def test_without_pictures_the_option_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subjects, "DATA", tmp_path / "nothing")
    with pytest.raises(InputError, match="--data FOLDER"):
        tables.pullbacks([subject()], Options(tmp_path))


def test_the_stage_is_the_outermost_and_last_layer_of_its_size() -> None:
    assert stage(Tiny().eval(), torch.zeros(1, 3, SIZE, SIZE), 8) == "middle"
    assert stage(Tiny().eval(), torch.zeros(1, 3, SIZE, SIZE), 2) == "stem.2"
    with pytest.raises(SiteError, match="1/5"):
        stage(Tiny().eval(), torch.zeros(1, 3, 30, 30), 5)


def test_pairs_are_the_same_for_a_larger_number(data: Path) -> None:
    few, many = (pictures(data, subject(), OBJECTS, count, seed=1) for count in (2, 4))
    assert few.fingerprint == many.fingerprint
    assert few.names == many.names[:2]
    assert torch.equal(few.load(few.names[1]).inputs, many.load(few.names[1]).inputs)
    assert pictures(data, subject(), OBJECTS, 2, seed=2).fingerprint != few.fingerprint
