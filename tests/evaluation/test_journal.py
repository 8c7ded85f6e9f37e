"""The journal: whole rows after a kill at any point, one process at a time, one identity."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("pyarrow")
from small_run import Numbered, assert_same_rows, explainers, metrics, network, pictures, run

from backlight.data import ClassNames, Preprocessing
from backlight.errors import InputError
from backlight.evaluation import Evaluation, LabelledFolder, TensorSamples, evaluate, journal
from backlight.evaluation.journal import Failure, Journal, read_rows
from backlight.metrics import Infidelity

ROW = {"method": "m", "target": 1, "predicted": 2, "score": 0.5, "data": "ab", "seconds": 0.1}
ROW |= {"forwards": 1.0, "backwards": 1.0, "x": 3.0}


def rows(*names: str) -> list[dict[str, object]]:
    return [{"sample": name, **ROW} for name in names]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills processes that are forked")
def test_a_kill_at_any_write_or_time_neither_loses_nor_repeats_a_row(tmp_path: Path) -> None:
    script = Path(__file__).with_name("killing.py")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, script, tmp_path], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    kills = json.loads(done.stdout)
    assert len(kills) > 25
    assert kills["times"] >= 1
    whole = Evaluation.load(tmp_path / "whole")
    assert len(whole.rows["sample"]) == 4 * 2
    for folder in kills:
        found = Evaluation.load(tmp_path / folder)
        assert len(set(zip(found.rows["sample"], found.rows["method"], strict=True))) == len(found.rows["sample"])
        assert_same_rows(found.rows, whole.rows)
        assert not list((tmp_path / folder).rglob(".*.partial"))


def test_a_finished_run_computes_nothing_again(tmp_path: Path) -> None:
    calls = []

    def counted(inputs, target):
        calls.append(len(inputs))
        return inputs.abs()

    first = run(tmp_path, explainers={"counted": counted}, metrics={"x": Infidelity(repeats=1)})
    assert sum(calls) == 7
    again = run(tmp_path, explainers={"counted": counted}, metrics={"x": Infidelity(repeats=1)})
    assert sum(calls) == 7
    assert_same_rows(first.rows, again.rows)
    assert [session["done_before"] for session in again.run["sessions"]] == [0, 7]


def test_a_larger_limit_adds_samples(tmp_path: Path) -> None:
    few = run(tmp_path / "grown", Numbered(3))
    more = run(tmp_path / "grown", Numbered(7))
    assert few.samples == ["0", "1", "2"]
    assert more.samples == [str(place) for place in range(7)]
    assert_same_rows(more.rows, run(tmp_path / "whole", Numbered(7)).rows)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"seed": 1}, "seed: 0 there, 1 now"),
        ({"controls": False}, "controls: True there, False now"),
        (
            {"metrics": {**metrics(), "Infidelity": Infidelity(repeats=3)}},
            "Infidelity.settings.repeats: 2 there, 3 now",
        ),
        ({"metrics": {"Infidelity": Infidelity(repeats=2)}}, "metrics.signed: there, not now"),
        ({"explainers": {**explainers(network()), "late": lambda x, t: x}}, "methods.late: now, not there"),
        ({"settings": {"model": "other"}}, "settings.model: tiny there, other now"),
    ],
)
def test_other_settings_are_an_error_that_says_which(tmp_path: Path, changed: dict, said: str) -> None:
    before = run(tmp_path, settings={"model": "tiny"})
    with pytest.raises(InputError, match="other settings") as caught:
        run(tmp_path, **{"settings": {"model": "tiny"}, **changed})
    assert said in str(caught.value)
    assert "there" in str(caught.value)
    assert_same_rows(Evaluation.load(tmp_path).rows, before.rows)


def test_another_network_or_other_data_are_an_error(tmp_path: Path) -> None:
    run(tmp_path)
    other = network()
    other[4].bias.data[0] += 1e-6
    with pytest.raises(InputError, match=r"model\.parameters"):
        evaluate(other, Numbered(), explainers(other), metrics(), out=tmp_path)
    with pytest.raises(InputError, match="data: numbers there"):
        run(tmp_path, TensorSamples(Numbered().load("0").inputs[None]))


def test_more_tensors_go_on_and_changed_ones_are_named(tmp_path: Path) -> None:
    x, targets = pictures(), [place % 5 for place in range(7)]

    def samples(count: int, **changed: Any) -> TensorSamples:
        given = {"inputs": x, "targets": targets, "masks": torch.ones(7, 8, 8, dtype=torch.bool), **changed}
        return TensorSamples(**{name: value[:count] for name, value in given.items()})

    run(tmp_path / "grown", samples(3))
    found = run(tmp_path / "grown", samples(7))
    assert [session["done_before"] for session in found.run["sessions"]] == [0, 3]
    whole = run(tmp_path / "whole", samples(7))
    assert_same_rows(found.rows, whole.rows)
    assert found.run["contents"] == whole.run["contents"]
    other = x.clone()
    other[4, 0, 0, 0] += 0.25
    outside = torch.ones(7, 8, 8, dtype=torch.bool)
    outside[4, 0] = False
    for changed in ({"inputs": other}, {"targets": [0, 1, 2, 3, 0, 0, 1]}, {"masks": outside}):
        with pytest.raises(InputError, match="samples that have changed since: '4'"):
            run(tmp_path / "grown", samples(7, **changed))
    for changed in ({"inputs": x[:, :, :6]}, {"inputs": x.double()}, {"names": list("abcdefg")}):
        with pytest.raises(InputError, match="other settings: data"):
            run(tmp_path / "grown", samples(7, **{"masks": outside[:, : changed.get("inputs", x).shape[2]], **changed}))


def test_a_repaired_picture_is_done_and_a_changed_one_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "data" / "1"
    folder.mkdir(parents=True)
    for place in range(3):
        Image.fromarray(np.full((8, 8, 3), 40 * place, np.uint8)).save(folder / f"{place}.png")
    whole = (folder / "1.png").read_bytes()
    (folder / "1.png").write_bytes(whole[:40])

    def go_on() -> Evaluation:
        return run(tmp_path / "out", LabelledFolder(tmp_path / "data", ClassNames(), Preprocessing((8, 8), (8, 8))))

    assert {one.sample for one in go_on().skipped} == {"1/1.png"}
    (folder / "1.png").write_bytes(whole)
    found = go_on()
    assert not found.skipped
    assert [session["done_before"] for session in found.run["sessions"]] == [0, 2]
    assert set(found.samples) == {f"1/{place}.png" for place in range(3)}
    (folder / "2.png").write_bytes(whole)
    with pytest.raises(InputError, match=r"samples that have changed since: '1/2\.png'\. Give another folder"):
        go_on()
    (folder / "2.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"changed since: '1/2\.png'"):
        go_on()


def test_one_process_at_a_time(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    first, second = (Journal(tmp_path, {}, ["x"]) for _ in range(2))
    with first, pytest.raises(InputError, match="another process"):
        second.__enter__()
    with Journal(tmp_path, {}, ["x"]):
        pass


def test_rows_that_a_killed_merge_left_twice_count_once(tmp_path: Path) -> None:
    with Journal(tmp_path, {}, ["x"]) as one:
        one.append(rows("a", "b"), [Failure("b", "m", "x", "why")])
        one.append(rows("c"))
        parts = [shutil.copy(path, tmp_path) for path in sorted((tmp_path / "parts").glob("*.parquet"))]
        one.merge()
    for part in parts:
        shutil.move(part, tmp_path / "parts")
    with Journal(tmp_path, {}, ["x"]) as one:
        assert one.done == dict.fromkeys("abc", "ab")
        one.append(rows("d"))
        with pytest.raises(InputError, match="'d' has its rows already"):
            one.append(rows("d"))
    table, failures = read_rows(tmp_path)
    assert table.column("sample").to_pylist() == ["a", "b", "c", "d"]
    assert failures == [Failure("b", "m", "x", "why")]


def test_merging_on_the_way_keeps_the_folder_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "MERGE_EVERY", 3)
    with Journal(tmp_path, {}, ["x"]) as one:
        for number in range(8):
            one.append(rows(str(number)))
        assert len(list((tmp_path / "parts").glob("*.parquet"))) == 2
        one.merge([str(number) for number in range(7, -1, -1)])
    assert not list((tmp_path / "parts").glob("*.parquet"))
    assert read_rows(tmp_path)[0].column("sample").to_pylist() == [str(number) for number in range(7, -1, -1)]


def test_damaged_files_are_named(tmp_path: Path) -> None:
    with Journal(tmp_path, {}, ["x"]) as one:
        one.append(rows("a"))
        part = next((tmp_path / "parts").glob("*.parquet"))
    part.write_bytes(part.read_bytes()[:100])
    with pytest.raises(InputError, match="remove it to compute its samples again"):
        read_rows(tmp_path)
    part.unlink()
    with Journal(tmp_path, {}, ["x"]) as one:
        assert one.done == {}
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(InputError, match=r"cannot read .*run\.json"), Journal(tmp_path, {}, ["x"]):
        pass
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(InputError, match=r"is not the run\.json of an evaluation"), Journal(tmp_path, {}, ["x"]):
        pass


def test_results_without_their_settings_are_an_error(tmp_path: Path) -> None:
    with Journal(tmp_path, {}, ["x"]) as one:
        one.append(rows("a"))
    (tmp_path / "run.json").unlink()
    with pytest.raises(InputError, match=r"results without a run\.json"), Journal(tmp_path, {}, ["x"]):
        pass
    with pytest.raises(InputError, match="no evaluation"):
        Evaluation.load(tmp_path)


def test_without_pyarrow_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from backlight.errors import MissingExtraError

    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r"backlight\[evaluation\]"):
        run(tmp_path)
