"""The paper's sparse autoencoder: an encoder of three layers, a hard threshold, a dictionary."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from backlight.contributions.decompositions.decomposition import Work
from backlight.contributions.decompositions.training import Pass, TrainedDecomposition
from backlight.errors import InputError
from backlight.shapes import Bool, Float, Int

LAYERS = ("first", "second")
EPSILON = 1e-5  # of the layer norms


@dataclass(kw_only=True)
class ThresholdSAE(TrainedDecomposition):
    """A sigmoid encoder with a hard threshold: z = s 1[s >= threshold], x_hat = z D (CODEC, section 4).

    s = sigmoid(W3 LN(relu(dropout(W2 LN(relu(dropout(W1 x + b1))) + b2)))); the threshold passes no gradient where it
    closes. The loss is the mean squared error over batch and channels, and `mode_penalty` times the mean of |D|. With
    the threshold at 0.9 every loading is 0 or in [0.9, 1): codes are nearly binary.

    `hidden`: width of the encoder, None for the number of channels. `nonnegative`: D is the ReLU of the stored tensor.
    `projected`: D is the stored tensor, begun as |D| and clamped at 0 after each step: under the ReLU an entry that
    begins negative, half of them, has no gradient and stays 0.
    """

    source: ClassVar[str] = "CODEC, ICLR 2026, arXiv 2603.06557, section 4"
    formula: ClassVar[str] = "z = s 1[s >= threshold], s = sigmoid(MLP(x)); x_hat = z D; MSE + mode_penalty mean |D|"
    claims: ClassVar[tuple[str, ...]] = ("nonnegative loadings",)
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {},
        "reference": {"nonnegative": False, "hidden": 2048, "threshold": 0.8, "schedule": "plateau"},
        "retina": {
            "n_modes": "10x",
            "nonnegative": False,
            "mode_penalty": 1e-4,
            "learning_rate": 1e-5,
            "schedule": "step",
            "drop_last": True,
            "epochs": 800,
        },
    }
    per_mode: ClassVar[tuple[str, ...]] = ("head", "dictionary")

    threshold: float = 0.9
    nonnegative: bool = True
    projected: bool = False
    hidden: int | None = None
    mode_penalty: float = 5e-5
    dropout: float = 0.05
    epochs: int = 300
    learning_rate: float = 5e-5

    def _initial(self, work: Work, n_modes: int, draw: torch.Generator) -> dict[str, Tensor]:
        if not 0 < self.threshold < 1 or not 0 <= self.dropout < 1 or self.mode_penalty < 0:
            raise InputError("threshold lies between 0 and 1, dropout in [0, 1), mode_penalty is not negative")
        channels = work.rows.shape[1]
        width = self.hidden or channels
        made = {}
        for name, entries in zip(LAYERS, (channels, width), strict=True):
            made[f"{name}.weight"] = _uniform((width, entries), entries**-0.5, draw)
            made[f"{name}.bias"] = _uniform((width,), entries**-0.5, draw)
            made[f"{name}.scale"], made[f"{name}.shift"] = torch.ones(width), torch.zeros(width)
        made["head"] = _uniform((n_modes, width), width**-0.5, draw)
        made["dictionary"] = _uniform((n_modes, channels), math.sqrt(6 / (n_modes + channels)), draw)
        if self.projected:
            made["dictionary"].abs_()
        return made

    def _pass(self, x: Float[Tensor, "n C"], draw: torch.Generator, silent: Bool[Tensor, "K"]) -> Pass:
        z = self._codes(self._hidden(x, draw))
        dictionary = self._modes()
        decoded = z @ dictionary
        loss = F.mse_loss(decoded.float(), x) + self.mode_penalty * dictionary.abs().mean()
        return Pass(loss, decoded, z)

    def _encode(self, x: Float[Tensor, "n C"]) -> Float[Tensor, "n K"]:
        return self._codes(self._hidden(x))

    def _modes(self) -> Float[Tensor, "K C"]:
        stored = self.state["dictionary"]
        return stored.relu() if self.nonnegative and not self.projected else stored

    def _hidden(self, x: Float[Tensor, "n C"], draw: torch.Generator | None = None) -> Float[Tensor, "n M"]:
        for name in LAYERS:
            weight, bias, scale, shift = (self.state[f"{name}.{part}"] for part in ("weight", "bias", "scale", "shift"))
            x = F.linear(x, weight, bias)
            if draw is not None and self.dropout:
                keep = torch.empty_like(x).bernoulli_(1 - self.dropout, generator=draw)
                x = x * keep.div_(1 - self.dropout)
            x = F.layer_norm(x.relu(), scale.shape, scale, shift, EPSILON)
        return x

    def _codes(self, hidden: Float[Tensor, "n M"]) -> Float[Tensor, "n K"]:
        s = F.linear(hidden, self.state["head"]).sigmoid()
        return s * (s.detach() >= self.threshold)

    def _after_step(self) -> None:
        if self.projected:
            self.state["dictionary"].clamp_(min=0)

    def _revive(
        self,
        dead: Int[Tensor, "d"],
        x: Float[Tensor, "d C"],
        residual: Float[Tensor, "d C"],
        sample: Float[Tensor, "s C"],
    ) -> None:
        hidden = self._hidden(x)
        apart = hidden - self._hidden(sample).mean(0)
        wanted = (1 + self.threshold) / 2  # of the row itself: half-way between the threshold and 1
        along = (apart * hidden).sum(1, keepdim=True).clamp(min=1e-3)
        self.state["head"][dead] = apart * (math.log(wanted / (1 - wanted)) / along)
        self.state["dictionary"][dead] = residual.clamp(min=0) if self.nonnegative or self.projected else residual


def _uniform(shape: tuple[int, ...], bound: float, draw: torch.Generator) -> Tensor:
    return torch.empty(shape).uniform_(-bound, bound, generator=draw)
