"""Extraction: the same bytes whoever computes them and whatever is killed; nothing lost, doubled or mixed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("zarr")
from small_extraction import Linear, Numbered, Opened, contents, inputs, small

from backlight.data.labelled import Sample
from backlight.errors import InputError, UnknownNameError
from backlight.evaluation.evaluation import Skipped
from backlight.store import ExtractionError, Progress, Store, extraction
from backlight.store.worker import Worker


def expected(numbers: list[int]) -> torch.Tensor:
    matrix = torch.randn(48, 6, generator=torch.Generator().manual_seed(0))
    return torch.stack([inputs(number).flatten() for number in numbers]) @ matrix


def test_rows_are_what_the_collector_gave(tmp_path: Path) -> None:
    steps: list[Progress] = []
    store = small(tmp_path, progress=steps.append)
    hidden = expected(list(range(11)))
    assert store.sites == ("a.1:input", "b")
    assert store.names == Numbered().names
    torch.testing.assert_close(store.rows("a.1:input").read(0, 11), hidden)
    torch.testing.assert_close(store.logits.read(0, 11), hidden)
    assert torch.equal(store.maps("b", "activations", [3]), inputs(3)[None])
    assert store.labels.tolist() == [n % 3 if n % 4 else -1 for n in range(11)]
    assert store.column("prediction").tolist() == hidden.argmax(1).tolist()
    np.testing.assert_allclose(store.residual("a.1:input"), hidden.sum(1), rtol=1e-5)
    assert [step.done for step in steps] == [0, 2, 4, 6, 8, 10, 11]
    assert steps[-1].total == 11
    assert steps[-1].rate > 0
    assert store.identity["collector"] == "linear"
    assert store.identity["extraction"] == {"batch_size": 2, "block": 4, "dtype": "float32"}
    assert store.about == {"where": "here"}


def test_nothing_is_left_of_threads_and_random_numbers(tmp_path: Path) -> None:
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    small(tmp_path, threads=threads + 1)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads


def test_a_finished_store_computes_nothing_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small(tmp_path)
    before = contents(tmp_path)
    monkeypatch.setattr(Linear, "open", lambda *_: pytest.fail("opened"))
    assert len(small(tmp_path)) == 11
    assert contents(tmp_path) == before


@given(count=st.integers(1, 9), batch=st.integers(1, 4), block=st.integers(1, 5), first=st.integers(1, 9))
@settings(max_examples=8, deadline=None)
def test_sizes_and_a_smaller_limit_before_change_no_row(
    tmp_path_factory: pytest.TempPathFactory, count: int, batch: int, block: int, first: int
) -> None:
    folder = tmp_path_factory.mktemp("sizes")
    collector, sizes = Linear(thin=True), {"batch_size": batch, "block": block}
    broken = (2,) if count > 3 else ()
    whole = small(folder / "whole", Numbered(count, broken), collector, **sizes)
    good = [n for n in range(count) if n not in broken]
    assert whole.names == [f"folder/{n}" for n in good]
    torch.testing.assert_close(whole.rows("a.1:input").read(0, 9), expected(good))
    small(folder / "grown", Numbered(min(first, count), broken), collector, **sizes)
    small(folder / "grown", Numbered(count, broken), collector, **sizes)
    assert contents(folder / "grown") == contents(folder / "whole")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills processes that are forked")
def test_a_kill_before_any_file_or_at_any_time_leaves_the_same_bytes(tmp_path: Path) -> None:
    script = Path(__file__).with_name("killing_extraction.py")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, script, tmp_path], env=environment, capture_output=True, text=True, timeout=400, check=False
    )
    assert done.returncode == 0, done.stderr
    kills = json.loads(done.stdout)
    assert len(kills) > 15
    assert sum(count for folder, count in kills.items() if folder.startswith("time-")) >= 1
    whole = contents(tmp_path / "whole")
    assert len(Store.open(tmp_path / "whole")) == 6
    for folder in kills:
        assert contents(tmp_path / folder) == whole, folder


def test_processes_give_the_same_bytes_and_are_replaced_where_they_die(tmp_path: Path) -> None:
    small(tmp_path / "one")
    steps: list[Progress] = []
    collector = Linear(die=tmp_path / "died")
    store = small(tmp_path / "two", collector=collector, workers=2, progress=steps.append)
    assert (tmp_path / "died").exists()
    assert contents(tmp_path / "two") == contents(tmp_path / "one")
    assert steps[-1].done == len(store) == 11
    assert [(one["workers"], one["engine"], one["threads"]) for one in store.sessions] == [(2, "process", 1)]


def test_a_block_that_kills_its_workers_is_told_at_the_end_and_the_others_are_kept(tmp_path: Path) -> None:
    with pytest.raises(ExtractionError, match=r"3 workers died at block 1 \(it ended with status 3\); the other"):
        small(tmp_path / "s", collector=Linear(always=True), workers=2)
    assert Store.open(tmp_path / "s").names == [f"folder/{n}" for n in (0, 1, 2, 3, 8, 9, 10)]
    small(tmp_path / "s")
    small(tmp_path / "one")
    assert contents(tmp_path / "s") == contents(tmp_path / "one")


def test_what_a_collector_raises_in_a_worker_is_raised_here(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="the seventh is wrong") as caught:
        small(tmp_path, collector=Linear(fail=True), workers=2)
    assert any("in _stumble" in note for note in caught.value.__notes__)
    assert len(small(tmp_path)) == 11

    class Local(Linear):
        pass

    with pytest.raises(InputError, match="cannot be sent to another process"):
        small(tmp_path / "local", collector=Local(), workers=2)


def test_unreadable_samples_are_listed_and_tried_again_when_they_have_changed(tmp_path: Path) -> None:
    steps: list[Progress] = []
    store = small(tmp_path, Numbered(broken=(0, 1, 6)), progress=steps.append)
    assert store.names == [f"folder/{n}" for n in (2, 3, 4, 5, 7, 8, 9, 10)]
    assert store.skipped == [Skipped(f"folder/{n}", f"cannot read 'folder/{n}': it is broken") for n in (0, 1, 6)]
    assert [one.sample for step in steps for one in step.skipped] == ["folder/0", "folder/1", "folder/6"]
    torch.testing.assert_close(store.rows("a.1:input").read(0, 8), expected([2, 3, 4, 5, 7, 8, 9, 10]))
    before = contents(tmp_path)
    assert contents(small(tmp_path, Numbered(broken=(0, 1, 6))).folder) == before
    mended = small(tmp_path, Numbered())
    assert mended.skipped == []
    small(tmp_path.with_name("whole"))
    assert contents(tmp_path) == contents(tmp_path.with_name("whole"))


def test_nothing_readable_is_an_error_and_a_whole_broken_block_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="none of the 3 samples could be read: cannot read 'folder/0'"):
        small(tmp_path / "a", Numbered(3, broken=(0, 1, 2)))
    store = small(tmp_path / "b", Numbered(6, broken=(0, 1, 2, 3)))
    assert store.names == ["folder/4", "folder/5"]
    torch.testing.assert_close(store.rows("a.1:input").read(0, 2), expected([4, 5]))


def test_rows_that_are_not_finite_are_left_out(tmp_path: Path) -> None:
    store = small(tmp_path, collector=Linear(nan=(3, 9)))
    assert store.names == [f"folder/{n}" for n in range(11) if n not in (3, 9)]
    assert [one.sample for one in store.skipped] == ["folder/3", "folder/9"]
    assert "a.1%3Ainput/contributions/positive has NaN" in store.skipped[0].reason
    assert torch.isfinite(store.rows("a.1:input").read(0, 9)).all()


def test_half_precision_is_stored_and_overflow_refused(tmp_path: Path) -> None:
    store = small(tmp_path / "a", dtype="float16")
    assert torch.equal(
        store.rows("b", "activations", "positive").read(0, 11), expected(list(range(11))).clamp(min=0).half().float()
    )
    with pytest.raises(InputError, match="too large for float16"):
        small(tmp_path / "b", dtype="float16", collector=Linear(scale=1e5))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"collector": Linear(scale=2.0)}, r"scale: 1\.0 there, 2\.0 now"),
        ({"batch_size": 4}, r"extraction\.batch_size: 2 there, 4 now"),
        ({"block": 6}, r"extraction\.block: 4 there, 6 now"),
        ({"dtype": "float16"}, r"extraction\.dtype: float32 there, float16 now"),
        ({"samples": Numbered(version="edited")}, "samples that have changed since: 'folder/0', .* and 5 more"),
    ],
)
def test_other_settings_or_data_are_an_error_that_says_which(tmp_path: Path, changed: dict, said: str) -> None:
    small(tmp_path)
    before = contents(tmp_path)
    with pytest.raises(InputError, match=said):
        small(tmp_path, **changed)
    assert contents(tmp_path) == before


def test_another_order_is_an_error(tmp_path: Path) -> None:
    class Turned(Numbered):
        @property
        def names(self) -> list[str]:
            return super().names[::-1]

    small(tmp_path)
    with pytest.raises(InputError, match="sample 0 is 'folder/0' in the store, and 'folder/10' now"):
        small(tmp_path, Turned())


def test_a_smaller_limit_takes_nothing_away(tmp_path: Path) -> None:
    small(tmp_path, Numbered(broken=(9,)))
    for few in (3, 10):  # in the second, the last block is cut short, and its broken sample mended
        assert len(small(tmp_path, Numbered(few))) == 10
    assert Store.open(tmp_path).samples == 11
    assert len(small(tmp_path)) == 11


def test_one_call_at_a_time_writes_to_a_store_and_others_read_it(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    seen: list[Any] = []

    def while_writing(step: Progress) -> None:
        if step.done == 6:
            seen.append(Store.open(tmp_path).names)
            with pytest.raises(InputError, match="another process extracts to"):
                small(tmp_path)

    small(tmp_path, progress=while_writing)
    assert seen == [["folder/0", "folder/1", "folder/2", "folder/3"]]


def test_workers_that_a_killed_call_left_are_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fcntl = pytest.importorskip("fcntl")
    tmp_path.mkdir(exist_ok=True)
    left = (tmp_path / ".workers").open("a")
    fcntl.flock(left, fcntl.LOCK_SH)
    monkeypatch.setattr(extraction, "PATIENCE", 0.1)
    with pytest.raises(InputError, match="that was killed still write to"):
        small(tmp_path)
    monkeypatch.setattr(extraction, "PATIENCE", 60.0)
    threading.Timer(0.2, left.close).start()
    assert len(small(tmp_path)) == 11


def test_what_cannot_be_extracted_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="close matches: process"):
        small(tmp_path, engine="proces")
    for wrong in ({"workers": 0}, {"batch_size": 0}, {"block": 0}, {"threads": 0}):
        with pytest.raises(InputError, match="must be at least 1, got 0"):
            small(tmp_path, **wrong)
    with pytest.raises(InputError, match="there are no samples"):
        small(tmp_path, Numbered(0))
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write to"):
        small(tmp_path / "file")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_samples_of_several_sizes_are_refused_where_positions_are_kept(tmp_path: Path) -> None:
    class Mixed(Opened):
        def collect(self, samples: Any) -> Any:
            cut = slice(0, 4 if samples[0].name < "folder/2" else 3)
            found = super().collect(samples)
            return type(found)(found.rows, {key: value[:, :, cut] for key, value in found.positions.items()})

    class Cut(Linear):
        def open(self, worker: int) -> Opened:
            return Mixed(self, super().open(worker).matrix)

    with pytest.raises(InputError, match=r"positions' has \[3, 3, 4\] entries a sample here and \[3, 4, 4\] before"):
        small(tmp_path, collector=Cut())


def test_no_more_than_a_batch_and_the_chunks_of_a_block_are_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: list[int] = []
    loaded: list[Any] = []

    class Watched(Numbered):
        def load(self, name: str) -> Sample:
            import weakref

            found = super().load(name)
            loaded.append(weakref.ref(found))
            alive.append(sum(one() is not None for one in loaded))
            return found

    small(tmp_path, Watched(40), Linear(thin=True), batch_size=2, block=8)
    assert max(alive) <= 5  # of one batch, that before it, and the first

    held: list[int] = []
    run = Worker.run
    monkeypatch.setattr(Worker, "run", lambda self, *given: held.append(self._kept is not None) or run(self, *given))
    small(tmp_path.with_name("again"), Watched(12), Linear(thin=True), batch_size=2, block=4)
    assert held == [True, False, False]
