"""The sparse autoencoder with ReLU and an L1 penalty: what activations are decomposed with most."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from backlight.decompositions.decomposition import Work
from backlight.decompositions.scaling import moments
from backlight.decompositions.training import Pass, TrainedDecomposition
from backlight.errors import InputError
from backlight.shapes import Bool, Float, Int


@dataclass(kw_only=True)
class UnitSAE(TrainedDecomposition):
    """One layer, modes of length 1, and an offset: what `ReLUSAE` and `TopKSAE` share.

    Gradients along a mode are taken out before a step, and the mode is brought back to length 1 after it. The encoder
    begins as the modes' transpose, the offset as the rows' mean.
    """

    claims: ClassVar[tuple[str, ...]] = ("nonnegative loadings", "unit modes")
    per_mode: ClassVar[tuple[str, ...]] = ("encoder", "bias", "modes")

    revive_every: int = 10

    def _initial(self, work: Work, n_modes: int, draw: torch.Generator) -> dict[str, Tensor]:
        modes = F.normalize(torch.randn((n_modes, work.rows.shape[1]), generator=draw))
        mean = moments(work.rows).mean.float()
        return {"encoder": modes.clone(), "bias": torch.zeros(n_modes), "modes": modes, "offset": mean}

    def _before(self, x: Float[Tensor, "n C"]) -> Float[Tensor, "n K"]:
        """What the ReLU is given."""
        return F.linear(x - self.state["offset"], self.state["encoder"], self.state["bias"])

    def _chosen_before(self, x: Float[Tensor, "n C"], indices: Int[Tensor, "m"] | None) -> Float[Tensor, "n m"]:
        """The same of some latents, by their rows of the encoder alone."""
        if indices is None:
            return self._before(x)
        return F.linear(x - self.state["offset"], self.state["encoder"][indices], self.state["bias"][indices])

    def _encoder_rows(self, chosen: Tensor | slice) -> Float[Tensor, "m C"]:
        return self.state["encoder"][chosen]

    def _before_step(self) -> None:
        modes, gradient = self.state["modes"], self.state["modes"].grad
        if gradient is not None:
            gradient -= (gradient * modes).sum(1, keepdim=True) * modes

    def _after_step(self) -> None:
        modes = self.state["modes"]
        modes.copy_(F.normalize(modes))

    def _revive(
        self,
        dead: Int[Tensor, "d"],
        residual: Float[Tensor, "d C"],
    ) -> None:
        alive = torch.ones(len(self.state["bias"]), dtype=torch.bool, device=dead.device)
        alive[dead] = False
        encoder = self.state["encoder"]
        length = encoder[alive].norm(dim=1).mean() if alive.any() else encoder.norm(dim=1).mean()
        direction = F.normalize(residual)
        self.state["modes"][dead] = direction
        encoder[dead] = 0.2 * length * direction
        self.state["bias"][dead] = 0.0


@dataclass(kw_only=True)
class ReLUSAE(UnitSAE):
    """z = relu(W (x - b) + c), x_hat = z D + b, modes of length 1, and a price on loadings (Bricken et al. 2023).

    The loss is the mean squared error over batch and channels, and `l1` / sqrt(C) times the mean over rows of sum |z|:
    divided so, a price says the same for any number of channels, where rows have a standard deviation of 1. Every ten
    epochs, modes that were on in no row are set to what is missing of rows drawn in proportion to their squared error,
    their encoders to 0.2 of the others' mean length.
    """

    source: ClassVar[str] = "Bricken et al. 2023, Towards Monosemanticity"
    formula: ClassVar[str] = "z = relu(W (x - b) + c); x_hat = z D + b, |D_k| = 1; MSE + l1 / sqrt(C) sum |z|"

    l1: float = 0.1

    def check(self, n: int, channels: int) -> None:
        super().check(n, channels)
        if self.l1 < 0:
            raise InputError(f"l1 is not negative, got {self.l1}")

    def _pass(self, x: Float[Tensor, "n C"], draw: torch.Generator, silent: Bool[Tensor, "K"]) -> Pass:
        z = self._before(x).relu()
        decoded = z @ self.state["modes"] + self.state["offset"]
        loss = F.mse_loss(decoded.float(), x) + self.l1 * x.shape[1] ** -0.5 * z.sum(1).mean()
        return Pass(loss, decoded, z)

    def _encode(self, x: Float[Tensor, "n C"]) -> Float[Tensor, "n K"]:
        return self._before(x).relu()

    def _latents(self, x: Float[Tensor, "n C"], indices: Int[Tensor, "m"] | None) -> Float[Tensor, "n m"]:
        return self._chosen_before(x, indices).relu()
