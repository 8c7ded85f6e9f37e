"""Standings of attributors that have not measured the same pairs."""

from __future__ import annotations

from typing import Any

import numpy as np

from backlight.benchmarks.cafe_report import Layer, _best, _notes, standings


class Measured(Layer):
    """Two images for each of five latents; the second image is harder."""

    def __init__(self) -> None:
        draw = np.random.default_rng(0)
        whole = draw.uniform(0.4, 0.6, 10) - np.tile([0.0, 0.3], 5)
        few = np.where(np.arange(10) % 2 == 0, whole, np.nan)
        object.__setattr__(self, "values", np.stack([whole, few, whole - 0.01], 1))

    @property
    def latents(self) -> list[int]:
        return [number for number in range(5) for _ in range(2)]

    def areas(self, orders: Any, column: str) -> np.ndarray:
        return self.values  # type: ignore[attr-defined,no-any-return]


def test_differences_are_of_the_same_pairs() -> None:
    names = ["AttnLRP", "KernelSHAP", "Random"]
    found = standings([Measured()], names, "area", "AttnLRP")
    assert found["KernelSHAP"].pairs == 5
    assert found["KernelSHAP"].against.mean == 0.0
    assert found["KernelSHAP"].against.low == found["KernelSHAP"].against.high == 0.0
    assert found["KernelSHAP"].wins == 0.5
    assert abs(found["Random"].against.mean + 0.01) < 1e-12


def test_a_mean_of_easier_pairs_is_neither_best_nor_noted() -> None:
    names = ["AttnLRP", "KernelSHAP", "Random"]
    found = standings([Measured()], names, "area", "AttnLRP")
    assert found["KernelSHAP"].area.mean > found["AttnLRP"].area.mean
    assert _best(found, delete=False) == "AttnLRP"
    assert _notes({"blocks.2": found}, names, delete=False) == []
    assert _notes({"blocks.2": found}, names, delete=True) == ["blocks.2: Random is ranked above AttnLRP."]
