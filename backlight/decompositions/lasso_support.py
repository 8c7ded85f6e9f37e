"""The LASSO of many rows, each on a few atoms of its own: accelerated steps, then the support's linear system."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from backlight.shapes import Float

JITTER = 8.0  # times the rounding of an atom's squared length, on the diagonal, for atoms that repeat each other
VANISHED = 1e-6  # of a coefficient: what is left of one that a step brings to zero is rounding


@dataclass(frozen=True)
class Restricted:
    """min_u 1/2 u'Gu - b'u + penalty |u|_1 for each row: G, the products of its atoms; b, theirs with the row."""

    gram: Float[Tensor, "n A A"]
    aim: Float[Tensor, "n A"]
    penalty: Float[Tensor, "n"]
    nonnegative: bool

    def gradient(self, u: Float[Tensor, "n A"]) -> Float[Tensor, "n A"]:
        """Of the smooth part: Gu - b."""
        return (self.gram @ u[:, :, None])[:, :, 0] - self.aim

    def accelerated(self, u: Float[Tensor, "n A"], steps: int) -> Float[Tensor, "n A"]:
        """FISTA (Beck and Teboulle 2009), which begins anew where the momentum goes uphill (O'Donoghue, Candes 2015).

        The step is 1 / L with a bound L of the greatest eigenvalue of G: its rows' absolute sums, or its length.
        """
        rows, length = self.gram.abs().sum(2).amax(1), self.gram.square().sum((1, 2)).sqrt()
        bound = torch.minimum(rows, length).clamp(min=torch.finfo(u.dtype).tiny)[:, None]
        threshold = self.penalty[:, None] / bound
        ahead, pace = u, torch.ones_like(bound)
        for _ in range(steps):
            new = shrunk(ahead - self.gradient(ahead) / bound, threshold, self.nonnegative)
            uphill = ((ahead - new) * (new - u)).sum(1, keepdim=True) > 0
            later = torch.where(uphill, 1.0, (1 + (1 + 4 * pace**2).sqrt()) / 2)
            ahead = torch.where(uphill, new, new + (pace - 1) / later * (new - u))
            u, pace = new, later
        return u

    def polished(self, u: Float[Tensor, "n A"]) -> Float[Tensor, "n A"]:
        """The best point on the way to the solution for the signs of `u`, which is exact where the signs are right."""
        on = (u != 0).to(u.dtype)
        system = self.gram * on[:, :, None] * on[:, None, :]
        diagonal = self.gram.diagonal(dim1=1, dim2=2)
        system.diagonal(dim1=1, dim2=2).add_(1 - on + JITTER * torch.finfo(u.dtype).eps * diagonal)
        factor, failed = torch.linalg.cholesky_ex(system)
        slope = self.gradient(u)
        wanted = -(slope + self.penalty[:, None] * u.sign()) * on
        way = torch.cholesky_solve(wanted[:, :, None], factor)[:, :, 0] * on
        way = torch.where((failed == 0)[:, None] & way.isfinite().all(1, keepdim=True), way, 0.0)
        far = self._far(u, way, slope)[:, None]
        new = u + far * way
        new = torch.where((new.abs() <= VANISHED * u.abs()) | (new * u < 0 if self.nonnegative else False), 0.0, new)
        return torch.where(far > 0, new, u)

    def _far(
        self, u: Float[Tensor, "n A"], way: Float[Tensor, "n A"], slope: Float[Tensor, "n A"]
    ) -> Float[Tensor, "n"]:
        """argmin_t >= 0 of the objective at u + t way: a parabola between the places where coefficients vanish."""
        bend = (way * (self.gram @ way[:, :, None])[:, :, 0]).sum(1)
        start = (slope * way).sum(1) + self.penalty * (u.sign() * way).sum(1)
        places, order = torch.where(u * way < 0, -u / way, torch.inf).sort(1)
        jumps = torch.where(places.isinf(), 0.0, 2 * self.penalty[:, None] * way.abs().gather(1, order))
        after = jumps.cumsum(1)
        before = start[:, None] + places.clamp(max=torch.finfo(u.dtype).max) * bend[:, None] + after - jumps
        passed = (before < 0).sum(1, keepdim=True)  # the slope just before a place: uphill ones are not reached
        if self.nonnegative:
            passed = torch.zeros_like(passed)
        zero = torch.zeros_like(bend)[:, None]
        slopes = start + torch.cat((zero, after), 1).gather(1, passed)[:, 0]
        least = torch.cat((zero, places), 1).gather(1, passed)[:, 0]
        far = torch.maximum(-slopes / bend.clamp(min=torch.finfo(u.dtype).tiny), least)
        if self.nonnegative:
            far = torch.minimum(far, places[:, 0])
        return torch.where((start < 0) & (bend > 0), far, 0.0)


def shrunk(x: Tensor, threshold: Tensor, nonnegative: bool) -> Tensor:
    """Towards zero by the threshold, and not beyond; negative entries to zero, where they may not be."""
    return (x - threshold).clamp(min=0) if nonnegative else x - torch.minimum(torch.maximum(x, -threshold), threshold)
