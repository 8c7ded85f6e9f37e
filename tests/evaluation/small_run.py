"""A small evaluation whose every number is known to depend on the seed and the sample alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import backlight
from backlight.data.labelled import Sample
from backlight.errors import ImageError
from backlight.evaluation import Evaluation, TensorSamples, evaluate
from backlight.metrics import FaithfulnessCorrelation, Infidelity

EXACT = ("sample", "method", "target", "predicted", "data")


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        layers = (nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 5))
        return nn.Sequential(*layers).eval()


def pictures(count: int = 7) -> torch.Tensor:
    return torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(5)) * 2 - 1


class Numbered:
    """Samples by number, with some that cannot be read and some without a mask. A limit changes no fingerprint."""

    def __init__(self, count: int = 7, broken: Sequence[str] = (), masked: Sequence[str] = (), of: int = 7) -> None:
        self._samples = TensorSamples(pictures(of), [place % 5 for place in range(of)])
        self.names, self.fingerprint = self._samples.names[:count], "numbers"
        self.broken, self.masked = broken, masked

    def content(self, name: str) -> str:
        return self._samples.content(name) + str(name in self.masked)

    def load(self, name: str) -> Sample:
        if name in self.broken:
            raise ImageError(f"cannot read {name!r}: it is broken")
        found = self._samples.load(name)
        mask = torch.zeros(8, 8, dtype=torch.bool)
        mask[2:5, 3:6] = True
        return Sample(name, found.inputs, found.target, mask if name in self.masked else None)


def explainers(model: nn.Module) -> dict[str, Any]:
    return {"gradient": backlight.Saliency(model), "noisy": backlight.SmoothGrad(model, n_samples=3)}


def metrics() -> dict[str, Any]:
    return {"Infidelity": Infidelity(repeats=2), "signed": FaithfulnessCorrelation.preset("signed")}


def run(out: Path, samples: Any = None, **settings: Any) -> Evaluation:
    model = network()
    chosen = {"explainers": explainers(model), "metrics": metrics(), **settings}
    return evaluate(model, Numbered() if samples is None else samples, out=out, **chosen)


def assert_same_rows(one: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]) -> None:
    assert list(one) == list(other)
    for column in one:
        if column in EXACT:
            assert list(one[column]) == list(other[column]), column
        elif column != "seconds":
            np.testing.assert_allclose(one[column], other[column], rtol=1e-4, atol=1e-5, err_msg=column)
