"""Sparse dictionary learning: atoms that were planted are found, scikit-learn's own result, kill and resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from backlight.decompositions import Decomposition
from backlight.decompositions.sparse_dictionary_learning import SparseDictionaryLearning
from backlight.errors import InputError
from backlight.store.rows import TensorRows, shuffled

sklearn = pytest.importorskip("sklearn.decomposition")


def planted(n: int = 1200, count: int = 24, channels: int = 16, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Rows that are two or three atoms of length 1 each, and the atoms."""
    draw = np.random.default_rng(seed)
    atoms = draw.standard_normal((count, channels))
    atoms /= np.linalg.norm(atoms, axis=1, keepdims=True)
    codes = np.zeros((n, count))
    for row in codes:
        row[draw.choice(count, draw.integers(1, 4), replace=False)] = draw.choice([-1, 1]) * (1 + draw.random())
    return torch.from_numpy(codes @ atoms).float() * 7, torch.from_numpy(atoms).float()


def test_planted_atoms_are_found() -> None:
    x, atoms = planted()
    told: list[Any] = []
    one = SparseDictionaryLearning(n_modes=24, epochs=8, batch_size=64).fit(x, held_out=x[:100], progress=told.append)
    likeness = (one.modes @ atoms.T).abs().amax(0)
    assert float(likeness.median()) > 0.98
    assert float((likeness > 0.95).float().mean()) > 0.7  # the others are mixtures of two
    assert told[-1].r2 > 0.9
    assert told[-1].held_out_r2 > 0.9
    z = one.encode(x)
    assert float((z != 0).float().sum(1).mean()) < 8
    rest = x - one.decode(z)
    penalty = one.state["penalty"]
    torch.testing.assert_close(float(penalty), float(0.1 * x.square().sum(1).mean().sqrt()), rtol=1e-5, atol=0)
    assert float((rest @ one.modes.T).abs().max()) <= float(penalty) * 1.02  # the LASSO's condition


def test_the_atoms_are_scikit_learns() -> None:
    x, _ = planted(300)
    one = SparseDictionaryLearning(n_modes=20, epochs=2, batch_size=50).fit(x)
    scale = float(x.double().square().sum(1).mean().sqrt())
    chosen = np.sort(np.random.default_rng((0, 0)).choice(np.flatnonzero(x.norm(dim=1).numpy()), 20, replace=False))
    first = x[chosen].double() / x[chosen].double().norm(dim=1, keepdim=True)
    learner = sklearn.MiniBatchDictionaryLearning(
        20, alpha=0.1, fit_algorithm="cd", dict_init=first.numpy(), random_state=0, transform_max_iter=1000
    )
    for epoch in range(2):
        for batch in shuffled(TensorRows(x), 50, 0, epoch):
            learner.partial_fit((batch.double() / scale).numpy())
    expected = learner.components_ / np.linalg.norm(learner.components_, axis=1, keepdims=True)
    np.testing.assert_allclose(one.modes.numpy(), expected, atol=1e-3)


def test_codes_that_are_not_negative() -> None:
    x, _ = planted(200)
    one = SparseDictionaryLearning(n_modes=20, epochs=1, positive=True).fit(x)
    assert (one.encode(x) >= 0).all()


def test_a_killed_fit_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x, _ = planted(300)

    def made() -> SparseDictionaryLearning:
        return SparseDictionaryLearning(n_modes=20, epochs=4, batch_size=64)

    whole = made().fit(x)

    class Killed(Exception): ...

    def stop(epoch: Any) -> None:
        if epoch.number == 3:
            raise Killed

    monkeypatch.setattr("backlight.decompositions.checkpoints.SHARE", 1e9)
    with pytest.raises(Killed):
        made().fit(x, folder=tmp_path, progress=stop)
    told: list[Any] = []
    again = made().fit(x, folder=tmp_path, progress=told.append)
    assert [epoch.number for epoch in told] == [3, 4]
    assert torch.equal(again.modes, whole.modes)
    assert again.history == whole.history
    again.save(tmp_path / "saved")
    assert torch.equal(Decomposition.load(tmp_path / "saved").encode(x), whole.encode(x))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [({"n_modes": 31}, "fewer modes"), ({"alpha": 0.0}, "positive"), ({"algorithm": "fast"}, "cd, lars")],
)
def test_settings_that_cannot_be(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        SparseDictionaryLearning(**{"n_modes": 5, **wrong}).fit(planted(30)[0])
    with pytest.raises(InputError, match="nothing to learn"):
        SparseDictionaryLearning(n_modes=2).fit(torch.zeros(5, 3))
    few = torch.zeros(9, 3)
    few[0] = 1
    with pytest.raises(InputError, match="1 rows that are not zero"):
        SparseDictionaryLearning(n_modes=2).fit(few)
