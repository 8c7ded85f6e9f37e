"""A store gives back what was written: any finished rows, in order, in pieces; and says what is wrong with it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("zarr")
import zarr

from backlight.errors import InputError, UnknownNameError
from backlight.evaluation.evaluation import Skipped
from backlight.store import Chosen, Store, pieces, shuffled
from backlight.store.arrays import Arrays, Layout, part
from backlight.store.marks import Mark, write_mark
from backlight.store.record import ARRAYS, MARKS, Record
from backlight.store.store import StoredRows

SITE, OTHER = "layer4.1", "blocks.3.mlp.fc2:input"


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def written(folder: Path, **given: object) -> tuple[Store, torch.Tensor, torch.Tensor]:
    rows, maps = normal(11, 3), normal(11, 2, 4, 5)
    columns = {"label": torch.arange(11), "score": normal(11).double()}
    store = Store.of(
        folder / "s",
        {SITE: rows, OTHER: {"activations": maps, "gradients": (rows.clamp(min=0), rows.clamp(max=0) * 2)}},
        columns=columns,
        logits=normal(11, 4),
        residuals={SITE: normal(11)},
        identity={"model": {"name": "tiny"}},
        block=4,
        **given,
    )
    return store, rows, maps


def test_rows_of_each_sign_are_those_that_were_written(tmp_path: Path) -> None:
    store, rows, maps = written(tmp_path)
    positive, negative = rows.clamp(min=0), rows.clamp(max=0)
    expected = {"positive": positive, "negative": negative, "sum": rows, "concat": torch.cat((positive, negative), 1)}
    for sign, value in expected.items():
        found = store.rows(SITE, sign=sign)
        assert found.shape == tuple(value.shape)
        assert torch.equal(found.read(0, 11), value)
        assert torch.equal(found.read(3, 9), value[3:9])
        assert torch.equal(torch.cat([piece for _, piece in pieces(found, 5)]), value)
    assert torch.equal(store.rows(OTHER, "gradients").read(0, 11), positive + 2 * negative)
    summed = store.rows(OTHER, "activations", "negative").read(0, 11)
    torch.testing.assert_close(summed, maps.clamp(max=0).sum((2, 3)))
    assert store.rows(SITE).read(5, 5).shape == (0, 3)
    assert torch.equal(Chosen(store.rows(SITE), [1, 6, 10]).read(0, 3), rows[[1, 6, 10]])
    assert sorted(torch.cat(list(shuffled(store.rows(SITE), 4, 0)))[:, 0].tolist()) == sorted(rows[:, 0].tolist())


def test_what_else_is_kept_of_the_samples(tmp_path: Path) -> None:
    store, _, maps = written(tmp_path)
    assert store.sites == (SITE, OTHER)
    assert store.quantities(OTHER) == ("activations", "gradients")
    assert store.quantities(SITE) == ("contributions",)
    assert store.names == [str(place) for place in range(11)]
    assert len(store) == store.samples == 11
    assert store.columns == ("label", "score")
    assert store.labels.tolist() == list(range(11))
    assert store.column("score").tolist() == normal(11).double().tolist()
    assert torch.equal(store.logits.read(2, 5), normal(11, 4)[2:5])
    np.testing.assert_array_equal(store.residual(SITE), normal(11).double().numpy())
    assert torch.equal(store.maps(OTHER, "activations", [7, 2]), maps[[7, 2]])
    assert torch.equal(store.maps(OTHER, "activations", slice(9, None)), maps[9:])
    assert store.maps(OTHER, "activations", []).shape == (0, 2, 4, 5)
    assert store.identity["model"] == {"name": "tiny"}
    assert store.skipped == []
    assert Store.of(tmp_path / "plain", {SITE: normal(3, 2)}).labels.tolist() == [-1, -1, -1]


def test_any_reader_of_zarr_can_read_it(tmp_path: Path) -> None:
    _, rows, _ = written(tmp_path)
    group = zarr.open_group(tmp_path / "s" / ARRAYS, mode="r")
    array = group[f"sites/{part(SITE)}/contributions/positive"]
    assert array.metadata.zarr_format == 3
    np.testing.assert_array_equal(array[:], rows.clamp(min=0).numpy())
    assert part(OTHER) == "blocks.3.mlp.fc2%3Ainput"
    assert part("@features") == "%40features"


def test_half_precision_is_half_as_large_and_says_where_it_does_not_do(tmp_path: Path) -> None:
    store, rows, _ = written(tmp_path, dtype="float16")
    assert torch.equal(store.rows(SITE).read(0, 11), rows.half().float())
    assert store.rows(SITE).read(0, 1).dtype == torch.float32
    assert torch.equal(store.logits.read(0, 11), normal(11, 4))
    assert store.column("score").dtype == np.float64
    big = torch.tensor([[1e6, 1.0]])
    with pytest.raises(InputError, match=r"up to 1e\+06: too large for float16"):
        Store.of(tmp_path / "big", {SITE: big}, dtype="float16")
    with pytest.raises(UnknownNameError, match="close matches: float16"):
        Store.of(tmp_path / "wrong", {SITE: big}, dtype="bfloat16")


@given(
    done=st.sets(st.integers(0, 11)),
    skipped=st.sets(st.integers(0, 35)),
    start=st.integers(0, 36),
    more=st.integers(0, 36),
)
@settings(max_examples=40, deadline=None)
def test_rows_are_those_of_finished_samples_whatever_is_missing(
    done: set[int], skipped: set[int], start: int, more: int
) -> None:
    places = np.array([n for n in range(36) if n // 3 in done and n not in skipped], dtype=np.int64)
    values = normal(36, 2)
    arrays = _Recorded(values, 3)
    found = StoredRows(arrays, ["a", "a"], places, added=True)
    assert torch.equal(found.read(start, start + more), 2 * values[places][start : start + more])
    touched = {chunk for first, last in arrays.reads for chunk in range(first // 3, -(-last // 3))}
    assert touched <= {int(place) // 3 for place in places}  # nothing is read that was never written


class _Recorded(Arrays):
    """One array in memory, which notes what is read."""

    def __init__(self, values: torch.Tensor, chunk: int) -> None:
        self.layout = Layout({"a": (values.shape[1],)}, {"a": "float32"}, {"a": chunk})
        self.values, self.reads = values, list[tuple[int, int]]()

    def read(self, key: str, start: int, stop: int) -> np.ndarray:
        self.reads.append((start, stop))
        return self.values[start:stop].numpy()


def test_blocks_may_be_finished_in_any_order_and_samples_skipped(tmp_path: Path) -> None:
    values, names = normal(10, 2).numpy(), [f"n{place}" for place in range(10)]
    layout = Layout.of({f"sites/{SITE}/contributions/{sign}": values for sign in ("positive", "negative")}, 2, 4)
    (tmp_path / MARKS).mkdir()
    arrays = Arrays(tmp_path / ARRAYS, layout, writing=True)
    arrays.create(10)
    Record({}, {}, 10, [SITE], layout).write(tmp_path)
    with pytest.raises(InputError, match=r"no sample of the store .* is finished yet"):
        Store.open(tmp_path)
    for block, start, stop in ((2, 8, 10), (0, 0, 4)):
        for sign in ("positive", "negative"):
            arrays.write(f"sites/{SITE}/contributions/{sign}", start, values[start:stop])
        write_mark(
            tmp_path / MARKS, block, Mark(start, names[start:stop], skipped={"n1": "broken"} if not block else {})
        )
    store = Store.open(tmp_path)
    assert store.names == ["n0", "n2", "n3", "n8", "n9"]
    assert store.skipped == [Skipped("n1", "broken")]
    assert store.samples == 10
    np.testing.assert_array_equal(store.rows(SITE).read(0, 5).numpy(), 2 * values[[0, 2, 3, 8, 9]])


def test_what_is_not_there_is_named_with_what_is_close(tmp_path: Path) -> None:
    store, _, _ = written(tmp_path)
    for call, said in (
        (lambda: store.rows("layer4.2"), "site of the store 'layer4.2'; close matches: layer4.1"),
        (
            lambda: store.rows(SITE, "gradients"),
            "quantity of 'layer4.1' in the store 'gradients'; choices: contr",
        ),
        (lambda: store.rows(SITE, sign="sums"), "close matches: sum"),
        (lambda: store.column("scores"), "close matches: score"),
        (lambda: store.residual("fc2"), "site of the store 'fc2'"),
    ):
        with pytest.raises(UnknownNameError, match=said):
            call()
    with pytest.raises(InputError, match="holds no residual of 'blocks"):
        store.residual(OTHER)
    with pytest.raises(InputError, match="not kept by position"):
        store.maps(SITE, "contributions", [0])
    with pytest.raises(InputError, match="holds no logits"):
        _ = Store.of(tmp_path / "plain", {SITE: normal(3, 2)}).logits


def test_what_is_no_store_or_a_damaged_one_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no such folder"):
        Store.open(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"it has no store\.json"):
        Store.open(tmp_path)
    store, _, _ = written(tmp_path)
    folder = store.folder
    with pytest.raises(InputError, match="holds a store already"):
        Store.of(folder, {SITE: normal(3, 2)})
    chunk = folder / ARRAYS / f"sites/{SITE}/contributions/positive/c.1.0"
    bytes_before = chunk.read_bytes()
    for damaged in (bytes_before[:-7], bytes_before[:20] + b"?" + bytes_before[21:], b""):
        chunk.write_bytes(damaged)
        with pytest.raises(InputError, match="damaged: cannot read"):
            store.rows(SITE).read(0, 11)
    chunk.unlink()
    assert store.rows(SITE).read(0, 4).shape == (4, 3)
    with pytest.raises(InputError, match=r"damaged: the file .*c\.1\.0' is gone"):
        store.rows(SITE).read(0, 5)
    mark = folder / MARKS / "00000002.json"
    mark.write_text("{")
    with pytest.raises(InputError, match=r"cannot read .*00000002\.json"):
        Store.open(folder)
    said = json.loads((folder / "store.json").read_text())
    (folder / "store.json").write_text(json.dumps({**said, "format": 2}))
    with pytest.raises(InputError, match="is a store of format 2; this Backlight reads format 1"):
        Store.open(folder)
    (folder / "store.json").write_text("[]")
    with pytest.raises(InputError, match=r"is not the store\.json of a store"):
        Store.open(folder)


def test_arrays_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    for given_, said in (
        ({"names": ["a", "a", "b"]}, "3 distinct names"),
        ({"names": ["a"]}, "3 distinct names"),
        ({"columns": {"score": [1.0, 2.0]}}, "one entry a sample"),
        ({"columns": {"score": [[1.0], [2.0], [3.0]]}}, "one number a sample"),
    ):
        with pytest.raises(InputError, match=said):
            Store.of(tmp_path / "s", {SITE: normal(3, 2)}, **given_)
    assert not (tmp_path / "s").exists()


@given(width=st.integers(1, 2_000_000), batch=st.integers(1, 16), batches=st.integers(1, 12))
@settings(max_examples=50, deadline=None)
def test_chunks_divide_blocks_into_whole_batches_of_bounded_size(width: int, batch: int, batches: int) -> None:
    array = np.broadcast_to(np.float32(0), (1, width))
    chunk = Layout.of({"a": array}, batch, batch * batches).chunks["a"]
    assert (batch * batches) % chunk == 0
    assert chunk % batch == 0
    assert chunk == batch or chunk * width * 4 <= 2**22


def test_stores_of_other_numbers_have_another_identity(tmp_path: Path) -> None:
    """What is made of a store is not taken for what was made of another one."""
    rows = torch.rand(4, 3)
    one, same, other = (
        Store.of(tmp_path / name, {"a": values}).identity
        for name, values in (("one", rows), ("same", rows), ("other", rows + 1))
    )
    assert one == same != other
    with pytest.raises(InputError, match=r"\[n, C\]"):
        Store.of(tmp_path / "flat", {"a": torch.rand(4)})
