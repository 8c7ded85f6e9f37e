"""Controls: maps that explain nothing, and that a metric must not rank above an explanation."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from backlight.errors import InputError, UnknownNameError
from backlight.metrics.explainers import Explainer
from backlight.shapes import Float

_SOBEL = ((-1.0, 0.0, 1.0), (-2.0, 0.0, 2.0), (-1.0, 0.0, 1.0))


def random_map(inputs: Float[Tensor, "N C H W"], seed: int = 0) -> Float[Tensor, "N C H W"]:
    """N(0, 1) in every entry; a sample's draws come from the seed and from its own values."""
    maps = []
    for x in inputs:
        content = hashlib.sha256(x.detach().cpu().float().numpy().tobytes()).digest()
        generator = torch.Generator().manual_seed(seed + int.from_bytes(content[:6], "little"))
        maps.append(torch.randn(x.shape, generator=generator))
    return torch.stack(maps).to(inputs)


def blurred_random_map(inputs: Float[Tensor, "N C H W"], seed: int = 0) -> Float[Tensor, "N C H W"]:
    """The random map, blurred with a Gaussian of 1/16 of the shorter side: some metrics reward smoothness alone."""
    stdev = min(inputs.shape[2:]) / 16
    reach = max(1, round(3 * stdev))
    weights = torch.exp(-(torch.arange(-reach, reach + 1) ** 2) / (2 * stdev**2)).to(inputs)
    maps = F.pad(random_map(inputs, seed), (reach,) * 4, mode="replicate").flatten(0, 1)[:, None]
    for kernel in (weights[:, None], weights[None]):
        maps = F.conv2d(maps, kernel[None, None] / weights.sum())
    return maps.reshape(inputs.shape)


def constant_map(inputs: Float[Tensor, "N C H W"]) -> Float[Tensor, "N C H W"]:
    """1 in every entry."""
    return torch.ones_like(inputs)


def centre_prior(inputs: Float[Tensor, "N C H W"]) -> Float[Tensor, "N 1 H W"]:
    """A Gaussian around the centre, of a standard deviation of a quarter of each side: photographers centre objects."""
    down, across = (torch.linspace(-2, 2, side, device=inputs.device) for side in inputs.shape[2:])
    bump = torch.exp(-(down[:, None] ** 2 + across**2) / 2)
    return bump.to(inputs).expand(len(inputs), 1, -1, -1)


def edge_map(inputs: Float[Tensor, "N C H W"]) -> Float[Tensor, "N 1 H W"]:
    """The norm of Sobel's derivatives, over channels and directions (Adebayo et al. 2018's edge detector)."""
    kernel = torch.tensor(_SOBEL).to(inputs)
    kernels = torch.stack([kernel, kernel.T])[:, None].repeat(inputs.shape[1], 1, 1, 1)
    padded = F.pad(inputs, (1, 1, 1, 1), mode="replicate")
    return torch.linalg.vector_norm(F.conv2d(padded, kernels, groups=inputs.shape[1]), dim=1, keepdim=True)


def input_itself(inputs: Float[Tensor, "N C H W"]) -> Float[Tensor, "N C H W"]:
    """The input, as the network gets it."""
    return inputs.clone()


@dataclass
class Control(Explainer):
    """A control by name; it knows neither network nor target."""

    name: str
    seed: int = 0

    def __post_init__(self) -> None:
        if self.name not in CONTROLS:
            raise UnknownNameError("control", self.name, CONTROLS)

    def __call__(self, inputs: Tensor, target: Any) -> Tensor:
        if inputs.ndim != 4:
            raise InputError(f"controls are maps of images [N, C, H, W], got {list(inputs.shape)}")
        make = CONTROLS[self.name]
        return make(inputs, self.seed) if make in (random_map, blurred_random_map) else make(inputs)

    def reseeded(self, seed: int) -> Explainer:
        return Control(self.name, seed)

    def on(self, model: Any) -> Explainer:
        return self


@dataclass
class Negative(Explainer):
    """Minus another explainer's maps: what a metric that is blind to signs cannot tell from it."""

    explainer: Explainer

    def __call__(self, inputs: Tensor, target: Any) -> Tensor:
        return -self.explainer(inputs, target)

    def reseeded(self, seed: int) -> Explainer:
        return Negative(self.explainer.reseeded(seed))

    def on(self, model: Any) -> Explainer:
        return Negative(self.explainer.on(model))


CONTROLS = {
    "random": random_map,
    "blurred random": blurred_random_map,
    "constant": constant_map,
    "centre": centre_prior,
    "edges": edge_map,
    "input": input_itself,
}


def controls(seed: int = 0) -> dict[str, Control]:
    """Every control, named `control: random`, `control: constant`, ..."""
    return {f"control: {name}": Control(name, seed) for name in CONTROLS}


def is_control(name: str) -> bool:
    """Whether an explanation's name is a control's, or that of the negative of a map."""
    return name.startswith(("control: ", "minus "))
