"""Targets of sequences against literal indexing."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from backlight.engine import Contrast, Entropy, Logit, LogProbability
from backlight.engine.token_targets import At, SpanLoss, last_tokens
from backlight.errors import TargetError


@pytest.fixture
def outputs() -> Tensor:
    return torch.randn(3, 5, 7, generator=torch.Generator().manual_seed(0))


def test_a_target_at_a_token_is_that_of_its_outputs(outputs: Tensor) -> None:
    rows = torch.arange(3)
    assert torch.equal(At(Logit(4))(outputs), outputs[:, -1, 4])
    assert torch.equal(At(4, position=2)(outputs), outputs[:, 2, 4])
    places, tokens = torch.tensor([0, 4, 2]), torch.tensor([6, 1, 3])
    assert torch.equal(At(Logit(tokens), position=places)(outputs), outputs[rows, places, tokens])
    assert torch.equal(At(Contrast(1, 2))(outputs), outputs[:, -1, 1] - outputs[:, -1, 2])
    assert torch.equal(At(Entropy(), 1)(outputs), Entropy()(outputs[:, 1]))
    assert torch.equal(At(LogProbability(0), 1)(outputs), outputs[:, 1].log_softmax(1)[:, 0])


def test_what_is_left_open_is_chosen_at_the_token(outputs: Tensor) -> None:
    target = At(None, position=1)
    assert target.chooses
    fixed = target.fixed(outputs)
    assert not fixed.chooses
    assert torch.equal(fixed(outputs), outputs[:, 1].amax(1))
    assert torch.equal(fixed(-outputs), -outputs[:, 1].amax(1))


def test_rows_follow_the_samples(outputs: Tensor) -> None:
    target = At(Logit(torch.tensor([6, 1, 3])), position=torch.tensor([0, 4, 2]))
    rows = torch.tensor([2, 0])
    assert torch.equal(target.rows(rows)(outputs[rows]), target(outputs)[rows])
    span = SpanLoss(torch.arange(15).reshape(3, 5) % 7)
    torch.testing.assert_close(span.rows(rows)(outputs[rows]), span(outputs)[rows])


def test_the_loss_of_a_span_is_cross_entropy(outputs: Tensor) -> None:
    tokens = torch.arange(15).reshape(3, 5) % 7
    for start, stop in ((1, 5), (2, 4), (4, 5)):
        expected = torch.stack(
            [F.cross_entropy(outputs[n, start - 1 : stop - 1], tokens[n, start:stop]) for n in range(3)]
        )
        torch.testing.assert_close(SpanLoss(tokens, start, stop)(outputs), expected)
    torch.testing.assert_close(SpanLoss(tokens[0])(outputs)[0], SpanLoss(tokens)(outputs)[0])


def test_the_last_token_that_is_there() -> None:
    mask = torch.tensor([[1, 1, 1, 0], [0, 1, 1, 1], [1, 0, 0, 0]])
    assert last_tokens(mask).tolist() == [2, 3, 0]


def test_errors(outputs: Tensor) -> None:
    with pytest.raises(TargetError, match="needs outputs"):
        At(0)(outputs[:, 0])
    with pytest.raises(TargetError, match="out of range"):
        At(0, position=5)(outputs)
    with pytest.raises(TargetError, match="start < stop"):
        SpanLoss(torch.zeros(5, dtype=torch.long), 0)(outputs)
    with pytest.raises(TargetError, match="expected"):
        SpanLoss(torch.zeros(4, dtype=torch.long))(outputs)
    with pytest.raises(TargetError, match="4 sequences for 3"):
        SpanLoss(torch.zeros(4, 5, dtype=torch.long)).check(3)
    with pytest.raises(TargetError, match="for 3 samples"):
        At(Logit(torch.tensor([0, 1]))).check(3)
