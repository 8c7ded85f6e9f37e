"""Non-negative matrix factorisation: parts that are only added."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from backlight.decompositions.checkpoints import Checkpoints
from backlight.decompositions.decomposition import Decomposition, Epoch, Work
from backlight.decompositions.scaling import moments, refuse_negative
from backlight.decompositions.scores import score
from backlight.decompositions.training import generator
from backlight.errors import InputError
from backlight.shapes import Float
from backlight.store.rows import shuffled

TINY = 1.1920929e-07  # in place of a denominator that is 0
SOLVE = 30  # updates of a batch's loadings, at most
CLOSE = 1e-4  # relative change of a batch's loadings at which they are taken as found


@dataclass(kw_only=True)
class NMF(Decomposition):
    """x_hat = z D with z >= 0 and D >= 0, of the smallest squared error, for rows that are not negative.

    D is fitted in batches by multiplicative updates (Lefevre, Bach, Fevotte 2011): the loadings of a batch are solved
    for, and its sums are added to those so far, which fade by `forget` a batch: scikit-learn's `MiniBatchNMF`. The
    loadings of a row are the least squares over z >= 0, exact to 1e-4 of the row, whatever rows are beside it.
    """

    source: ClassVar[str] = "Lee and Seung 1999; Lefevre, Bach, Fevotte 2011"
    formula: ClassVar[str] = "x_hat = z D, z >= 0, D >= 0, least squares"
    needs: ClassVar[tuple[str, ...]] = ("nonnegative",)
    claims: ClassVar[tuple[str, ...]] = ("nonnegative loadings", "nonnegative modes")

    n_modes: int | str = "1x"
    epochs: int = 50
    batch_size: int = 1024
    forget: float = 0.7

    def check(self, n: int, channels: int) -> None:
        super().check(n, channels)
        if self.epochs < 1 or self.batch_size < 1 or not 0 <= self.forget <= 1:
            raise InputError("epochs and batch_size are at least 1, forget lies in [0, 1]")

    def _fit(self, work: Work, device: torch.device) -> None:
        n, channels = work.rows.shape
        count, found, kept = self.count(channels), moments(work.rows), Checkpoints(self, work)
        spread, begun = float(found.squares.sum()), kept.read()
        if begun is None:
            refuse_negative(work.rows, "NMF takes rows of the positive part alone")
            draw = generator(torch.device("cpu"), self.seed, 1)
            scale = (float(found.mean.mean()) / count) ** 0.5
            modes = (scale * torch.randn((count, channels), generator=draw).abs()).to(device)
            self.state = {"modes": modes, "_numerator": modes.clone(), "_denominator": torch.ones_like(modes)}
        else:
            tensors, _, self.history = begun
            self.state = {name: tensor.to(device) for name, tensor in tensors.items()}
        while len(self.history) < self.epochs:
            number, error, on = len(self.history) + 1, 0.0, 0.0
            alive = torch.zeros(count, dtype=torch.bool, device=device)
            for batch in shuffled(work.rows, self.batch_size, self.seed, number - 1):
                x = batch.to(device)
                z = self._updated(x)
                error += float((x - z @ self.state["modes"]).double().square().sum())
                on += float((z > 0).sum())
                alive |= (z > 0).any(0)
            r2 = 1 - error / spread if spread > 0 else 0.0
            other = None if work.held_out is None else score(self, work.held_out).r2
            told = Epoch(number, self.epochs, error / n / channels, r2, other, on / n, int(alive.sum()), count)
            self.history.append(told)
            if work.progress is not None:
                work.progress(told)
            kept.write(self.state, {}, self.history, number == self.epochs)
        self.state = {"modes": self.state["modes"]}

    def _updated(self, x: Float[Tensor, "n C"]) -> Float[Tensor, "n K"]:
        """Solve for a batch's loadings, then update the modes; the loadings."""
        modes, top, bottom = (self.state[name] for name in ("modes", "_numerator", "_denominator"))
        z = torch.full((len(x), len(modes)), float((x.mean() / len(modes)).sqrt()), device=x.device)
        aim, gram = x @ modes.T, modes @ modes.T
        for _ in range(SOLVE):
            old = z
            z = z * aim / (z @ gram).clamp(min=TINY)
            if (z - old).norm() <= CLOSE * z.norm():
                break
        top.mul_(self.forget).add_(modes * (z.T @ x))
        bottom.mul_(self.forget).add_((z.T @ z) @ modes)
        modes.copy_(top / bottom.clamp(min=TINY))
        return z

    def _encode(self, x: Float[Tensor, "n C"]) -> Float[Tensor, "n K"]:
        return nonnegative_loadings(x, self.state["modes"])


def nonnegative_loadings(
    x: Float[Tensor, "n C"], modes: Float[Tensor, "K C"], tolerance: float = 1e-4, steps: int = 1000
) -> Float[Tensor, "n K"]:
    """argmin over z >= 0 of |x - z D|^2, by accelerated projected gradients (Beck and Teboulle 2009) with restarts.

    A row is done when its loadings change by less than `tolerance` of their length; rows do not see each other.
    """
    gram = modes @ modes.T
    step = 1 / torch.linalg.matrix_norm(gram, 2).clamp(min=TINY)
    found = torch.zeros(len(x), len(modes), dtype=x.dtype, device=x.device)
    at = torch.arange(len(x), device=x.device)
    aim, z = x @ modes.T, found.clone()
    ahead, pace = z, torch.ones(len(x), 1, dtype=x.dtype, device=x.device)
    for _ in range(steps):
        new = (ahead - step * (ahead @ gram - aim)).clamp(min=0)
        back = ((ahead - new) * (new - z)).sum(1, keepdim=True) > 0  # the momentum goes uphill: begin again
        later = torch.where(back, 1.0, (1 + (1 + 4 * pace**2).sqrt()) / 2)
        ahead = torch.where(back, new, new + (pace - 1) / later * (new - z))
        going = (new - z).norm(dim=1) > tolerance * new.norm(dim=1).clamp(min=TINY)
        found[at] = new
        if not going.any():
            break
        at, aim, z, ahead, pace = at[going], aim[going], new[going], ahead[going], later[going]
    return found
