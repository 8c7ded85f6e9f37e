"""The Gini index: closed forms, the paper's formula term by term, invariances."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from backlight.errors import InputError, UnknownNameError
from backlight.metrics import Case
from backlight.metrics.sparseness import Sparseness, sparseness


def literal(values: list[float]) -> float:
    """Equation 33 of the iERF framework, term by term."""
    ordered, total, d = sorted(abs(v) for v in values), sum(abs(v) for v in values), len(values)
    return 1 - 2 * sum(v / total * (d - k + 0.5) / d for k, v in enumerate(ordered, 1))


def test_the_papers_formula() -> None:
    maps = torch.randn(4, 1, 5, 7).double()
    expected = [literal(one.flatten().tolist()) for one in maps]
    assert sparseness(maps).tolist() == pytest.approx(expected, abs=1e-13)
    assert sparseness(torch.tensor([1.0, 2, 3, 4]).reshape(1, 1, 2, 2)).item() == pytest.approx(0.25)


@pytest.mark.parametrize("value", [1.0, -3.0, 1e-30, 1e30])
def test_constant_one_hot_and_zero(value: float) -> None:
    assert sparseness(torch.full((1, 3, 4, 5), value)).item() == 0
    one = torch.zeros(1, 1, 4, 5)
    one[0, 0, 2, 2] = value
    assert sparseness(one).item() == pytest.approx(1 - 1 / 20)
    assert sparseness(torch.zeros(1, 3, 4, 5)).isnan().all()


def test_half_of_the_positions_alike_is_one_half() -> None:
    maps = torch.zeros(1, 1, 4, 4)
    maps[..., :2] = 7
    assert sparseness(maps).item() == pytest.approx(0.5)


def test_scale_order_methods_and_batch_mates() -> None:
    maps = torch.randn(2, 5, 3, 6, 6).double()
    plain = sparseness(maps)
    assert plain.shape == (2, 5)
    assert plain.dtype == torch.float64
    assert ((plain > 0) & (plain < 1)).all()
    assert torch.allclose(sparseness(maps * 1e-15), plain, rtol=1e-12)
    assert torch.allclose(sparseness(maps[..., torch.randperm(6)]), plain, rtol=1e-12)
    mates = maps.clone()
    mates[:, 1:] *= 1e12
    assert torch.equal(sparseness(mates)[:, 0], plain[:, 0])
    assert torch.equal(torch.cat([sparseness(maps[:, i : i + 1]) for i in range(5)], 1), plain)


def test_which_values_count() -> None:
    maps = torch.randn(1, 3, 6, 6).double()
    assert sparseness(maps, unit="feature").item() == pytest.approx(literal(maps.flatten().tolist()))
    assert sparseness(maps).item() == pytest.approx(literal(maps.sum(1).flatten().tolist()))
    assert sparseness(maps, part="positive").item() == pytest.approx(
        literal(maps.sum(1).clamp(min=0).flatten().tolist())
    )
    assert torch.equal(sparseness(-maps), sparseness(maps))
    assert not torch.equal(sparseness(-maps, part="positive"), sparseness(maps, part="positive"))
    one = torch.rand(2, 1, 6, 6)
    assert torch.allclose(sparseness(one.expand(-1, 3, -1, -1), unit="feature"), sparseness(one)), "copies add nothing"


def test_an_offset_lowers_the_index() -> None:
    maps = torch.zeros(1, 1, 100, 100)
    maps[0, 0, 0, 0] = 5
    assert sparseness(maps, offset=1e-7).item() == pytest.approx((1 - 1e-4) / (1 + 1e-3), rel=1e-9)
    assert sparseness(torch.zeros(1, 1, 3, 3), offset=1e-7).item() == 0


def test_focus_of_a_map_raises_the_index() -> None:
    values = torch.rand(1, 1, 8, 8).double()
    found = [sparseness(values**power).item() for power in (0.5, 1, 2, 4, 8)]
    assert found == sorted(found)


def test_the_class_and_errors() -> None:
    case = Case(
        nn.Flatten(), torch.zeros(2, 1, 4, 5), 0, maps={"a": torch.ones(2, 1, 4, 5), "b": torch.randn(2, 1, 4, 5)}
    )
    scores = Sparseness()(case)
    assert scores.shape == (2, 2)
    assert (scores[0] == 0).all()
    assert Sparseness.preset("quantus").offset == 1e-7
    assert not Sparseness().sees_sign
    assert Sparseness.preset("positive").sees_sign
    with pytest.raises(InputError, match="offset"):
        sparseness(torch.ones(1, 1, 2, 2), offset=-1.0)
    with pytest.raises(InputError, match="expected maps"):
        sparseness(torch.ones(2, 2))
    with pytest.raises(UnknownNameError):
        sparseness(torch.ones(1, 1, 2, 2), part="all")
