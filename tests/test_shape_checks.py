"""The suite's own checker of shapes and types: it refuses what does not fit, and leaves the rest as it is."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from jaxtyping import TypeCheckError
from shape_checks import install

SOURCE = '''"""A module."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Self

from torch import Tensor

from backlight.shapes import Float

Rows = Float[Tensor, "N C"]
made = []


def paired(a: Float[Tensor, "N C"], b: Float[Tensor, "N"]) -> Float[Tensor, "N"]:
    return b


def shortened(a: Rows) -> Rows:
    return a[1:]


def scaled(a: Tensor, by: float = 1.0) -> Tensor:
    return a * by


def of_other_names(a: Float[Tensor, "N C"]) -> Float[Tensor, "C N"]:
    return paired_backwards(a.T, a)


def paired_backwards(a: Float[Tensor, "N C"], b: Float[Tensor, "C N"]) -> Float[Tensor, "N C"]:
    return a


def rows(a: Float[Tensor, "N C"]) -> Iterator[Float[Tensor, "C"]]:
    yield from a


def rows_of_rows(a: Float[Tensor, "N C"]) -> list[float]:
    return [float(sum(row)) for row in rows(a[:, :1])]


def outer(a: Float[Tensor, "N"]) -> Callable[[Tensor], Tensor]:
    def inner(b: Float[Tensor, "N"]) -> Float[Tensor, "N"]:
        return b

    made.append(inner)
    return inner


@dataclass(frozen=True)
class Pair:
    a: Float[Tensor, "N"]
    b: Float[Tensor, "N"]

    @property
    def both(self) -> Float[Tensor, "2"]:
        return self.a

    @classmethod
    def of(cls, a: Float[Tensor, "N"]) -> Self:
        return cls(a, a)
'''


@pytest.fixture
def probe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    name = "module_with_shapes"
    (tmp_path / f"{name}.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path])  # which `install` adds to
    install([name])
    yield importlib.import_module(name)
    sys.modules.pop(name)


def test_sizes_of_one_name_are_one_in_what_is_taken_and_given(probe: ModuleType) -> None:
    x = torch.zeros(3, 2)
    assert probe.paired(x, x[:, 0]) is not None
    with pytest.raises(TypeCheckError):
        probe.paired(x, x[0])
    with pytest.raises(TypeCheckError):
        probe.shortened(x)
    with pytest.raises(TypeCheckError):
        probe.paired(x.long(), x[:, 0])


def test_a_call_inside_has_sizes_of_its_own(probe: ModuleType) -> None:
    assert probe.of_other_names(torch.zeros(3, 2)).shape == (2, 3)
    assert probe.rows_of_rows(torch.zeros(3, 2)) == [0.0, 0.0, 0.0]
    with pytest.raises(TypeCheckError):
        probe.rows(torch.zeros(3))  # where it is called


def test_types_are_checked_where_there_are_no_shapes(probe: ModuleType) -> None:
    assert probe.scaled(torch.ones(2), 2.0).tolist() == [2.0, 2.0]
    with pytest.raises(TypeCheckError):
        probe.scaled(torch.ones(2), 2)
    with pytest.raises(TypeCheckError):
        probe.scaled([1.0])


def test_what_a_dataclass_is_made_with_and_its_properties_are_checked(probe: ModuleType) -> None:
    x = torch.zeros(3)
    assert probe.Pair(x[:2], x[:2]).both.shape == (2,)
    assert probe.Pair.of(x).b is x
    with pytest.raises(TypeCheckError):
        probe.Pair(x, x[:2])
    with pytest.raises(TypeCheckError):
        _ = probe.Pair(x, x).both


def test_functions_inside_functions_are_left_alone(probe: ModuleType) -> None:
    x = torch.zeros(3)
    assert probe.outer(x) is probe.made[0]
    assert not hasattr(probe.made[0], "__wrapped__")
    assert probe.made[0]("no tensor") == "no tensor"


def test_the_package_is_checked() -> None:
    from backlight.metrics.correlation import pearson
    from backlight.metrics.sparseness import Sparseness

    with pytest.raises(TypeCheckError):
        pearson([1.0, 2.0], [2.0, 1.0])
    with pytest.raises(TypeCheckError):
        Sparseness(offset=1)
