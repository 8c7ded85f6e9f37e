"""Rows in pieces: everything once, in an order that depends on the seed alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from backlight.errors import InputError
from backlight.store import Chosen, TensorRows, pieces, shuffled


def numbered(n: int) -> TensorRows:
    """Row i holds i and -i."""
    column = torch.arange(float(n))
    return TensorRows(torch.stack((column, -column), 1))


@given(n=st.integers(1, 60), batch=st.integers(1, 20), read=st.integers(1, 25), seed=st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_a_shuffle_holds_every_row_once(n: int, batch: int, read: int, seed: int) -> None:
    batches = list(shuffled(numbered(n), batch, seed, read=read))
    assert [len(part) for part in batches[:-1]] == [batch] * (len(batches) - 1)
    assert sorted(torch.cat(batches)[:, 0].tolist()) == list(range(n))
    again = list(shuffled(numbered(n), batch, seed, read=read))
    assert all(torch.equal(a, b) for a, b in zip(batches, again, strict=True))


def test_epochs_differ() -> None:
    first, second = (torch.cat(list(shuffled(numbered(50), 8, 0, epoch))) for epoch in (0, 1))
    assert not torch.equal(first, second)


@given(st.sets(st.integers(0, 39), min_size=1), st.integers(1, 7))
@settings(max_examples=60, deadline=None)
def test_chosen_rows_are_those_of_the_matrix(positions: set[int], size: int) -> None:
    wanted = sorted(positions)
    chosen = Chosen(numbered(40), wanted)
    assert chosen.shape == (len(wanted), 2)
    assert torch.cat([part for _, part in pieces(chosen, size)])[:, 0].tolist() == wanted


def test_what_is_no_matrix_is_refused() -> None:
    with pytest.raises(InputError, match=r"matrix \[n, C\]"):
        TensorRows(torch.zeros(3))
    for positions in ([2, 1], [1, 1], [], [5]):
        with pytest.raises(InputError):
            Chosen(numbered(5), positions)
    assert Chosen(numbered(5), np.array([4])).read(0, 1)[0, 0] == 4
