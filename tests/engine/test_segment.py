"""Segments: the part of a model between two sites, bit for bit, without what lies around it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backlight.engine.segment import OUTPUT, Segment
from backlight.errors import InputError, ModelError, SiteError, UnknownNameError
from backlight.rules import rule_set

torch.manual_seed(0)


class Counted(nn.Conv2d):
    """A convolution that notes in how many bytes its input lies: one number's, of a stand-in."""

    def forward(self, x: Tensor) -> Tensor:
        with torch._C.DisableTorchFunction():
            self.seen = x.untyped_storage().nbytes()
        return super().forward(x)


class Leaping(nn.Module):
    """Three blocks, with a connection from the first past the second, and writes in place."""

    def __init__(self) -> None:
        super().__init__()
        self.first = Counted(3, 4, 3, padding=1)
        self.second = Counted(4, 4, 3, padding=1)
        self.act = nn.ReLU(inplace=True)
        self.third = Counted(4, 4, 3, padding=1)
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu_(self.first(x))
        y = self.act(self.second(x))
        y = (y + x).mul_(2)
        z = self.third(y).relu_()
        return self.head(z.mean((2, 3)))


@pytest.fixture
def model() -> Leaping:
    return Leaping().double().eval()


@pytest.fixture
def x() -> Tensor:
    return torch.randn(3, 3, 6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


PAIRS = [("first", "third"), ("second", OUTPUT), ("act", "third"), ("third", OUTPUT), ("third:input", "third"),
         ("input", "second"), ("first", "act"), ("second", "third:input")]  # fmt: skip


@pytest.mark.parametrize(("start", "stop"), PAIRS)
def test_a_segment_is_the_model_between_its_sites(model: Leaping, x: Tensor, start: str, stop: str) -> None:
    segment, whole = Segment(model, x, start, stop), Segment(model, x, start, stop, skip=False)
    assert torch.equal(segment(segment.start_value), segment.stop_value)
    value = torch.randn_like(segment.start_value).requires_grad_()
    there, again = segment(value), whole(value)
    assert torch.equal(there, again)
    (ours,), (theirs,) = (torch.autograd.grad(y.square().sum(), value) for y in (there, again))
    assert torch.equal(ours, theirs)
    assert segment.skip


@pytest.mark.parametrize(("start", "stop"), PAIRS)
def test_rows_say_of_which_input_an_entry_is_a_version(model: Leaping, x: Tensor, start: str, stop: str) -> None:
    segment = Segment(model, x, start, stop)
    for rows in (torch.tensor([2, 0, 0, 1, 2]), torch.tensor([1, 1, 1, 1, 0]), torch.tensor([1])):
        torch.testing.assert_close(segment(segment.start_value[rows], rows), segment.stop_value[rows])


@pytest.mark.parametrize("start", ["act", "second"])
def test_what_leaps_over_the_site_is_that_of_the_row(model: Leaping, x: Tensor, start: str) -> None:
    segment = Segment(model, x, start, "third")
    for rows in ([1], [2], [0, 1], [2], [1, 0], [0], [2, 2, 1], [0, 1, 2]):
        chosen = torch.tensor(rows)
        torch.testing.assert_close(segment(segment.start_value[chosen], chosen), segment.stop_value[chosen])


def test_a_model_in_training_mode_is_refused_and_left_alone(x: Tensor) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).double()
    before = model[1].running_mean.clone()
    with pytest.raises(ModelError, match="training mode"):
        Segment(model, x, "0", "2")
    assert torch.equal(model[1].running_mean, before)


def test_what_lies_around_is_not_computed(model: Leaping, x: Tensor) -> None:
    segment = Segment(model, x, "third:input", "third")
    segment(segment.start_value)
    model.head.forward = None  # type: ignore[assignment,method-assign]
    segment(segment.start_value)
    assert model.second.seen == 8  # the stand-in for what it is given holds one number
    assert model.third.seen == segment.start_value.nbytes


def test_a_connection_that_leaps_over_the_site_keeps_its_value(model: Leaping, x: Tensor) -> None:
    segment = Segment(model, x[:1], "act", "third:input")
    zero = segment(torch.zeros_like(segment.start_value))
    with torch.no_grad():
        torch.testing.assert_close(zero, 2 * F.relu(model.first(x[:1])))


def test_nothing_is_left_on_the_model(model: Leaping, x: Tensor) -> None:
    before = model(x)
    segment = Segment(model, x, "second", "third")
    segment(segment.start_value)
    assert not any(one._forward_hooks or one._forward_pre_hooks for one in model.modules())
    assert torch.equal(model(x), before)
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


def test_rules_decide_the_cotangent(model: Leaping, x: Tensor) -> None:
    plain = Segment(model, x, "second", OUTPUT)
    guided = Segment(model, x, "second", OUTPUT, rules=rule_set("guided"))
    value = plain.start_value.clone().requires_grad_()
    assert torch.equal(plain(value), guided(value))
    assert not torch.equal(
        *(torch.autograd.grad(one(value)[:, 0].sum(), value)[0] for one in (plain, guided)),
    )


class Unseen(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return x + 1

    @staticmethod
    def backward(ctx, g: Tensor) -> Tensor:
        return g


class Hidden(nn.Module):
    """What leaps over the site comes from a function that no torch function mode sees."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.last = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        leap = Unseen.apply(x)
        return self.last(self.layer(x) + leap)


def test_where_a_model_computes_unseen_nothing_is_skipped() -> None:
    model, x = Hidden().eval(), torch.randn(2, 4)
    segment = Segment(model, x, "layer")
    torch.testing.assert_close(segment(segment.start_value), model(x))
    torch.testing.assert_close(segment(torch.zeros_like(segment.start_value)), model.last(x + 1), rtol=1e-5, atol=1e-6)


def test_errors(model: Leaping, x: Tensor) -> None:
    with pytest.raises(UnknownNameError, match="second"):
        Segment(model, x, "secnd", "third")
    with pytest.raises(SiteError, match="comes before"):
        Segment(model, x, "third", "second")
    with pytest.raises(SiteError, match="twice"):
        Segment(model, x, "third", "third")
    segment = Segment(model, x, "second", "third")
    with pytest.raises(InputError, match="5 values for 3 inputs"):
        segment(torch.zeros(5, 4, 6, 6, dtype=torch.float64))
    with pytest.raises(InputError, match="a sample"):
        segment(torch.zeros(3, 5, 6, 6, dtype=torch.float64))


def test_a_site_that_runs_twice_needs_its_number() -> None:
    layer = nn.ReLU()
    model = nn.Sequential(nn.Linear(4, 4), layer, nn.Linear(4, 4), layer, nn.Linear(4, 2)).eval()
    x = torch.randn(2, 4)
    with pytest.raises(SiteError, match="reached 2 times"):
        Segment(model, x, "1")
    segment = Segment(model, x, "1#1")
    assert torch.equal(segment(segment.start_value), model(x))


class Folding(nn.Module):
    """Folds the axis of samples into others, and computes with its length."""

    def __init__(self, uneven: bool) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.Linear(4, 4) for _ in range(3))
        self.uneven = uneven
        self.entries: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        n, parts, _ = x.shape
        folded = self.first(x.reshape(n * parts, 4))
        with torch._C.DisableTorchFunction():
            self.entries.append(folded.untyped_storage().nbytes() // (8 * 4 * parts))
        halves = folded.relu().chunk(2, 0)
        if self.uneven:
            halves = halves[0].split(max(1, n * n)) + halves[1:]
        joined = torch.cat(halves).reshape(n, parts, 4)
        return self.third(self.second(joined).relu_())


@pytest.mark.parametrize("uneven", [False, True])
def test_few_passes_tell_what_more_entries_give(uneven: bool) -> None:
    """What lies before the site runs for three entries at most, unless what it gives does not go on evenly."""
    model = Folding(uneven).double()
    x = torch.randn(2, 6, 4, dtype=torch.float64)
    segment = Segment(model, x, "second", "third")
    model.entries.clear()
    value, rows = torch.randn(9, 6, 4, dtype=torch.float64), torch.arange(9) % 2
    expected = model.third(value.relu())
    torch.testing.assert_close(segment(value, rows), expected)
    assert max(model.entries) == (9 if uneven else 3)
    torch.testing.assert_close(segment(value[:5], rows[:5]), expected[:5])
