"""How well modes tell rows: explained variance, sparsity, and which modes are used at all."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from backlight.decompositions.decomposition import Decomposition
from backlight.shapes import Bool, Float
from backlight.store.rows import Rows, pieces

EPSILON = 1e-6  # of the reference's R2


@dataclass
class Scores:
    """Sums over rows, piece by piece, in float64.

    R2 = 1 - sum (x - x_hat)^2 / sum (x - mean_c)^2, with the mean of each channel over the rows that are scored: a
    decomposition that knows the means of the channels and nothing else has 0. The reference takes one mean for all
    channels, `grand_mean_r2`, 1 - MSE / (mean (x - mean)^2 + 1e-6): there the means of the channels alone score.
    A mode is *on* in a row where its loading is not zero.
    """

    rows: int = 0
    error: float = 0.0
    _relative: float = 0.0
    _empty: int = 0
    _sum: Tensor | None = None
    _squares: Tensor | None = None
    _on: Tensor | None = None
    _gain: Tensor | None = None

    def add(
        self,
        x: Float[Tensor, "n C"],
        decoded: Float[Tensor, "n C"],
        z: Float[Tensor, "n K"],
        modes: Float[Tensor, "K C"],
    ) -> None:
        """Rows, what they are decoded to, and their loadings."""
        residual = x - decoded
        on = (z != 0).sum(0)
        # what the squared error grows by without the mode alone
        gain = (2 * z * (residual @ modes.T) + z**2 * (modes**2).sum(1)).double().sum(0)
        wide = x.double()
        if self._sum is None or self._squares is None or self._on is None or self._gain is None:
            self._sum, self._squares = torch.zeros_like(wide[0]), torch.zeros_like(wide[0])
            self._on, self._gain = torch.zeros_like(on), torch.zeros_like(gain)
        self._sum += wide.sum(0)
        self._squares += (wide**2).sum(0)
        self._on += on
        self._gain += gain
        self.error += float((residual.double() ** 2).sum())
        length = wide.norm(dim=1)
        self._relative += float((residual.double().norm(dim=1) / length)[length > 0].sum())
        self._empty += int((length == 0).sum())
        self.rows += len(x)

    @property
    def r2(self) -> float | None:
        """Explained variance about the means of the channels; None where the rows do not vary."""
        assert self._sum is not None
        assert self._squares is not None
        total = float((self._squares - self._sum**2 / self.rows).clamp(min=0).sum())
        return 1 - self.error / total if total > 0 else None

    @property
    def grand_mean_r2(self) -> float:
        """The reference's: about one mean of all entries."""
        assert self._sum is not None
        assert self._squares is not None
        entries = self.rows * len(self._sum)
        spread = float(self._squares.sum()) / entries - (float(self._sum.sum()) / entries) ** 2
        return 1 - (self.error / entries) / (max(spread, 0.0) + EPSILON)

    @property
    def relative(self) -> float | None:
        """Rel-l2: the mean over rows of |x - x_hat| / |x|, without rows that are 0; above 1 is worse than to say 0."""
        return self._relative / (self.rows - self._empty) if self.rows > self._empty else None

    @property
    def dead_share(self) -> float:
        """The share of modes that are on in no row."""
        return 1 - float(self.alive.double().mean())

    @property
    def l0(self) -> float:
        """Modes that are on in a row, on average."""
        assert self._on is not None
        return float(self._on.sum()) / self.rows

    @property
    def alive(self) -> Bool[Tensor, "K"]:
        """Modes that are on in at least one row."""
        assert self._on is not None
        return (self._on > 0).cpu()

    @property
    def frequency(self) -> Float[Tensor, "K"]:
        """The share of rows that a mode is on in."""
        assert self._on is not None
        return (self._on.double() / self.rows).float().cpu()

    @property
    def explained(self) -> Float[Tensor, "K"]:
        """The R2 that is lost without a mode, the others as they are; NaN where the rows do not vary."""
        assert self._sum is not None
        assert self._squares is not None
        assert self._gain is not None
        total = (self._squares - self._sum**2 / self.rows).clamp(min=0).sum()
        return (self._gain / total).float().cpu()

    def record(self) -> dict[str, float | int | None]:
        """As plain values."""
        errors = {"r2": self.r2, "grand_mean_r2": self.grand_mean_r2, "relative": self.relative}
        return {"rows": self.rows, **errors, "l0": self.l0}


def score(fitted: Decomposition, rows: Rows) -> Scores:
    """The scores of a fitted decomposition on rows, in one pass."""
    found = Scores()
    modes = fitted.modes
    for _, x in pieces(rows):
        x = x.to(modes)
        z = fitted.encode(x)
        found.add(x, fitted.reconstruct(x, z), z, modes)
    return found
