"""Scores of a later site: how far concepts are there, or classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from backlight.contributions.reduction import Layout
from backlight.engine.targets import pick
from backlight.errors import InputError
from backlight.graph.coded import Coded, vectors_of
from backlight.shapes import Float, Int


class Scores(Protocol):
    """T scores of what a site holds; `of` gives one of them, differentiable."""

    def __len__(self) -> int: ...

    def of(self, value: Float[Tensor, "B *site"], target: int, rows: Int[Tensor, "B"]) -> Float[Tensor, "B"]: ...


def cosine(vectors: Float[Tensor, "B P C"], direction: Float[Tensor, "C"]) -> Float[Tensor, "B P"]:
    """The cosine of PFVs to a direction; 0, with no gradient, at a PFV of zero."""
    squares = vectors.square().sum(2)
    there = squares > 0
    norm = torch.where(there, squares, 1.0).sqrt()
    return torch.where(there, vectors @ direction / norm, 0.0) / direction.norm().clamp(min=1e-30)


@dataclass(frozen=True, eq=False)
class Alignment:
    """S_t = sum_i u_it cos(M(x)_i, v_t): how far concept t is where the model has it (iERF paper, section VI-B).

    `weights` `[N, P, T]`: the codes u of the model's own activation, held. `directions` `[T, C]`: the concept vectors.
    """

    weights: Float[Tensor, "N P T"]
    directions: Float[Tensor, "T C"]
    layout: Layout

    @classmethod
    def of_concepts(cls, coded: Coded, targets: Sequence[int] | Tensor) -> Alignment:
        """Of some concepts of a coded layer.

        Raises:
            InputError: a concept that the dictionary does not have.
        """
        chosen = torch.as_tensor(targets, dtype=torch.long, device=coded.atoms.device).reshape(-1)
        if len(chosen) and not (0 <= int(chosen.min()) <= int(chosen.max()) < len(coded.atoms)):
            raise InputError(f"concepts {targets} of a dictionary of {len(coded.atoms)}")
        return cls(coded.codes[:, :, chosen], coded.atoms[chosen], coded.layout)

    def __len__(self) -> int:
        return len(self.directions)

    def of(self, value: Tensor, target: int, rows: Tensor) -> Float[Tensor, "B"]:
        vectors = vectors_of(value, self.layout)
        return (self.weights[rows.to(vectors.device), :, target] * cosine(vectors, self.directions[target])).sum(1)


@dataclass(frozen=True)
class Classes:
    """S_c: the logit of class c, at the model's output."""

    classes: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.classes)

    def of(self, value: Tensor, target: int, rows: Tensor) -> Float[Tensor, "B"]:
        return pick(value, self.classes[target])
