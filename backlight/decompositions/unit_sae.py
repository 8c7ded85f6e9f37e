"""What sparse autoencoders of one layer share: their tensors, how these begin, normalisation, and modes of length 1."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from backlight.decompositions.decomposition import Work
from backlight.decompositions.normalisation import (
    NORMALISATIONS,
    Normalised,
    geometric_median,
    normalised,
    root_mean_square,
    sampled,
)
from backlight.decompositions.scaling import moments
from backlight.decompositions.training import TrainedDecomposition
from backlight.errors import InputError
from backlight.shapes import Bool, Float, Int

CENTRES = ("mean", "median", "zero")


@dataclass(kw_only=True)
class UnitSAE(TrainedDecomposition):
    """z = W (x - b) + c where a latent is on, else 0; x_hat = z D + b, with modes D of length 1.

    Subclasses say which latents are on. Gradients along a mode are taken out before a step, and the mode is brought
    back to length 1 after it. The encoder begins as the modes' transpose.

    `centre`: where the offset b begins: at the rows' mean, their geometric "median", or "zero". `normalise`: "none";
    "global", rows divided by one number so that their mean squared length is 1; "token", each row less its mean and
    divided by its standard deviation. Codes, modes and offset are told in the rows' own units all the same (a code is
    that of the normalised row times what the row was divided by), so that `decode` is linear and d z_k / d x is the
    encoder's row k. With "token" the offset differs from row to row: `reconstruct` has each row's own, `decode` and
    `offset` the mean row's.
    """

    claims: ClassVar[tuple[str, ...]] = ("nonnegative loadings", "unit modes")
    per_mode: ClassVar[tuple[str, ...]] = ("encoder", "bias", "modes")
    alone: ClassVar[bool] = True  # whether a latent is on depends on no other latent

    centre: str = "mean"
    normalise: str = "none"

    def check(self, n: int, channels: int) -> None:
        super().check(n, channels)
        if self.centre not in CENTRES or self.normalise not in NORMALISATIONS:
            raise InputError(
                f"centre is one of {', '.join(CENTRES)}, normalise of {', '.join(NORMALISATIONS)}; "
                f"got {self.centre!r} and {self.normalise!r}"
            )

    def _initial(self, work: Work, n_modes: int, draw: torch.Generator) -> dict[str, Tensor]:
        modes = F.normalize(torch.randn((n_modes, work.rows.shape[1]), generator=draw))
        made = {"encoder": modes.clone(), "bias": torch.zeros(n_modes), "modes": modes}
        made |= self._statistics(work)
        return made | {"offset": self._centre(work, made.get("_scale"))}

    def _statistics(self, work: Work) -> dict[str, Tensor]:
        """What rows are divided by, of all rows; with "token", the mean row's level and scale."""
        if self.normalise == "global":
            return {"_scale": torch.tensor(root_mean_square(moments(work.rows)))}
        if self.normalise == "token":
            own = normalised(sampled(work.rows, torch.Generator().manual_seed(self.seed)), "token", None)
            level, scale = torch.as_tensor(own.level), torch.as_tensor(own.scale)
            return {"_level": level.double().mean().float(), "_scale": scale.double().mean().float()}
        return {}

    def _centre(self, work: Work, scale: Tensor | None) -> Float[Tensor, "C"]:
        if self.centre == "zero":
            return torch.zeros(work.rows.shape[1])
        if self.centre == "mean" and self.normalise != "token":
            return moments(work.rows).mean.float() / (1.0 if scale is None else scale)
        sample = sampled(work.rows, torch.Generator().manual_seed(self.seed))
        rows = normalised(sample, self.normalise, scale).rows
        return geometric_median(rows) if self.centre == "median" else rows.double().mean(0).float()

    def _on(self, before: Float[Tensor, "n K"], indices: Int[Tensor, "K"] | None = None) -> Bool[Tensor, "n K"]:
        """Which latents are on, by what they are before; `indices`: which latents the columns are, where not all."""
        raise NotImplementedError

    def _normal(self, x: Float[Tensor, "n C"]) -> Normalised:
        return normalised(x, self.normalise, self.state.get("_scale"))

    def _centred(self, rows: Float[Tensor, "n C"]) -> Float[Tensor, "n C"]:
        offset = self.state.get("offset")
        return rows if offset is None else rows - offset

    def _before(self, rows: Float[Tensor, "n C"], indices: Int[Tensor, "m"] | None = None) -> Tensor:
        """W (x - b) + c of normalised rows, of all latents or of some by their rows of the encoder alone."""
        encoder, bias = self.state["encoder"], self.state["bias"]
        if indices is not None:
            encoder, bias = encoder[indices], bias[indices]
        return F.linear(self._centred(rows), encoder, bias)

    def _encode(self, x: Float[Tensor, "n C"]) -> Float[Tensor, "n K"]:
        normal = self._normal(x)
        before = self._before(normal.rows)
        return torch.where(self._on(before), before, 0.0) * normal.scale

    def _latents(self, x: Float[Tensor, "n C"], indices: Int[Tensor, "m"] | None) -> Float[Tensor, "n m"]:
        normal = self._normal(x)
        before = self._before(normal.rows, indices)
        with torch.no_grad():
            if self.alone or indices is None:
                on = self._on(before, indices)
            else:  # those that are not asked for take places
                on = self._on(self._before(normal.rows))[:, indices]
        return torch.where(on, before, 0.0) * normal.scale

    def _encoder_rows(self, chosen: Tensor | slice) -> Float[Tensor, "m C"]:
        return self.state["encoder"][chosen]

    @property
    def offset(self) -> Float[Tensor, "C"] | None:
        """What is added to `z @ modes`, in the rows' units; with "token", of a row of mean level and scale."""
        found = self.state.get("offset")
        if found is None or "_scale" not in self.state:
            return found
        return found * self.state["_scale"] + self.state.get("_level", 0.0)

    def reconstruct(self, x: Float[Tensor, "n C"], z: Float[Tensor, "n K"] | None = None) -> Float[Tensor, "n C"]:
        """x_hat; with "token" by each row's own level and scale, which `decode` cannot know."""
        z = self.encode(x) if z is None else z
        if self.normalise != "token":
            return self.decode(z)
        modes, offset = self.modes, self.state.get("offset")
        with torch.no_grad():
            normal = self._normal(x.to(modes))
            return z.to(modes) @ modes + normal.level + normal.scale * (0.0 if offset is None else offset)

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
