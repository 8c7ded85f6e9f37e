"""The measures of examples/evidence.py."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def evidence() -> ModuleType:
    pytest.importorskip("matplotlib")
    spec = importlib.util.spec_from_file_location("evidence", ROOT / "examples" / "evidence.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_localisation_counts_what_is_positive_in_the_half(evidence: ModuleType) -> None:
    values = torch.tensor([[1.0, -5.0, 2.0, 0.0], [0.0, 0.0, -9.0, 1.0]])
    assert evidence.localisation(values, 0) == (0.25, False)
    assert evidence.localisation(values, 1) == (0.75, True)
    assert evidence.localisation(-torch.ones(2, 4), 1)[0] == 0


def test_a_map_that_knows_no_class_has_half_on_average(evidence: ModuleType) -> None:
    values = torch.randn(6, 10)
    halves = [evidence.localisation(values, half) for half in (0, 1)]
    assert sum(share for share, _ in halves) == pytest.approx(1)
    assert sum(hit for _, hit in halves) == 1


def test_pairs_have_two_classes_and_take_each_file_once(evidence: ModuleType) -> None:
    labelled = {f"{number}.jpg": number % 3 for number in range(30)}
    found = evidence.pairs(labelled, 8)
    assert found == evidence.pairs(dict(reversed(labelled.items())), 8)
    assert all(labelled[a] != labelled[b] for a, b in found)
    files = [file for pair in found for file in pair]
    assert len(files) == len(set(files)) == 16


def test_pictures_stand_side_by_side(evidence: ModuleType) -> None:
    left, right = torch.randn(3, 4, 4), torch.randn(3, 4, 4)
    both = evidence.beside(left, right)
    assert torch.equal(both[0, :, :, :4], left)
    assert torch.equal(both[0, :, :, 4:], right)


def test_the_extent_of_a_field(evidence: ModuleType) -> None:
    field = torch.zeros(21, 21)
    field[7, 5:10] = torch.tensor([0.2, 0.3, 0.5, 0.3, 0.2])
    field[12, 7] = -0.5
    assert evidence.extent(field) == "sum 1.0000, half within 1 px of (7, 7), 25.0% negative"
    assert evidence.breadth(field) == 6
    assert evidence.cell((78, 67), (14, 14)) == (4, 4)


def test_the_palette_has_256_colours(evidence: ModuleType) -> None:
    colours = evidence.palette()
    assert len(colours) == 3 * 256
    assert min(colours) >= 0
    assert max(colours) <= 255
