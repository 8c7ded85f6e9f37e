"""A movie and the spikes that it was answered with, several times: what networks are fitted to and judged by."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from backlight.decompositions.folder import read_tensors, write_tensors
from backlight.errors import InputError
from backlight.models.retina import windows
from backlight.shapes import Float

KIND = "backlight.recording"


@dataclass(frozen=True, eq=False)
class Recording:
    """`stimulus` `[T, H, W]`, z-scored; `counts` `[R, n, cells]`: of R repeats, in the last frame of each window.

    `frames`: of a window, n = T - frames + 1. `rates` `[n, cells]`: expected counts, where a simulation knows them.
    `about`: plain values (types of cells, how it was made).

    Raises:
        InputError: shapes that do not fit, or counts that are negative or not finite.
    """

    stimulus: Float[Tensor, "T H W"]
    counts: Float[Tensor, "R n cells"]
    frames: int
    rates: Float[Tensor, "n cells"] | None = None
    about: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        expected = len(self.stimulus) - self.frames + 1
        if self.counts.shape[1] != expected:
            raise InputError(f"{len(self.stimulus)} frames have {expected} windows, and counts {self.counts.shape[1]}")
        if not bool(torch.isfinite(self.counts).all()) or bool((self.counts < 0).any()):
            raise InputError("counts of spikes are finite and not negative")

    @property
    def windows(self) -> Float[Tensor, "n F H W"]:
        """The movie's windows, a view."""
        return windows(self.stimulus, self.frames)

    @property
    def response(self) -> Float[Tensor, "n cells"]:
        """The mean count over the repeats."""
        return self.counts.double().mean(0).float()

    def save(self, path: str | os.PathLike[str]) -> None:
        """One safetensors file, whole or not at all."""
        tensors = {"stimulus": self.stimulus, "counts": self.counts}
        tensors |= {} if self.rates is None else {"rates": self.rates}
        write_tensors(Path(path), tensors, {"kind": KIND, "frames": self.frames, "about": dict(self.about)})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Recording:
        """What `save` wrote; or any safetensors file of `stimulus` and `counts`, with `frames` in its metadata.

        Raises:
            InputError: a file that cannot be read, or that is no recording.
        """
        tensors, about = read_tensors(Path(path))
        if not {"stimulus", "counts"} <= set(tensors) or "frames" not in about:
            raise InputError(f"{str(path)!r} is no recording: it holds {', '.join(tensors) or 'nothing'}")
        frames, told = int(about["frames"]), about.get("about", {})
        return cls(tensors["stimulus"].float(), tensors["counts"].float(), frames, tensors.get("rates"), told)


def pearson(a: Float[Tensor, "n p"], b: Float[Tensor, "n q"]) -> Float[Tensor, "p q"]:
    """Pearson's correlation of every column of a with every column of b, float64; 0 where one is constant."""
    if len(a) != len(b) or len(a) < 2:
        raise InputError(f"correlations are of two rows or more, as many in both, got {len(a)} and {len(b)}")
    left, right = (one.double() - one.double().mean(0) for one in (a, b))
    scale = left.norm(dim=0)[:, None] * right.norm(dim=0)
    floor = torch.finfo(torch.float64).eps * len(a)
    constant = (_flat(a, left) < floor)[:, None] | (_flat(b, right) < floor)
    return torch.where(constant, 0.0, left.T @ right / scale.clamp(min=torch.finfo(torch.float64).tiny)).clamp(-1, 1)


def _flat(whole: Tensor, centred: Tensor) -> Tensor:
    """How much a column varies, relative to its size."""
    return centred.norm(dim=0) / whole.double().norm(dim=0).clamp(min=torch.finfo(torch.float64).tiny)


def correlations(predicted: Float[Tensor, "n cells"], measured: Float[Tensor, "n cells"]) -> Float[Tensor, "cells"]:
    """Pearson's correlation of each cell's rate with its own response."""
    return pearson(predicted, measured).diagonal()


def noise_ceiling(counts: Float[Tensor, "R n cells"]) -> Float[Tensor, "cells"]:
    """The correlation that the true rate has with the mean of R repeats, estimated from how repeats differ.

    sqrt(1 - s2 / (R V)): s2, the variance between repeats (of R - 1 degrees of freedom), averaged over frames; V, the
    variance over frames of the mean response, of which s2 / R is noise. 0 where nothing but noise is left.

    Raises:
        InputError: one repeat: what is noise cannot be told.
    """
    if counts.shape[0] < 2 or counts.shape[1] < 2:
        raise InputError(f"a noise ceiling needs two repeats of two frames or more, got {list(counts.shape[:2])}")
    wide = counts.double()
    noise = wide.var(0).mean(0) / len(counts)
    total = wide.mean(0).var(0)
    return torch.where(total > 0, 1 - noise / total.clamp(min=1e-300), 0.0).clamp(0, 1).sqrt()
