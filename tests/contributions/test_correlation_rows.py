"""Pearson's correlation of columns with masks: streamed, stable, and 0 where there is none."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import pearsonr

from backlight.contributions.correlation import correlate, correlation
from backlight.errors import InputError
from backlight.store import rows as reading
from backlight.store.rows import TensorRows


def literal(x: np.ndarray, masks: np.ndarray) -> np.ndarray:
    return np.array([[pearsonr(a, b).statistic for b in masks.T.astype(float)] for a in x.T.astype(float)])


def drawn(n: int = 60, columns: int = 7, masks: int = 5, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    x = torch.rand(n, columns, generator=rng)
    return x, torch.rand(n, masks, generator=rng) < 0.3


@pytest.mark.parametrize("masks", [3, 80], ids=["fewer masks than kinds of sample", "more"])
def test_is_scipys(masks: int) -> None:
    x, m = drawn(masks=masks)
    torch.testing.assert_close(correlate(TensorRows(x), m), torch.from_numpy(literal(x.numpy(), m.numpy())))


def test_large_offsets_small_and_large_scales() -> None:
    x, m = drawn(200)
    scales = torch.tensor([1e-30, 1e-12, 1.0, 1e12, 1e18, 1.0, 1.0])
    x = (x * scales + torch.tensor([0, 0, 0, 0, 0, 1e4, -1e5])).float()
    got = correlate(TensorRows(x), m)
    torch.testing.assert_close(got, torch.from_numpy(literal(x.double().numpy(), m.numpy())), rtol=1e-9, atol=1e-11)


def test_pieces_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    x, m = drawn(101)
    whole = correlate(TensorRows(x), m)
    for size in (1, 7, 100):
        monkeypatch.setattr(reading.pieces, "__defaults__", (size,))
        torch.testing.assert_close(correlate(TensorRows(x), m), whole, rtol=1e-12, atol=1e-14)


def test_constants_are_zero_and_counted() -> None:
    x, m = drawn()
    x[:, 2], x[:, 4] = 0.1, 0.0
    m[:, 1], m[:, 3] = True, False
    found = correlation(TensorRows(x), m)
    assert found.constant.tolist() == [False, False, True, False, True, False, False]
    assert found.trivial.tolist() == [False, True, False, True, False]
    assert not found.r[[2, 4]].any()
    assert not found.r[:, [1, 3]].any()
    assert (found.r[[0, 1, 3, 5, 6]][:, [0, 2, 4]] != 0).all()


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), scale=st.floats(1e-3, 1e3), shift=st.floats(-10, 10))
def test_positive_affine_maps_change_nothing_and_complements_flip(seed: int, scale: float, shift: float) -> None:
    x, m = drawn(seed=seed)
    r = correlate(TensorRows(x), m)
    assert r.abs().max() <= 1
    torch.testing.assert_close(correlate(TensorRows(x.double() * scale + shift), m), r, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(correlate(TensorRows(x), ~m), -r)


def test_weights_are_repetitions() -> None:
    x, m = drawn()
    times = torch.randint(0, 4, (len(x),), generator=torch.Generator().manual_seed(3))
    repeated = correlate(TensorRows(x.repeat_interleave(times, 0)), m.repeat_interleave(times, 0))
    torch.testing.assert_close(correlation(TensorRows(x), m, times.double()).r, repeated)


def test_a_column_constant_on_the_counted_samples_has_none() -> None:
    x, m = drawn()
    x[30:, 0] = 1.0
    weights = torch.zeros(60)
    weights[30:] = 1
    found = correlation(TensorRows(x), m, weights)
    assert found.constant.tolist() == [True] + 6 * [False]


def test_an_indicator_correlates_with_itself_alone() -> None:
    labels = torch.arange(40) % 4
    m = labels[:, None] == torch.arange(4)
    torch.testing.assert_close(
        correlate(TensorRows(3 * m.float() + 2), m), torch.full((4, 4), -1 / 3).fill_diagonal_(1).double()
    )


def test_errors_name_the_sizes() -> None:
    x, m = drawn()
    with pytest.raises(InputError, match=r"each of 60 rows.*\[59, 5\]"):
        correlate(TensorRows(x), m[1:])
    with pytest.raises(InputError, match="60 weights"):
        correlation(TensorRows(x), m, torch.zeros(60))
    x[3, 2] = torch.nan
    with pytest.raises(InputError, match=r"\[2\]"):
        correlate(TensorRows(x), m)
