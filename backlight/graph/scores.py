"""Scores of a later site: how far concepts are there, or classes.

Scores lie behind the segment: their derivatives are written out here, once for all targets, so that a backward pass of
the segment starts from a cotangent.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from backlight.contributions.reduction import Layout
from backlight.engine.targets import pick
from backlight.errors import InputError
from backlight.graph.coded import Coded, value_of, vectors_of
from backlight.shapes import Float, Int


class Scores(Protocol):
    """T scores of what a site holds."""

    def __len__(self) -> int: ...

    def of(self, value: Float[Tensor, "B *site"], target: int, rows: Int[Tensor, "B"]) -> Float[Tensor, "B"]:
        """One of them, differentiable."""
        ...

    def all(self, value: Float[Tensor, "B *site"], rows: Int[Tensor, "B"]) -> Float[Tensor, "B T"]:
        """All of them."""
        ...

    def cotangents(
        self, value: Float[Tensor, "B *site"], rows: Int[Tensor, "B"], held: bool = False
    ) -> Iterator[Float[Tensor, "B *site"]]:
        """The gradient of each of them; `held`: as if the norms in it were constants, so that <value, it> is S."""
        ...

    def between(
        self, start: Float[Tensor, "B *site"], end: Float[Tensor, "B *site"], target: int, rows: Int[Tensor, "B"]
    ) -> Float[Tensor, "B *site"]:
        """m with <m, end - start> = S(end) - S(start), exactly."""
        ...

    def places(
        self, value: Float[Tensor, "B *site"], target: int, rows: Int[Tensor, "B"]
    ) -> tuple[Float[Tensor, "B P C"], Float[Tensor, "B P"]]:
        """The PFVs, and what each adds to one of the scores.

        Raises:
            InputError: scores that are no sum over positions.
        """
        ...


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
        return (self._weights(target, rows, vectors) * cosine(vectors, self.directions[target])).sum(1)

    def all(self, value: Float[Tensor, "B *site"], rows: Int[Tensor, "B"]) -> Float[Tensor, "B T"]:
        """All of them."""
        return (self.weights[rows.to(value.device)] * self.cosines(value)).sum(1)

    def cosines(self, value: Float[Tensor, "B *site"]) -> Float[Tensor, "B P T"]:
        """cos(value_i, v_t) at every position."""
        unit, _ = _units(vectors_of(value, self.layout))
        return unit @ _units(self.directions)[0].T

    def cotangents(self, value: Tensor, rows: Tensor, held: bool = False) -> Iterator[Tensor]:
        """u_it (v_t / |v_t| - cos_it x_i / |x_i|) / |x_i|; without its second term where norms are held."""
        unit, inverse = _units(vectors_of(value, self.layout))
        directions = _units(self.directions)[0]
        for target, direction in enumerate(directions):
            scale = self._weights(target, rows, unit)[:, :, None] * inverse
            found = direction if held else torch.addcmul(direction, unit, (unit @ direction)[:, :, None], value=-1)
            yield self._value(scale * found, value)

    def between(self, start: Tensor, end: Tensor, target: int, rows: Tensor) -> Tensor:
        """p n, p = <x, v_t>, n = 1 / |x|: each factor's change times the other's mean.

        Of 1 / |x|, through |x|^2, whose change is <x + x', x - x'>. At a PFV that is zero at one of the ends, the norm
        is held at the other's.
        """
        direction = _units(self.directions[target][None])[0][0]
        before, after = vectors_of(start, self.layout), vectors_of(end, self.layout)
        _, low = _units(before)
        _, high = _units(after)
        both = (low > 0) & (high > 0)
        # (1/b - 1/a) / (b^2 - a^2) = -1 / (a b (a + b)), in reciprocals
        slope = torch.where(both, -((low * high) ** 2) / torch.where(both, low + high, 1), 0)
        norm = torch.where(both, (low + high) / 2, low + high)
        projected = ((before + after) @ direction)[:, :, None] / 2
        found = norm * direction + projected * slope * (before + after)
        return self._value(self._weights(target, rows, found)[:, :, None] * found, end)

    def places(self, value: Tensor, target: int, rows: Tensor) -> tuple[Tensor, Tensor]:
        vectors = vectors_of(value, self.layout)
        return vectors, self._weights(target, rows, vectors) * cosine(vectors, self.directions[target])

    def _weights(self, target: int, rows: Tensor, like: Tensor) -> Float[Tensor, "B P"]:
        return self.weights[rows.to(like.device), :, target]

    def _value(self, vectors: Tensor, like: Tensor) -> Tensor:
        return value_of(vectors, self.layout, tuple(like.shape[1:]))


@dataclass(frozen=True)
class Classes:
    """S_c: the logit of class c, at the model's output."""

    classes: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.classes)

    def of(self, value: Tensor, target: int, rows: Tensor) -> Float[Tensor, "B"]:
        return pick(value, self.classes[target])

    def all(self, value: Float[Tensor, "B *site"], rows: Int[Tensor, "B"]) -> Float[Tensor, "B T"]:
        """All of them."""
        return torch.stack([self.of(value, target, rows) for target in range(len(self))], 1)

    def cotangents(self, value: Tensor, rows: Tensor, held: bool = False) -> Iterator[Tensor]:
        for target in range(len(self)):
            yield self.between(value, value, target, rows)

    def between(self, start: Tensor, end: Tensor, target: int, rows: Tensor) -> Tensor:
        with torch.enable_grad():
            leaf = end.detach().requires_grad_()
            return torch.autograd.grad(self.of(leaf, target, rows).sum(), leaf)[0]

    def places(self, value: Tensor, target: int, rows: Tensor) -> tuple[Tensor, Tensor]:
        raise InputError("the logit of a class is no sum over positions")


def _units(vectors: Float[Tensor, "*batch C"]) -> tuple[Float[Tensor, "*batch C"], Float[Tensor, "*batch 1"]]:
    """Vectors of length 1, and 1 / |x|; both 0 at a vector of zero."""
    norms = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    inverse = torch.where(norms > 0, 1 / torch.where(norms > 0, norms, 1), 0)
    return vectors * inverse, inverse
