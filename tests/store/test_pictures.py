"""Pictures of an `.npz` file as samples: shuffled by number alone, whole in [-1, 1], sent to others as a path."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from backlight.errors import InputError
from backlight.store import ArraySamples

X = np.random.default_rng(0).integers(0, 256, (12, 4, 5, 3), np.uint8)


def written(path: Path, **arrays: Any) -> Path:
    np.savez(path / "a.npz", **arrays)
    return path / "a.npz"


def test_each_picture_is_there_once_under_its_number(tmp_path: Path) -> None:
    samples = ArraySamples(written(tmp_path, x_test=X, y_test=np.arange(12) // 4))
    assert sorted(samples.names) == [f"test/{n:02d}" for n in range(12)]
    assert samples.names != sorted(samples.names)  # such files are sorted by class
    for name in samples.names:
        number, found = int(name[5:]), samples.load(name)
        assert torch.equal(found.inputs, torch.from_numpy(X[number]).permute(2, 0, 1) / 127.5 - 1)
        assert found.target == number // 4
    assert len({samples.content(name) for name in samples.names}) == 12


def test_a_larger_limit_adds_to_a_smaller_one_and_is_the_same_data(tmp_path: Path) -> None:
    path = written(tmp_path, x_train=X)
    few, all_ = ArraySamples(path, "train", 5), ArraySamples(path, "train")
    assert all_.names[:5] == few.names
    assert len(few) == 5
    assert few.fingerprint == all_.fingerprint
    assert few.load(few.names[0]).target is None
    other = written(tmp_path / "..", x_train=X, y_train=np.zeros(12, int))
    assert ArraySamples(other, "train").fingerprint != few.fingerprint


def test_another_process_gets_the_path(tmp_path: Path) -> None:
    samples = ArraySamples(written(tmp_path, x_test=X))
    sent = pickle.dumps(samples)
    assert len(sent) < 1000
    copy = pickle.loads(sent)
    assert torch.equal(copy.load("test/03").inputs, samples.load("test/03").inputs)
    assert copy.fingerprint == samples.fingerprint


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"x": X}, "has no 'x_test'; it has x"),
        ({"x_test": X / 255}, "uint8 pictures"),
        ({"x_test": X[..., :2]}, r"uint8 pictures \[N, H, W, 3\]"),
        ({"x_test": X, "y_test": np.zeros(3, int)}, "3 labels in y_test for 12 pictures"),
        ({"x_test": X[:0]}, "uint8 pictures"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, arrays: dict, said: str) -> None:
    with pytest.raises(InputError, match=said):
        ArraySamples(written(tmp_path, **arrays))


def test_what_is_no_file_of_arrays_is_refused(tmp_path: Path) -> None:
    (tmp_path / "b.npz").write_bytes(b"no zip")
    for path in (tmp_path / "b.npz", tmp_path / "none.npz"):
        with pytest.raises(InputError, match=r"cannot read .* as \.npz"):
            ArraySamples(path)
    with pytest.raises(InputError, match="at least 1"):
        ArraySamples(written(tmp_path, x_test=X), limit=0)
