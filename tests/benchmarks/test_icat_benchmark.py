"""Figure 11 of the iERF paper on a tiny network: numbers of one picture, resuming, refusals, the command."""

from __future__ import annotations

import csv
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import SIZE, photographs, subject
from typer.testing import CliRunner

from backlight.benchmarks import icat as room
from backlight.benchmarks.icat import Icat, chosen_operators, columns, icat, measured, picture
from backlight.benchmarks.icat_dictionaries import LAYERS, coder_named, drawn, fit_named, layers_of
from backlight.benchmarks.icat_report import Found, icat_report, standing
from backlight.benchmarks.study import Options
from backlight.cli.commands import app
from backlight.data.images import Preprocessing
from backlight.data.labelled import LabelledFolder
from backlight.decompositions.codes import Lasso
from backlight.engine.segment import Segment
from backlight.errors import InputError, UnknownNameError
from backlight.graph.causal import agreement, changes
from backlight.graph.coded import code_sites
from backlight.graph.icat import edges
from backlight.graph.validation import METRICS, Protocol, curves, strongest

pytest.importorskip("pyarrow")
pytest.importorskip("sklearn")

NAMES = ("IntegratedGradients", "DeepLIFT", "Random", "Activation")
SMALL = Icat(
    layers=("stem", "middle", "last"), fit="KMeans:n_modes=12", rows=64, operators=chosen_operators(NAMES),
    targets=2, protocol=Protocol(points=4),
)  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return photographs(tmp_path_factory.mktemp("data") / "pictures", 6)


def folder_of(data: Path) -> LabelledFolder:
    one = subject()
    return LabelledFolder(data, one.classes, one.preprocessing, labelled=False)


def test_rows_are_what_the_graph_room_says(data: Path, tmp_path: Path) -> None:
    """A picture's row, from dictionary to area, by hand."""
    one, samples = subject(), folder_of(data)
    found = measured(one, Options(tmp_path, data, limit=1), SMALL, lambda text: None)
    assert found.pictures == (samples.names[0],)
    assert found.pairs == ("stem > middle", "middle > last")
    assert found.operators == NAMES
    x = samples.load(samples.names[0]).inputs[None]
    layers = {
        layer: fit_named("KMeans:n_modes=12", 314)().fit(
            drawn(one, ["stem", "middle", "last"], samples, samples.names[3:], 64, 314)[layer]
        )
        for layer in ("stem", "middle")
    }
    coded = code_sites(one.model, x, {name: (one_.encode, one_.atoms, None) for name, one_ in layers.items()})
    targets = strongest(coded["middle"], 2)
    known = edges(one.model, x, coded["stem"], coded["middle"], targets, residual=False)
    segment = Segment(one.model, x, "stem", "middle")
    expected = curves(segment, coded["stem"], coded["middle"], targets, known.values[0], Protocol(points=4))
    ours = {column: found.values(column, "stem > middle")[0, 0] for column in found.columns}
    for m, metric in enumerate(METRICS):
        kept = ~expected.insertion[m].isnan()
        assert ours[f"dropped {metric}"] == 2 - int(kept.sum())
        if bool(kept.any()):
            np.testing.assert_allclose(ours[f"insertion {metric}"], float(expected.insertion[m][kept].mean()))
            np.testing.assert_allclose(ours[f"deletion {metric}"], float(expected.deletion[m][kept].mean()))
            np.testing.assert_allclose(ours[f"deleted {metric} 2"], float(expected.deleted[m, kept, 2].mean()))
    lost = changes(segment, coded["stem"], coded["middle"], targets)
    whole = edges(one.model, x, coded["stem"], coded["middle"], targets).values[0]
    both = [agreement(whole[t], lost.score[:, t], lost.concepts).spearman for t in range(2)]
    np.testing.assert_allclose(ours["spearman"], np.mean(both))
    assert ours["parents"] == int((coded["stem"].codes[0] != 0).any(0).sum())


def test_what_was_done_stays_and_more_pictures_go_on(data: Path, tmp_path: Path, monkeypatch) -> None:
    seen: list[str] = []

    def noted(one, x, name, *rest):
        if len(seen) == 1:
            raise KeyboardInterrupt
        seen.append(name)
        return picture(one, x, name, *rest)

    monkeypatch.setattr(room, "picture", noted)
    options = Options(tmp_path / "out", data, limit=2)
    few = replace(SMALL, operators=chosen_operators(["IntegratedGradients", "Random"]), causal=False)
    with pytest.raises(KeyboardInterrupt):
        icat([subject()], options, few)
    monkeypatch.setattr(room, "picture", lambda *rest: (seen.append(rest[2]), picture(*rest))[1])
    report = icat([subject()], options, few)
    assert seen == folder_of(data).names[:2]
    more = icat([subject()], replace(options, limit=3), few)
    assert seen == folder_of(data).names[:3]
    whole = icat([subject()], Options(tmp_path / "at once", data, limit=3), few)
    for ours, theirs in zip(more.records, whole.records, strict=True):
        assert str(ours) == str(theirs)
    assert report.records[0]["n"] == 2
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {"table.md", "table.csv", "curves-max.png", "tiny0"}
    rows = list(csv.DictReader((tmp_path / "out" / "table.csv").open()))
    assert {row["operator"] for row in rows} == set(few.operators)
    with pytest.raises(InputError, match="targets"):
        icat([subject()], options, replace(few, targets=1))
    with pytest.raises(InputError, match="dictionary of other settings"):
        icat([subject()], options, replace(few, rows=32))


def test_an_operator_that_cannot_is_left_out_with_its_reason(data: Path, tmp_path: Path) -> None:
    one = subject()
    one.model.middle[1] = torch.nn.ReLU6()
    report = icat([one], Options(tmp_path, data, limit=1), SMALL)
    text = report.markdown()
    assert "Left out on tiny0: DeepLIFT: Captum's DeepLIFT does not see" in text
    table = next(table for table in report.tables if "stem > middle" in table.title)
    cells = {row[0]: row[1] for row in table.rows}
    assert cells["DeepLIFT"] == "–"  # which it has for the other pair
    assert cells["Random"] != "–"
    assert "iERF, Figure 11" in text


def made(values: np.ndarray) -> Found:
    names = ("IntegratedGradients", "LRP", "Random")
    areas = [f"{half} {metric}" for metric in METRICS for half in ("insertion", "deletion")]
    extra = ["targets", *(f"dropped {metric}" for metric in METRICS), "parents", "relative error", "gap",
             "pearson", "spearman", "pearson of max", "spearman of max"]  # fmt: skip
    table = np.repeat(values[..., None], len(areas) + len(extra), 3)
    return Found("net", ("a", "b", "c"), ("1 > 2", "2 > 3"), names, (*areas, *extra), table, 3, {}, {})


def test_a_picture_is_the_unit() -> None:
    values = np.array([[[1.0, 2, 9], [3, 4, 9]], [[1, 0, 9], [1, 0, 9]], [[2, np.nan, 9], [2, 5, 9]]])
    found = made(values)
    means, pairs = standing(found, "insertion max", True)
    assert [one.mean for one in means] == pytest.approx([5 / 3, 8 / 3, 9])
    assert pairs[1].wins == pytest.approx(2 / 3)
    assert standing(found, "deletion max", False)[1][1].wins == pytest.approx(1 / 3)
    report = icat_report([found])
    first = next(iter(report.tables)).rows
    assert first[1][1].startswith("**2.667")  # controls are never the best
    assert "**" not in first[2][1]


def test_layers_and_dictionaries_by_name() -> None:
    assert layers_of(subject(), ("stem", "last")) == ("stem", "last")
    with pytest.raises(InputError, match="which layers of tiny0"):
        layers_of(subject(), None)
    with pytest.raises(UnknownNameError, match="middle"):
        layers_of(subject(), ("stem", "midle"))
    assert fit_named("KMeans:n_modes=3x,epochs=2", 5)().settings() | {"tolerance": 0} == {
        "seed": 5, "n_modes": "3x", "epochs": 2, "tolerance": 0,
    }  # fmt: skip
    with pytest.raises(UnknownNameError, match="KMeans"):
        fit_named("KMean", 0)
    with pytest.raises(InputError, match="modes"):
        fit_named("KMeans:modes=3", 0)
    with pytest.raises(InputError, match="NAME=VALUE"):
        fit_named("KMeans:3", 0)
    assert coder_named(None) is None
    assert coder_named("own") is None
    assert coder_named("Lasso:penalty=0.2,nonnegative=true") == Lasso(penalty=0.2, nonnegative=True)
    with pytest.raises(UnknownNameError, match="OMP"):
        coder_named("OPM:k=3")
    assert all(len(layers) == 6 for layers in LAYERS.values())
    with pytest.raises(UnknownNameError, match="KernelSHAP"):
        chosen_operators(["KernelShap"])
    assert chosen_operators(None, 70)["KernelSHAP"].n_samples == 70  # type: ignore[attr-defined]
    assert len(columns(Protocol(points=4))) == 8 + 4 + 8 + 4 * 2 * 4


def test_draws_do_not_depend_on_other_pictures(data: Path) -> None:
    one, samples = subject(), folder_of(data)
    both = drawn(one, ["stem"], samples, samples.names[:2], 20, 0)["stem"]
    alone = drawn(one, ["stem"], samples, samples.names[1:2], 10, 0)["stem"]
    torch.testing.assert_close(both[10:], alone)
    assert both.shape == (20, 8)
    assert SIZE == 32
    assert isinstance(one.preprocessing, Preprocessing)


@pytest.mark.skipif(os.name == "nt", reason="paths")
def test_the_command(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    given = ["benchmark", "icat", "-m", "mobilenet_v2", "--data", str(data), "--layers", "features.14,features.15",
             "--fit", "KMeans:n_modes=8,epochs=2", "--rows", "60", "--operator", "GradientTimesInput,Random",
             "--targets", "1", "--points", "3", "--limit", "1", "--no-causal", "-o", str(out)]  # fmt: skip
    found = CliRunner().invoke(app, given)
    assert found.exit_code == 0, found.output
    assert "features.14 > features.15" in found.output
    run = json.loads((out / "run.json").read_text())
    assert run["networks"]["mobilenet_v2"]["targets"] == {"count": 1, "by": "mass"}
    wrong = CliRunner().invoke(app, [*given, "--operator", "Gradient"])
    assert wrong.exit_code == 2
