"""A small extraction: a collector of a linear network, and numbered samples of which some cannot be read."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from backlight.data.labelled import Sample
from backlight.errors import ImageError
from backlight.store import Collected, Progress, Store, extract


def inputs(number: int) -> torch.Tensor:
    return torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(number))


@dataclass(frozen=True)
class Numbered:
    """Samples by number; a limit changes no fingerprint."""

    count: int = 11
    broken: tuple[int, ...] = ()
    version: str = ""

    @property
    def names(self) -> list[str]:
        return [f"folder/{place}" for place in range(self.count)]

    @property
    def fingerprint(self) -> str:
        return "numbers"

    def content(self, name: str) -> str:
        return f"{name}{self.version}{int(name[7:]) in self.broken}"

    def load(self, name: str) -> Sample:
        number = int(name[7:])
        if number in self.broken:
            raise ImageError(f"cannot read {name!r}: it is broken")
        return Sample(name, inputs(number), number % 3 if number % 4 else None)


@dataclass(frozen=True)
class Linear:
    """Contributions of a random matrix; `die`: a file that has to be there, else the process ends at sample 7."""

    width: int = 6
    die: Path | None = None
    always: bool = False
    fail: bool = False
    nan: tuple[int, ...] = ()
    scale: float = 1.0
    thin: bool = False

    @property
    def identity(self) -> Mapping[str, Any]:
        return {"collector": "linear", "width": self.width, "scale": self.scale}

    @property
    def about(self) -> Mapping[str, Any]:
        return {"where": "here"}

    @property
    def resources(self) -> Mapping[str, float]:
        return {}

    def open(self, worker: int) -> Opened:
        matrix = torch.randn(48, self.width, generator=torch.Generator().manual_seed(0))
        return Opened(self, matrix)


@dataclass(frozen=True)
class Opened:
    of: Linear
    matrix: torch.Tensor

    def collect(self, samples: Sequence[Sample]) -> Collected:
        if any(one.name == "folder/7" for one in samples):
            self._stumble()
        x = torch.stack([one.inputs for one in samples])
        hidden = x.flatten(1) @ self.matrix * self.of.scale
        for row, one in enumerate(samples):
            if int(one.name[7:]) in self.of.nan:
                hidden[row, 1] = float("nan")
        signed = hidden.clamp(min=0), hidden.clamp(max=0)
        if self.of.thin:
            return Collected({("a.1:input", "contributions"): signed})
        return Collected(
            rows={("a.1:input", "contributions"): signed, ("b", "activations"): signed},
            positions={("b", "activations"): x},
            columns={"prediction": hidden.argmax(1), "score": hidden.amax(1)},
            residuals={"a.1:input": hidden.sum(1)},
            logits=hidden,
        )

    def _stumble(self) -> None:
        if self.of.fail:
            raise RuntimeError("the seventh is wrong")
        if self.of.always:
            os._exit(3)
        if self.of.die is not None and not self.of.die.exists():
            self.of.die.touch()
            os._exit(3)


def small(folder: Path, samples: Any = None, collector: Any = None, **settings: Any) -> Store:
    chosen = {"batch_size": 2, "block": 4, **settings}
    return extract(collector or Linear(), samples or Numbered(), folder, **chosen)


def contents(folder: Path) -> dict[str, bytes]:
    """What two extractions must have in common: arrays and marks, byte for byte."""
    files = [*(folder / "arrays.zarr").rglob("*"), *(folder / "marks").rglob("*")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(files) if path.is_file()}


__all__ = ["Linear", "Numbered", "Progress", "contents", "inputs", "small"]
