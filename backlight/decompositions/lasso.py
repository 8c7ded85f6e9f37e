"""Sparse codes of rows: the LASSO of all rows at once, on any atoms, to a duality gap."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from backlight.decompositions.lasso_support import Restricted
from backlight.errors import InputError, NonFiniteError
from backlight.shapes import Bool, Float, Int

ROWS = 4096  # that are coded together
FIRST, GROWTH = 16, 8  # atoms that a row begins with, and that it takes in addition, at least, after a round
STEPS, PATIENCE, MOST = 20, 4, 160  # accelerated steps of a round: as many more after every 4 rounds, up to 160


@dataclass(frozen=True)
class Codes:
    """Codes `values` [n, K] of rows, and how good they are.

    `gap`: the duality gap of each row, an upper bound of what its `objective` exceeds the least by. `iterations`:
    rounds, of all rows.
    """

    values: Float[Tensor, "n K"]
    gap: Float[Tensor, "n"]
    objective: Float[Tensor, "n"]
    iterations: int


def lasso(
    x: Float[Tensor, "n C"],
    atoms: Float[Tensor, "K channels"],
    penalty: float | Tensor,
    *,
    relative: bool = False,
    nonnegative: bool = False,
    tolerance: float = 1e-4,
    rounds: int = 100,
) -> Codes:
    """min_u 1/2 |x - u D|^2 + penalty |u|_1 for each row: the codes of concept graphs (iERF framework, section V-B).

    Each row has a working set of atoms, begun with those that fit it best: the problem on the set is solved by FISTA
    (Beck and Teboulle 2009) in the form of Gram matrices, and polished by the linear system of the signs that it finds;
    then atoms that break the optimality conditions, |d'(x - uD)| > penalty, join it, and those with no coefficient
    leave it. A row is done when its duality gap is below `tolerance` times |x|^2 / 2, and leaves the batch. In the
    form of scikit-learn, `Lasso(alpha=penalty / C, fit_intercept=False)` of the transposed atoms.

    Args:
        x, atoms: of one floating dtype, in which all is computed; in float32 gaps go down to about 1e-7 of |x|^2 / 2.
            Atoms may be of any length: those that are longer are penalised less.
        penalty: one, or one of each row.
        relative: it is a share of each row's own greatest |<x, d>|, from which on its code is zero.
        nonnegative: codes are not negative.
        rounds: at most; what is not done then has a `gap` that says so.

    Cost: a round is a product of the rows that are left with all atoms, and for each row a Gram matrix of its own set.

    Raises:
        InputError: rows and atoms of different channels, or a penalty that is not positive.
        NonFiniteError: rows or atoms with NaN or infinite entries.
    """
    _check(x, atoms, penalty)
    values = x.new_zeros(len(x), len(atoms))
    gap, objective, most = x.new_zeros(len(x)), x.new_zeros(len(x)), 0
    given = torch.as_tensor(penalty, dtype=x.dtype, device=x.device).expand(len(x))
    with torch.no_grad():
        for start in range(0, len(x), ROWS):
            part = slice(start, start + ROWS)
            run = _Run(x[part], atoms, given[part], relative, nonnegative, tolerance, rounds)
            values[part], gap[part], objective[part] = run.values, run.gap, run.objective
            most = max(most, run.round)
    return Codes(values, gap, objective, most)


def _check(x: Tensor, atoms: Tensor, penalty: float | Tensor) -> None:
    if x.ndim != 2 or atoms.ndim != 2 or x.shape[1] != atoms.shape[1] or not len(atoms):
        raise InputError(f"expected rows [n, C] and atoms [K, C], got {list(x.shape)} and {list(atoms.shape)}")
    if x.dtype != atoms.dtype or not x.is_floating_point():
        raise InputError(f"rows and atoms are of one floating type, got {x.dtype} and {atoms.dtype}")
    given = torch.as_tensor(penalty)
    if given.shape not in ((), (len(x),)) or not (given > 0).all() or not given.isfinite().all():
        raise InputError("penalties are positive numbers: one, or one of each row")
    for name, one in (("rows", x), ("atoms", atoms)):
        if not one.isfinite().all():
            raise NonFiniteError(f"{name} have entries that are NaN or infinite")


class _Run:
    """Some rows, round by round: `rows` that are not done, their sets `places`, `u` on them, and their `sizes`."""

    def __init__(
        self,
        x: Tensor,
        atoms: Tensor,
        penalty: Tensor,
        relative: bool,
        nonnegative: bool,
        tolerance: float,
        rounds: int,
    ) -> None:
        self.x, self.atoms, self.nonnegative = x, atoms, nonnegative
        self.enough = tolerance * x.square().sum(1) / 2
        self.values = x.new_zeros(len(x), len(atoms))
        self.gap, self.objective = x.new_zeros(len(x)), x.new_zeros(len(x))
        fits = x @ atoms.T
        best, places = (fits if nonnegative else fits.abs()).topk(min(FIRST, len(atoms)), 1)
        self.penalty = penalty * best[:, 0].clamp(min=torch.finfo(x.dtype).tiny) if relative else penalty
        self.rows, self.places = torch.arange(len(x), device=x.device), places
        self.u, self.sizes = torch.zeros_like(best), torch.full_like(self.rows, places.shape[1])
        self.round = 0
        while len(self.rows):
            self.round += 1
            self._advance(self.round >= rounds)

    def _advance(self, last: bool) -> None:
        """A round of all rows that are left, those with small sets first, so that sets of like sizes are together."""
        order = self.sizes.argsort()
        rows, places, u, sizes = (one[order] for one in (self.rows, self.places, self.u, self.sizes))
        left, count = [], 128 if self.x.device.type == "cpu" else ROWS  # 128: the sets' Gram matrices stay in its cache
        for start in range(0, len(rows), count):
            part = slice(start, start + count)
            width = int(sizes[part].max())
            new = self._solved(rows[part], places[part, :width], u[part, :width], sizes[part], last)
            if new is not None:
                left.append(new)
        if not left:
            self.rows = self.rows[:0]
            return
        width = max(one[1].shape[1] for one in left)
        self.rows, self.sizes = torch.cat([one[0] for one in left]), torch.cat([one[3] for one in left])
        self.places, self.u = (
            torch.cat([F.pad(one[at], (0, width - one[at].shape[1])) for one in left]) for at in (1, 2)
        )

    def _solved(
        self,
        rows: Int[Tensor, "m"],
        places: Int[Tensor, "m A"],
        u: Float[Tensor, "m A"],
        sizes: Int[Tensor, "m"],
        last: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor] | None:
        """Solve on the sets; keep the rows that are done, and return the others with their next sets."""
        x, penalty = self.x[rows], self.penalty[rows]
        inside = torch.arange(places.shape[1], device=x.device) < sizes[:, None]
        own = self.atoms[places] * inside[:, :, None]
        problem = Restricted(own @ own.mT, (own @ x[:, :, None])[:, :, 0], penalty, self.nonnegative)
        u = problem.polished(problem.accelerated(u, min(STEPS * (1 + self.round // PATIENCE), MOST)))
        residual = x - (u[:, None, :] @ own)[:, 0]
        fits = residual @ self.atoms.T
        gap, objective = _gap(x, residual, u, fits, fits.gather(1, places), penalty, self.nonnegative)
        done = (gap <= self.enough[rows]) | last
        if done.any():
            at = rows[done]
            self.values[at] = self.values[at].scatter_add(1, places[done], u[done])
            self.gap[at], self.objective[at] = gap[done], objective[done]
        if done.all():
            return None
        going = ~done
        return rows[going], *self._next(places[going], u[going], fits[going], penalty[going])

    def _next(
        self,
        places: Int[Tensor, "m A"],
        u: Float[Tensor, "m A"],
        fits: Float[Tensor, "m K"],
        penalty: Float[Tensor, "m"],
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The next sets: the atoms with a coefficient, and those that break the optimality conditions the most."""
        on = u != 0
        present = torch.zeros_like(fits).scatter_add_(1, places, on.to(fits.dtype)) > 0
        wrong = (fits if self.nonnegative else fits.abs()).masked_fill(present, -torch.inf)
        count = min(max(GROWTH, places.shape[1] // 4), fits.shape[1])
        most, at = wrong.topk(count, 1)
        kept: Bool[Tensor, "m B"] = torch.cat((on, most > penalty[:, None]), 1)
        order = (~kept).to(torch.uint8).argsort(dim=1, stable=True)[:, : int(kept.sum(1).max().clamp(min=1))]
        values = torch.cat((u, torch.zeros_like(most)), 1)
        return torch.cat((places, at), 1).gather(1, order), values.gather(1, order), kept.sum(1).clamp(min=1)


def _gap(
    x: Float[Tensor, "m C"],
    residual: Float[Tensor, "m C"],
    u: Float[Tensor, "m A"],
    fits: Float[Tensor, "m K"],
    own: Float[Tensor, "m A"],
    penalty: Float[Tensor, "m"],
    nonnegative: bool,
) -> tuple[Float[Tensor, "m"], Float[Tensor, "m"]]:
    """The duality gap and the objective, for the dual point s (x - uD) with the best s that is feasible.

    gap = 1/2 (1 - s)^2 |r|^2 + sum (penalty |u| - s u <d, r>): no two large numbers are subtracted.
    """
    tiny = torch.finfo(x.dtype).tiny
    length, size = residual.square().sum(1), u.abs().sum(1)
    top = (fits if nonnegative else fits.abs()).amax(1)
    limit = torch.where(top > 0, penalty / top.clamp(min=tiny), torch.inf)
    best = (x * residual).sum(1) / length.clamp(min=tiny)
    scale = torch.maximum(torch.minimum(best, limit), torch.zeros_like(limit))
    gap = (1 - scale) ** 2 * length / 2 + penalty * size - scale * (u * own).sum(1)
    return gap.clamp(min=0), length / 2 + penalty * size  # rounding may bring it below 0
