"""Reduction: the literal loops of the definition on every layout, and how a layout is told."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from backlight.contributions.reduction import Layout, grouped, layout_of, reduce
from backlight.errors import InputError, SiteError, UnknownNameError


def literal(value: Tensor, kind: str, skipped: int = 0) -> tuple[list[list[float]], list[list[float]]]:
    """P and N by loops over images, channels and positions."""
    positive, negative = [], []
    for one in value.double().tolist():
        if kind == "vectors":
            by_channel = [[v] for v in one]
        elif kind == "tokens":
            by_channel = [list(column) for column in zip(*one[skipped:], strict=True)]
        elif kind == "maps":
            by_channel = [[v for row in channel for v in row] for channel in one]
        else:
            cells = [cell for row in one for cell in row]
            by_channel = [list(column) for column in zip(*cells, strict=True)]
        positive.append([sum(v for v in values if v > 0) for values in by_channel])
        negative.append([sum(v for v in values if v < 0) for values in by_channel])
    return positive, negative


SHAPES = {"maps": (2, 3, 4, 5), "channels-last": (2, 4, 5, 3), "tokens": (2, 7, 3), "vectors": (2, 3)}


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_the_literal_loops(kind: str, dtype: torch.dtype) -> None:
    value = torch.randn(SHAPES[kind], dtype=dtype)
    found = reduce(value, Layout(kind))
    positive, negative = literal(value, kind)
    torch.testing.assert_close(found.positive, torch.tensor(positive, dtype=dtype))
    torch.testing.assert_close(found.negative, torch.tensor(negative, dtype=dtype))
    assert (found.positive >= 0).all()
    assert (found.negative <= 0).all()
    torch.testing.assert_close(found.sum, torch.tensor(positive, dtype=dtype) + torch.tensor(negative, dtype=dtype))
    assert torch.equal(found.concat, torch.cat([found.positive, found.negative], 1))


def test_the_sign_is_split_before_the_sum_not_after() -> None:
    value = torch.tensor([[[[3.0, -3.0], [1.0, -2.0]]]])
    found = reduce(value, Layout("maps"))
    assert found.positive.item() == 4
    assert found.negative.item() == -5  # after the sum: 0 and -1


def test_prefix_tokens_are_left_out_on_request_alone() -> None:
    value = torch.randn(2, 7, 3)
    whole, patches = reduce(value, Layout("tokens", 2)), reduce(value, Layout("tokens", 2), class_token=False)
    torch.testing.assert_close(whole.positive, torch.tensor(literal(value, "tokens")[0]))
    torch.testing.assert_close(patches.positive, torch.tensor(literal(value, "tokens", 2)[0]))
    torch.testing.assert_close(patches.sum, reduce(value[:, 2:], Layout("tokens")).sum)


def test_heads_are_consecutive_dimensions_split_before_any_sum() -> None:
    value = torch.randn(2, 7, 6)
    found = reduce(value, Layout("tokens", 1), heads=3)
    by_head = value.reshape(2, 7, 3, 2)
    for image in range(2):
        for head in range(3):
            entries = by_head[image, :, head].flatten().tolist()
            assert found.positive[image, head].item() == pytest.approx(sum(v for v in entries if v > 0))
            assert found.negative[image, head].item() == pytest.approx(sum(v for v in entries if v < 0))
    rows = reduce(value, Layout("tokens", 1))
    torch.testing.assert_close(grouped(rows.positive, 3), found.positive)


@given(st.integers(1, 3), st.integers(1, 5), st.integers(1, 6), st.integers(0, 2**31 - 1))
@settings(max_examples=30, deadline=None)
def test_layouts_agree_on_the_same_numbers(n: int, channels: int, side: int, seed: int) -> None:
    maps = torch.randn(n, channels, side, side + 1, generator=torch.Generator().manual_seed(seed))
    found = reduce(maps, Layout("maps"))
    for value, kind in ((maps.movedim(1, -1), "channels-last"), (maps.flatten(2).transpose(1, 2), "tokens")):
        other = reduce(value, Layout(kind))
        assert torch.equal(other.positive, found.positive)
        assert torch.equal(other.negative, found.negative)
    torch.testing.assert_close(found.sum, maps.sum((2, 3)), atol=1e-5, rtol=1e-5)


def test_long_sums_are_taken_in_float64_and_halves_are_widened() -> None:
    value = torch.full((1, 1, 4096, 64), 0.1)
    value[0, 0, 0, 0] = 3e6
    exact = (value.double().sum()).item()
    assert reduce(value, Layout("maps")).positive.item() == pytest.approx(exact, rel=6e-8)
    half = reduce(torch.full((1, 2, 300, 300), 1.0, dtype=torch.bfloat16), Layout("maps"))
    assert half.positive.dtype == torch.float32
    assert half.positive[0, 0].item() == 90_000


def test_a_row_does_not_depend_on_its_batch() -> None:
    value = torch.randn(5, 3, 4, 4)
    whole = reduce(value, Layout("maps")).positive
    assert all(torch.equal(reduce(value[i : i + 1], Layout("maps")).positive, whole[i : i + 1]) for i in range(5))


@pytest.mark.parametrize("text", ["maps", "channels-last", "tokens", "tokens+5", "vectors"])
def test_a_layout_is_what_it_prints(text: str) -> None:
    assert str(Layout.parse(text)) == text


def test_wrong_layouts_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="channels-last"):
        Layout("channel-last")
    with pytest.raises(InputError):
        Layout("maps", 1)
    with pytest.raises(InputError, match=r"tokens\+PREFIX"):
        Layout.parse("tokens+one")
    with pytest.raises(SiteError, match=r"\[2, 3\] cannot be read as tokens"):
        reduce(torch.randn(2, 3), Layout("tokens"))
    with pytest.raises(InputError, match="6 channels do not divide into 4 heads"):
        reduce(torch.randn(2, 7, 6), Layout("tokens"), heads=4)


def conv() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())


class Permuting(nn.Module):
    """Channels last inside (Swin), or moved there and back (ConvNeXt)."""

    def __init__(self, back: bool) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 4, 4)
        self.block = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))
        self.back = back


TOLD: dict[str, tuple[Any, ...]] = {
    "vectors": ((2, 8), conv(), "0", None, "vectors"),
    "a convolution": ((2, 8, 5, 8), conv(), "0", None, "maps"),
    "a ReLU after it, of a cube": ((2, 8, 8, 8), conv(), "2", None, "maps"),
    "its input": ((2, 3, 8, 8), conv(), "0:input", None, "maps"),
    "a linear layer of a map": ((2, 6, 6, 8), Permuting(False), "block", None, "channels-last"),
    "moved back": ((2, 8, 6, 6), Permuting(True), "block", None, "maps"),
    "its MLP": ((2, 6, 6, 16), Permuting(True), "block.3:input", None, "channels-last"),
    "an activation there": ((2, 6, 6, 16), Permuting(True), "block.2", (24, 24), "channels-last"),
    "tokens": ((2, 5, 8), Permuting(False), "block", None, "tokens"),
    "a sequence in a 1d network": ((2, 8, 5), nn.Sequential(nn.Conv1d(3, 8, 3), nn.ReLU()), "1", None, "maps"),
    "time and space": ((2, 8, 5, 6, 6), nn.Sequential(nn.Conv3d(1, 8, 3), nn.ReLU()), "1", None, "maps"),
    "nothing known but the input": ((2, 6, 6, 8), None, None, (24, 24), "channels-last"),
    "nothing known but the input, first": ((2, 8, 6, 6), None, None, (24, 24), "maps"),
}


@pytest.mark.parametrize("name", TOLD)
def test_layouts_are_told(name: str) -> None:
    shape, model, site, size, expected = TOLD[name]
    assert str(layout_of(torch.zeros(shape), model, site, size=size)) == expected


def test_what_cannot_be_told_is_asked_for() -> None:
    ambiguous = torch.zeros(2, 8, 8, 8)
    with pytest.raises(SiteError, match=r"\[2, 8, 8, 8\].*pass layout='maps'"):
        layout_of(ambiguous, nn.Sequential(Permuting(False)), "0", size=(32, 32))  # a convolution first, a linear last
    with pytest.raises(SiteError, match="pass layout="):
        layout_of(torch.zeros(2, 5, 8))
    assert str(layout_of(ambiguous, layout="channels-last")) == "channels-last"
    assert str(layout_of(torch.zeros(2, 5, 8), layout=Layout("tokens", 1))) == "tokens+1"
    with pytest.raises(SiteError, match="cannot be read as tokens"):
        layout_of(ambiguous, layout="tokens")
    with pytest.raises(UnknownNameError, match="block"):
        layout_of(ambiguous, Permuting(False), "blok")


class Transformer(Permuting):
    """With a class token and four registers."""

    def __init__(self) -> None:
        super().__init__(False)
        self.cls_token, self.reg_token = nn.Parameter(torch.zeros(1, 1, 8)), nn.Parameter(torch.zeros(1, 4, 8))


def test_prefix_tokens_are_those_the_model_declares_unless_no_grid_is_left() -> None:
    model = Transformer()
    assert str(layout_of(torch.zeros(2, 21, 8), model, "block", size=(16, 16))) == "tokens+5"
    assert str(layout_of(torch.zeros(2, 21, 8), model, "block")) == "tokens+5"
    assert str(layout_of(torch.zeros(2, 16, 8), model, "block", size=(16, 16))) == "tokens"  # appended later
    model.num_prefix_tokens = 1  # type: ignore[assignment]
    assert str(layout_of(torch.zeros(2, 17, 8), model, "block", size=(16, 16))) == "tokens+1"
    assert str(layout_of(torch.zeros(2, 9, 8), model, "block", size=(8, 16))) == "tokens+1"
