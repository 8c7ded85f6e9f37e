"""Codes with a given number of atoms: orthogonal matching pursuit, and the largest projections."""

from __future__ import annotations

import torch
from torch import Tensor

from backlight.errors import InputError
from backlight.shapes import Float

DEPENDENT = 1e-6  # squared length, of what an atom of length 1 has in addition to those chosen: none


def omp(x: Float[Tensor, "n C"], atoms: Float[Tensor, "K C"], n_nonzero: int) -> Float[Tensor, "n K"]:
    """Orthogonal matching pursuit of all rows at once (Pati et al. 1993; Cholesky factors as Rubinstein et al. 2008).

    `n_nonzero` times, the atom of the greatest |<residual, d>| / |d| is taken, and the row is projected on all that
    were: scikit-learn's `orthogonal_mp` where atoms have length 1. A row that is told already, or by atoms that add
    nothing to those it has, takes no more.

    Cost: a product of the residuals with all atoms for each atom taken.

    Raises:
        InputError: rows and atoms of different channels, or a number that is not between 1 and that of the atoms.
    """
    _check(x, atoms, n_nonzero)
    unit, length = _unit(atoms)
    n, most = len(x), min(n_nonzero, x.shape[1])
    factor = torch.eye(most, dtype=x.dtype, device=x.device).repeat(n, 1, 1)
    chosen = torch.zeros(n, most, dtype=torch.long, device=x.device)
    aim, used = x.new_zeros(n, most), torch.zeros(n, len(atoms), dtype=torch.bool, device=x.device)
    going, residual = torch.ones(n, dtype=torch.bool, device=x.device), x
    values, least = aim, torch.finfo(x.dtype).eps * x.norm(dim=1) * 10
    for step in range(most):
        fits = (residual @ unit.T).abs().masked_fill(used, -torch.inf)
        best, place = fits.max(1)
        own = unit[place]
        before = unit[chosen[:, :step]]
        shared = (before @ own[:, :, None]) * (aim[:, :step, None] != 0)
        row = torch.linalg.solve_triangular(factor[:, :step, :step], shared, upper=False)[:, :, 0]
        left = 1 - row.square().sum(1)
        going = going & (best > least) & (left > DEPENDENT)
        factor[going, step, :step] = row[going]
        factor[going, step, step] = left[going].sqrt()
        chosen[going, step], used[going, place[going]] = place[going], True
        aim[going, step] = (own * x).sum(1)[going]
        values = torch.cholesky_solve(aim[:, : step + 1, None], factor[:, : step + 1, : step + 1])[:, :, 0]
        taken = unit[chosen[:, : step + 1]]
        values = values * (aim[:, : step + 1] != 0)
        residual = torch.where(going[:, None], x - (values[:, None, :] @ taken)[:, 0], residual)
    found = x.new_zeros(n, len(atoms)).scatter_add_(1, chosen[:, : values.shape[1]], values)
    return found / length


def largest(x: Float[Tensor, "n C"], atoms: Float[Tensor, "K C"], k: int) -> Float[Tensor, "n K"]:
    """The projections <x, d> / |d|^2 on the k atoms that a row has most in common with, |<x, d>| / |d|; 0 elsewhere.

    Raises:
        InputError: rows and atoms of different channels, or a number that is not between 1 and that of the atoms.
    """
    _check(x, atoms, k)
    unit, length = _unit(atoms)
    fits = x @ unit.T
    place = fits.abs().topk(k, 1).indices
    return torch.zeros_like(fits).scatter_(1, place, fits.gather(1, place)) / length


def _unit(atoms: Float[Tensor, "K C"]) -> tuple[Float[Tensor, "K C"], Float[Tensor, "K"]]:
    length = atoms.norm(dim=1).clamp(min=torch.finfo(atoms.dtype).tiny)
    return atoms / length[:, None], length


def _check(x: Tensor, atoms: Tensor, count: int) -> None:
    if x.ndim != 2 or atoms.ndim != 2 or x.shape[1] != atoms.shape[1]:
        raise InputError(f"expected rows [n, C] and atoms [K, C], got {list(x.shape)} and {list(atoms.shape)}")
    if not 1 <= count <= len(atoms):
        raise InputError(f"a code takes between 1 and {len(atoms)} atoms, got {count}")
