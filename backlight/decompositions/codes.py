"""Codes of rows on a dictionary that is given: the same coder for every dictionary, or each its own encoder.

from backlight.decompositions.codes import Lasso, residual
codes = Lasso(penalty=0.1).encode(x, dictionary)     # [n, K]
residual(x, codes, dictionary)                       # [n, C]: what no atom tells
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from backlight.decompositions.decomposition import Decomposition
from backlight.decompositions.lasso import Codes, lasso
from backlight.decompositions.pursuit import largest, omp
from backlight.errors import InputError, UnknownNameError
from backlight.shapes import Float


class Coder(Protocol):
    """What turns rows into codes of a dictionary's atoms; a row's code depends on no other row."""

    name: ClassVar[str]

    def encode(self, x: Float[Tensor, "n C"], dictionary: Decomposition) -> Float[Tensor, "n K"]: ...


@dataclass(frozen=True)
class Lasso:
    """min_u 1/2 |x - u D|^2 + penalty |u|_1, to a duality gap of `tolerance` |x|^2 / 2: `lasso`.

    `relative`: the penalty is a share of each row's own greatest |<x, d>|, so that the scale of rows does not matter;
    the paper gives neither a penalty nor what it refers to. `unit`: atoms are taken at length 1, so that the penalty
    does not favour those that are long, such as the centroids of long rows; the codes are of the atoms as they are.
    """

    name: ClassVar[str] = "Lasso"

    penalty: float = 0.1
    relative: bool = True
    nonnegative: bool = False
    unit: bool = False
    tolerance: float = 1e-4

    def encode(self, x: Float[Tensor, "n C"], dictionary: Decomposition) -> Float[Tensor, "n K"]:
        """The codes of rows, about the dictionary's offset where it has one."""
        atoms = dictionary.atoms
        length = atoms.norm(dim=1).clamp(min=torch.finfo(atoms.dtype).tiny) if self.unit else atoms.new_ones(len(atoms))
        found = lasso(
            _centred(x, dictionary),
            atoms / length[:, None],
            self.penalty,
            relative=self.relative,
            nonnegative=self.nonnegative,
            tolerance=self.tolerance,
        )
        return found.values / length


@dataclass(frozen=True)
class OMP:
    """At most k atoms, one after the other, each time with all coefficients solved for anew: `omp`."""

    name: ClassVar[str] = "OMP"

    k: int = 32

    def encode(self, x: Float[Tensor, "n C"], dictionary: Decomposition) -> Float[Tensor, "n K"]:
        """The codes of rows, about the dictionary's offset where it has one."""
        return omp(_centred(x, dictionary), dictionary.atoms, self.k)


@dataclass(frozen=True)
class TopK:
    """The projections on the k atoms that a row has most in common with: `largest`. They do not add up to the row."""

    name: ClassVar[str] = "TopK"

    k: int = 32

    def encode(self, x: Float[Tensor, "n C"], dictionary: Decomposition) -> Float[Tensor, "n K"]:
        """The codes of rows, about the dictionary's offset where it has one."""
        return largest(_centred(x, dictionary), dictionary.atoms, self.k)


@dataclass(frozen=True)
class Amortised:
    """The dictionary's own encoder: of an SAE its encoder's pass, of clusters the nearest centroid."""

    name: ClassVar[str] = "Amortised"

    def encode(self, x: Float[Tensor, "n C"], dictionary: Decomposition) -> Float[Tensor, "n K"]:
        """`dictionary.encode(x)`."""
        return dictionary.encode(x)


CODERS: dict[str, type[Coder]] = {one.name: one for one in (Lasso, OMP, TopK, Amortised)}


def coder(name: str, **settings: Any) -> Coder:
    """A coder by its name, with its settings; case does not matter.

    Raises:
        UnknownNameError: no such coder, or setting.
    """
    by_lower = {known.lower(): one for known, one in CODERS.items()}
    if name.lower() not in by_lower:
        raise UnknownNameError("coder", name, CODERS)
    found: Any = by_lower[name.lower()]
    known = [one.name for one in fields(found)]
    for given in settings:
        if given not in known:
            raise UnknownNameError(f"setting of {found.name}", given, known)
    return found(**settings)


def residual(x: Float[Tensor, "n C"], codes: Float[Tensor, "n K"], dictionary: Decomposition) -> Float[Tensor, "n C"]:
    """What the codes leave of the rows: x minus what they are decoded to. A node of its own in concept graphs."""
    return x - dictionary.decode(codes).to(x)


def _centred(x: Float[Tensor, "n C"], dictionary: Decomposition) -> Float[Tensor, "n C"]:
    atoms = dictionary.atoms
    if x.ndim != 2 or x.shape[1] != atoms.shape[1]:
        raise InputError(f"the dictionary is of rows [n, {atoms.shape[1]}], got {list(x.shape)}")
    return x.to(atoms) if dictionary.offset is None else x.to(atoms) - dictionary.offset


__all__ = [
    "CODERS",
    "OMP",
    "Amortised",
    "Coder",
    "Codes",
    "Lasso",
    "TopK",
    "coder",
    "largest",
    "lasso",
    "omp",
    "residual",
]
