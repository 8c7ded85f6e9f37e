"""The paper's sparse autoencoder: an encoder of three layers, a hard threshold, a dictionary."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from backlight.decompositions.decomposition import Work
from backlight.decompositions.scaling import refuse_negative
from backlight.decompositions.training import Pass, TrainedDecomposition
from backlight.errors import InputError
from backlight.shapes import Bool, Float, Int

LAYERS = ("first", "second")
EPSILON = 1e-5  # of the layer norms
REVIVED = 0.3  # of a residual: many modes are revived at once, and may be on in the same rows


_RETINA: Mapping[str, Any] = {
    "n_modes": "10x",
    "nonnegative": False,
    "mode_penalty": 1e-4,
    "learning_rate": 1e-5,
    "schedule": "step",
    "drop_last": True,
    "epochs": 800,
}
_REVIVING: Mapping[str, Any] = {"surrogate": 0.1, "revive_every": 10, "learning_rate": 1e-3, "epochs": 100}


@dataclass(kw_only=True)
class ThresholdSAE(TrainedDecomposition):
    """A sigmoid encoder with a hard threshold: z = s 1[s >= threshold], x_hat = z D (CODEC, section 4).

    s = sigmoid(W3 LN(relu(dropout(W2 LN(relu(dropout(W1 x + b1))) + b2)))); the threshold passes no gradient where it
    closes. The loss is the mean squared error over batch and channels, and `mode_penalty` times the mean of |D|. With
    the threshold at 0.9 every loading is 0 or in [0.9, 1): codes are nearly binary.

    `hidden`: width of the encoder, None for the number of channels. `nonnegative`: D is the ReLU of the stored tensor,
    and rows must not be negative. `projected`: a non-negative D is the stored tensor itself, begun as |D| and clamped
    at 0 after each step: under the ReLU an entry that begins negative, half of them, has no gradient and stays 0.
    `surrogate`: the share of the gradient that loadings below the threshold get as if they were on; at 0, the paper's,
    a mode that is off in all rows stays off. `revive_every` gives a dead mode 0.3 of what is missing of a row that is
    told badly, and needs the surrogate, which turns the mode on there. The preset "revived" has all three,
    "retina_revived" the latter two.
    """

    source: ClassVar[str] = "CODEC, ICLR 2026, arXiv 2603.06557, section 4"
    formula: ClassVar[str] = "z = s 1[s >= threshold], s = sigmoid(MLP(x)); x_hat = z D; MSE + mode_penalty mean |D|"
    claims: ClassVar[tuple[str, ...]] = ("nonnegative loadings",)
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {},
        "reference": {"nonnegative": False, "hidden": 2048, "threshold": 0.8, "schedule": "plateau"},
        "retina": _RETINA,
        "retina_revived": {**_RETINA, **_REVIVING},
        "revived": {"projected": True, **_REVIVING},
    }
    per_mode: ClassVar[tuple[str, ...]] = ("dictionary",)

    threshold: float = 0.9
    nonnegative: bool = True
    projected: bool = False
    surrogate: float = 0.0
    hidden: int | None = None
    mode_penalty: float = 5e-5
    dropout: float = 0.05
    epochs: int = 300
    learning_rate: float = 5e-5

    def check(self, n: int, channels: int) -> None:
        super().check(n, channels)
        if not 0 < self.threshold < 1 or not 0 <= self.dropout < 1 or self.mode_penalty < 0:
            raise InputError("threshold lies between 0 and 1, dropout in [0, 1), mode_penalty is not negative")
        if self.surrogate < 0 or (self.revive_every and not self.surrogate):
            raise InputError("revive_every needs a surrogate above 0, as 0.1: a mode that is off gets no gradient else")

    def _initial(self, work: Work, n_modes: int, draw: torch.Generator) -> dict[str, Tensor]:
        if self.nonnegative:
            refuse_negative(work.rows, "modes that are not negative cannot add up to it; nonnegative=False takes any")
        channels = work.rows.shape[1]
        width = self.hidden or channels
        made = {}
        for name, entries in zip(LAYERS, (channels, width), strict=True):
            made[f"{name}.weight"] = _uniform((width, entries), entries**-0.5, draw)
            made[f"{name}.bias"] = _uniform((width,), entries**-0.5, draw)
            made[f"{name}.scale"], made[f"{name}.shift"] = torch.ones(width), torch.zeros(width)
        made["head"] = _uniform((n_modes, width), width**-0.5, draw)
        made["dictionary"] = _uniform((n_modes, channels), math.sqrt(6 / (n_modes + channels)), draw)
        if self._clamped:
            made["dictionary"].abs_()
        return made

    def _pass(self, x: Float[Tensor, "n C"], draw: torch.Generator, silent: Bool[Tensor, "K"]) -> Pass:
        z = self._codes(self._hidden(x, draw), self.surrogate)
        dictionary = self._modes()
        decoded = z @ dictionary
        loss = F.mse_loss(decoded.float(), x) + self.mode_penalty * dictionary.abs().mean()
        return Pass.of(loss, decoded, z)

    def _encode(self, x: Float[Tensor, "n C"]) -> Float[Tensor, "n K"]:
        return self._codes(self._hidden(x))

    def _latents(self, x: Float[Tensor, "n C"], indices: Int[Tensor, "m"] | None) -> Float[Tensor, "n m"]:
        head = self.state["head"]
        return self._codes(self._hidden(x), head=head if indices is None else head[indices])

    def _modes(self) -> Float[Tensor, "K C"]:
        stored = self.state["dictionary"]
        return stored.relu() if self.nonnegative and not self._clamped else stored

    @property
    def _clamped(self) -> bool:
        return self.nonnegative and self.projected

    def _hidden(self, x: Float[Tensor, "n C"], draw: torch.Generator | None = None) -> Float[Tensor, "n M"]:
        for name in LAYERS:
            weight, bias, scale, shift = (self.state[f"{name}.{part}"] for part in ("weight", "bias", "scale", "shift"))
            x = F.linear(x, weight, bias)
            if draw is not None and self.dropout:
                keep = torch.empty_like(x).bernoulli_(1 - self.dropout, generator=draw)
                x = x * keep.div_(1 - self.dropout)
            x = F.layer_norm(x.relu(), scale.shape, scale, shift, EPSILON)
        return x

    def _codes(
        self, hidden: Float[Tensor, "n M"], surrogate: float = 0.0, head: Float[Tensor, "K M"] | None = None
    ) -> Float[Tensor, "n K"]:
        s = F.linear(hidden, self.state["head"] if head is None else head).sigmoid()
        on = s.detach() >= self.threshold
        z = s * on
        return z + surrogate * (s - s.detach()) * ~on if surrogate else z

    def _after_step(self) -> None:
        if self._clamped:
            self.state["dictionary"].clamp_(min=0)

    def _revive(
        self,
        dead: Int[Tensor, "d"],
        residual: Float[Tensor, "d C"],
    ) -> None:
        missing = residual.clamp(min=0) if self.nonnegative else residual
        self.state["dictionary"][dead] = REVIVED * missing


def _uniform(shape: tuple[int, ...], bound: float, draw: torch.Generator) -> Tensor:
    return torch.empty(shape).uniform_(-bound, bound, generator=draw)
