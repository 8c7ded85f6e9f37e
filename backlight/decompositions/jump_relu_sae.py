"""The sparse autoencoder with a threshold for each latent, that is learnt through a kernel."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from backlight.decompositions.decomposition import Work
from backlight.decompositions.selection import combine, encoder_gradients, few, positive, values_at, where_true
from backlight.decompositions.training import Pass
from backlight.decompositions.unit_sae import UnitSAE
from backlight.errors import InputError
from backlight.shapes import Bool, Float, Int

PENALTIES = ("l0", "tanh")
SAMPLE = 128  # rows of a batch by which it is decided whether codes are sparse


@dataclass(kw_only=True)
class JumpReLUSAE(UnitSAE):
    """z = p 1[p > theta], p = W (x - b) + c, theta > 0 of each latent; x_hat = z D + b (Rajamanoharan et al. 2024).

    The loss is |x - x_hat|^2 of a row, and a penalty: `price` times l0; or with a `target`, times (l0 / target - 1)^2,
    l0 the batch's mean. The step function has no gradient: thresholds get that of a rectangle of width `bandwidth`
    about them (the paper's equations 11 and 12), dz / dtheta = -theta / bandwidth 1[|p - theta| < bandwidth / 2] and
    d 1[p > theta] / dtheta = -1 / bandwidth of the same. Thresholds are kept as logarithms, and begin at `threshold`.

    `penalty`: "tanh" is `price` times sum tanh(`slope` z) in place of l0 (Conerly et al. 2025), and moves codes too.
    `price_warm_up`: updates over which the price rises from 0. Numbers are in units of rows whose mean squared length
    is 1, which the default `normalise` makes them.
    """

    source: ClassVar[str] = "Rajamanoharan et al. 2024, Jumping Ahead, arXiv 2407.14435"
    formula: ClassVar[str] = "p = W (x - b) + c; z = p 1[p > theta]; x_hat = z D + b, |D_k| = 1; |x - x_hat|^2 + price"
    per_mode: ClassVar[tuple[str, ...]] = ("encoder", "bias", "modes", "log_threshold")
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "target": {},
        "rajamanoharan": {
            "target": None,
            "price": 1e-3,
            "learning_rate": 7e-5,
            "warm_up": 1000,
            "price_warm_up": 10_000,
            "bandwidth": 0.001,
            "threshold": 0.001,
        },
        "conerly": {"penalty": "tanh", "target": None, "price": 1e-3, "slope": 4.0, "bandwidth": 2.0, "threshold": 0.1},
    }

    n_modes: int | str = "16x"
    target: float | None = 32.0
    price: float = 1.0
    penalty: str = "l0"
    slope: float = 4.0
    bandwidth: float = 0.1
    threshold: float = 0.1
    price_warm_up: int = 0
    normalise: str = "global"
    epochs: int = 10
    pass_steps: int = 2000
    learning_rate: float = 3e-4
    batch_size: int = 4096

    def check(self, n: int, channels: int) -> None:
        super().check(n, channels)
        if self.penalty not in PENALTIES or (self.penalty == "tanh" and self.target is not None):
            raise InputError(f"penalty is one of {', '.join(PENALTIES)}, a target is of l0; got {self.penalty!r}")
        if min(self.price, self.price_warm_up) < 0 or min(self.bandwidth, self.threshold, self.target or 1) <= 0:
            raise InputError("price and price_warm_up are not negative, bandwidth, threshold and target positive")

    def _initial(self, work: Work, n_modes: int, draw: torch.Generator) -> dict[str, Tensor]:
        made = super()._initial(work, n_modes, draw)
        return {**made, "log_threshold": torch.full((n_modes,), self.threshold).log()}

    def _pass(self, x: Float[Tensor, "n C"], draw: torch.Generator, silent: Bool[Tensor, "K"]) -> Pass:
        normal, state = self._normal(x), self.state
        threshold, tensors = state["log_threshold"].exp(), (state["encoder"], state["bias"], state["offset"])
        with torch.no_grad():
            centred = self._centred(normal.rows)
            before = F.linear(centred, state["encoder"], state["bias"])
            above = before - threshold
            on, counts = positive(above)
            reach = -self.bandwidth / 2  # from there on a latent moves its threshold
            sample = above[:SAMPLE]
            sparse = few((sample > reach).sum(0, dtype=torch.float32), len(sample))
        if sparse:
            places = where_true(above > reach)
            values = values_at(places, before, centred, *tensors)
            own = threshold[places.columns]
            codes, l0 = jump(values, own, self.bandwidth), step(values, own, self.bandwidth).sum() / len(x)
            told, tanh = combine(places, codes, state["modes"]), codes
        else:
            near = above.abs_().lt_(self.bandwidth / 2)
            codes, l0 = _Dense.apply(before.mul_(on), on, near, centred, *tensors, threshold, self.bandwidth)
            told, tanh = (codes @ state["modes"]).to(threshold.dtype), codes.to(threshold.dtype)
        decoded = told + state["offset"]
        if self.penalty == "tanh":
            penalty = (self.slope * tanh).tanh().sum() / len(x)
        else:
            penalty = l0 if self.target is None else (l0 / self.target - 1).square()
        price = self.price * (min(self.done / self.price_warm_up, 1.0) if self.price_warm_up else 1.0)
        loss = (decoded - normal.rows).square().sum() / len(x) + price * penalty
        return Pass(loss, normal.restored(decoded), counts > 0, counts.sum())

    def _on(self, before: Float[Tensor, "n K"], indices: Int[Tensor, "K"] | None = None) -> Bool[Tensor, "n K"]:
        threshold = self.state["log_threshold"].exp()
        return before > (threshold if indices is None else threshold[indices])

    def _revive(self, dead: Int[Tensor, "d"], residual: Float[Tensor, "d C"]) -> None:
        super()._revive(dead, residual)
        self.state["log_threshold"][dead] = torch.tensor(self.threshold).log().to(residual)


def jump(before: Float[Tensor, "e"], threshold: Float[Tensor, "e"], bandwidth: float) -> Float[Tensor, "e"]:
    """p 1[p > theta]; its gradient in theta by a rectangle of width `bandwidth`."""
    return _Jump.apply(before, threshold, bandwidth)


def step(before: Float[Tensor, "e"], threshold: Float[Tensor, "e"], bandwidth: float) -> Float[Tensor, "e"]:
    """1[p > theta]; its gradient in theta likewise, in p none."""
    return _Step.apply(before, threshold, bandwidth)


class _Jump(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, before: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(before, threshold)
        ctx.bandwidth = bandwidth
        return before * (before > threshold)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        before, threshold = ctx.saved_tensors
        near = (before - threshold).abs() < ctx.bandwidth / 2
        return gradient * (before > threshold), -(threshold / ctx.bandwidth) * near * gradient, None


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, before: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(before, threshold)
        ctx.bandwidth = bandwidth
        return (before > threshold).to(before.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        before, threshold = ctx.saved_tensors
        near = (before - threshold).abs() < ctx.bandwidth / 2
        return None, near * gradient / -ctx.bandwidth, None


class _Dense(torch.autograd.Function):
    """Codes and their mean l0 where many are on: `z`, `on` and `near` are of all latents."""

    @staticmethod
    def forward(
        ctx: Any,
        z: Tensor,
        on: Tensor,
        near: Tensor,
        centred: Tensor,
        encoder: Tensor,
        bias: Tensor,
        offset: Tensor,
        threshold: Tensor,
        bandwidth: float,
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(on, near, centred, encoder, threshold)
        ctx.bandwidth = bandwidth
        return z.view_as(z), on.sum(dtype=threshold.dtype) / len(z)

    @staticmethod
    def backward(ctx: Any, of_codes: Tensor, of_l0: Tensor) -> tuple[Tensor | None, ...]:
        on, near, centred, encoder, threshold = ctx.saved_tensors
        by_l0 = of_l0 * near.sum(0, dtype=threshold.dtype) / len(near)
        by_codes = threshold * near.mul_(of_codes).sum(0, dtype=threshold.dtype)  # in place: `near` and `on` are spent
        of_threshold = -(by_codes + by_l0) / ctx.bandwidth
        return None, None, None, None, *encoder_gradients(on.mul_(of_codes), centred, encoder, True), of_threshold, None
