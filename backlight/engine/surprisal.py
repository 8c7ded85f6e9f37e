"""Surprisal: how unlikely an output is among the outputs of many inputs, taken as normally distributed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from backlight.engine.targets import Target, output_tensor
from backlight.errors import TargetError
from backlight.shapes import Float


@dataclass(frozen=True, eq=False, repr=False)
class Surprisal(Target):
    """(y - m)^T S^-1 (y - m) / 2: the negative log-likelihood of a normal distribution, less its constant.

    `mean` m `[K]` and `covariance` `[K, K]` of the outputs; `Surprisal.fit` estimates them. `shrinkage` s in [0, 1]:
    S = (1 - s) covariance + s t I, t the mean variance; 0 uses the covariance as it is. CODEC uses it for retinas,
    with the sample covariance and s = 0.

    Raises:
        TargetError: shapes that do not fit, a covariance that is not symmetric, or singular after shrinkage.
    """

    mean: Tensor
    covariance: Tensor
    shrinkage: float = 0.0
    _whitening: Tensor = field(init=False)

    def __post_init__(self) -> None:
        mean, covariance = (torch.as_tensor(t).detach().cpu().double() for t in (self.mean, self.covariance))
        if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
            raise TargetError(f"mean [K] and covariance [K, K], got {list(mean.shape)} and {list(covariance.shape)}")
        if not 0 <= self.shrinkage <= 1:
            raise TargetError(f"shrinkage is in [0, 1], got {self.shrinkage}")
        if not torch.isfinite(covariance).all() or not torch.allclose(covariance, covariance.T, rtol=1e-4):
            raise TargetError("a covariance is finite and symmetric")
        for name, value in {"mean": mean, "covariance": covariance}.items():
            object.__setattr__(self, name, value)
        object.__setattr__(self, "_whitening", _whitening(shrunk(covariance, float(self.shrinkage)), self.shrinkage))

    @classmethod
    def fit(cls, outputs: Tensor, shrinkage: float | str = "ledoit_wolf") -> Surprisal:
        """From outputs `[n, K]` of n inputs (not those that are explained, if that can be helped).

        The covariance is the sample's, of n - 1 degrees of freedom. `shrinkage`: a number in [0, 1], or the one that
        is best in mean square for the sample ("ledoit_wolf": Ledoit and Wolf 2004).

        Raises:
            TargetError: fewer than two outputs, another shape or name; a covariance that stays singular.
        """
        outputs = output_tensor(outputs)
        if outputs.ndim != 2 or len(outputs) < 2:
            raise TargetError(f"surprisal is fitted to outputs [n, K] of two inputs or more, got {list(outputs.shape)}")
        x = outputs.detach().cpu().double()
        centred = x - x.mean(0)
        if isinstance(shrinkage, str):
            if shrinkage != "ledoit_wolf":
                raise TargetError(f"shrinkage is a number in [0, 1] or 'ledoit_wolf', not {shrinkage!r}")
            shrinkage = ledoit_wolf(x)
        return cls(x.mean(0), centred.T @ centred / (len(x) - 1), float(shrinkage))

    def score(self, outputs: Any, hidden: Mapping[str, Tensor]) -> Tensor:
        y = output_tensor(outputs)
        if y.ndim != 2 or y.shape[1] != len(self.mean):
            raise TargetError(f"surprisal was fitted to {len(self.mean)} outputs, the model gives {list(y.shape)}")
        dtype = torch.promote_types(y.dtype, torch.float32)  # squares overflow half precision
        away = y.to(dtype) - self.mean.to(dtype).to(y.device)
        return (away @ self._whitening.to(dtype).to(y.device)).square().sum(1) / 2

    def __repr__(self) -> str:
        """What it was fitted to stands in a hash, so that equal words mean equal scores."""
        found = hashlib.sha256(self.mean.numpy().tobytes() + self.covariance.numpy().tobytes()).hexdigest()[:16]
        return f"Surprisal(K={len(self.mean)}, shrinkage={self.shrinkage!r}, sha256={found})"


def shrunk(covariance: Float[Tensor, "K K"], shrinkage: float) -> Float[Tensor, "K K"]:
    """(1 - s) S + s tr(S) / K I."""
    target = torch.eye(len(covariance), dtype=covariance.dtype) * covariance.diagonal().mean()
    return torch.lerp(covariance, target, shrinkage)


def _whitening(covariance: Tensor, shrinkage: float) -> Tensor:
    """W with W W^T = S^-1."""
    values, vectors = torch.linalg.eigh((covariance + covariance.T) / 2)
    largest = float(values[-1])
    if not largest > 0 or float(values[0]) <= largest * len(values) * torch.finfo(values.dtype).eps:
        rank = int((values > max(largest, 0.0) * len(values) * torch.finfo(values.dtype).eps).sum())
        raise TargetError(
            f"the covariance of {len(values)} outputs has rank {rank} (shrinkage={shrinkage:g}): its inverse does not "
            "exist; use shrinkage > 0, or fit to outputs of more inputs"
        )
    return vectors / values.sqrt()


def ledoit_wolf(outputs: Float[Tensor, "n K"]) -> float:
    """The shrinkage towards t I that is best in mean square, estimated (Ledoit and Wolf 2004, lemma 3.2 to 3.4).

    min(b, d) / d, with S = X^T X / n of the centred rows, d = |S - t I|^2 and b = sum_i |x_i x_i^T - S|^2 / n^2.
    """
    x = outputs - outputs.mean(0)
    n, k = x.shape
    s = x.T @ x / n
    d = float((s - torch.eye(k, dtype=s.dtype) * s.diagonal().mean()).square().sum())
    b = float((x.square().sum(1).square().sum() - n * s.square().sum()) / n**2)
    return min(max(b, 0.0), d) / d if d > 0 else 0.0
