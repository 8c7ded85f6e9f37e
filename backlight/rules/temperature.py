"""Temperatures: how far a gate or a route is softened in the backward pass.

A temperature is a number (in units of the pre-activations), or `Relative(c)`: c times the standard deviation of the
layer's pre-activations. Absolute temperatures are the papers'. Relative ones do not change when a network is rescaled
without changing its function (a layer times c, the next one over c).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from backlight.errors import InputError, UnknownNameError


@dataclass(frozen=True)
class Relative:
    """c times the standard deviation of the pre-activations: for each sample over the layer, or over a channel.

    `per`: "layer" or "channel" (axis 1 of `[N, C, ...]`; the last axis of tokens `[N, T, D]`).
    """

    c: float = 1.0
    per: str = "layer"

    def __post_init__(self) -> None:
        if self.per not in ("layer", "channel"):
            raise UnknownNameError("spread", self.per, ["layer", "channel"])
        _not_negative(self.c)

    def of(self, z: Tensor, samples: int | None = None, infinite: bool = False) -> Tensor:
        """The temperature of each sample, broadcastable to z; 0 for constant pre-activations.

        z is `[N, ...]` where `samples` is N or None; else `[L, N, ...]`, or `[N W, ...]` with W windows a sample.
        `infinite`: entries may be infinite (the padding of a pool), and do not count.
        """
        if samples and len(z) != samples:
            if z.ndim == 3 and z.shape[1] == samples:
                return self.of(z.transpose(0, 1), None, infinite).transpose(0, 1)
            if len(z) % samples == 0 and self.per == "layer":
                windows = len(z) // samples
                spread = self.of(z.reshape(samples, -1), None, infinite)
                return spread.repeat_interleave(windows, 0).reshape(-1, *(1,) * (z.ndim - 1))
        axes = tuple(range(1, z.ndim))
        if self.per == "channel" and z.ndim >= 3:
            axes = (1,) if z.ndim == 3 else tuple(range(2, z.ndim))
        return self.c * _spread(z, axes, infinite) if axes else torch.zeros_like(z)


def _spread(z: Tensor, axes: tuple[int, ...], infinite: bool) -> Tensor:
    """Standard deviation over axes, kept; in float32 at least."""
    wide = torch.promote_types(z.dtype, torch.float32)

    def spread(z: Tensor, share: Tensor | float = 1.0) -> Tensor:
        mean = z.mean(axes, keepdim=True, dtype=wide) / share
        # forty times faster than torch.std on a CPU; what cancels is far below any spread that matters to a gate
        square = torch.linalg.vector_norm(z, dim=axes, keepdim=True, dtype=wide).square() * (mean.numel() / z.numel())
        return (square / share - mean.square()).clamp(min=0).sqrt()

    found = spread(z)
    if not infinite or bool(torch.isfinite(found).all()):
        return found
    finite = z.isfinite()
    return spread(z.where(finite, 0), finite.mean(axes, keepdim=True, dtype=wide).clamp(min=torch.finfo(wide).tiny))


Temperature = float | Relative


def _not_negative(value: float) -> None:
    if not value >= 0:
        raise InputError(f"a temperature is a number >= 0, got {value}")


def resolve(temperature: Temperature, z: Tensor, samples: int | None = None, infinite: bool = False) -> Tensor | float:
    """The temperature as a number, or as a tensor that broadcasts to z; see `Relative.of`."""
    return temperature.of(z, samples, infinite) if isinstance(temperature, Relative) else temperature


# Semantic Pullbacks, appendix A; the gates that the paper is silent about take the value of the gate they resemble.
PAPER: dict[str, Temperature] = {"relu": 0.6, "silu": 1.6, "gelu": 1.0, "max_pool": 0.3, "attention": 1.0}
EXCITATION: dict[str, Temperature] = {"relu": 0.3, "silu": 1.0, "gelu": 1.0, "max_pool": 0.3, "attention": 1.0}


# Switches and max-pools scale with their input, smooth gates have a scale of their own: only the former's temperature
# is relative. The factor is the evidence's choice (docs/temperature.md).
RELATIVE: dict[str, Temperature] = {**PAPER, "relu": Relative(1.0), "max_pool": Relative(1.0)}


TemperatureSetting = str | Temperature | Mapping[str, "str | Temperature | Mapping[str, Temperature]"]


def temperatures(setting: TemperatureSetting) -> tuple[dict[str, Temperature], dict[str, dict[str, Temperature]]]:
    """(temperature by operation, the same for layer patterns) that a setting stands for.

    A setting is "paper", "relative", "excitation", one number or `Relative` for every gate and max-pool, or a mapping
    from operations (relu, silu, gelu, max_pool, attention) or layer names to such settings; what a mapping leaves out
    is as in the paper.

    Raises:
        UnknownNameError: another name.
        InputError: a negative number.
    """
    named = {"paper": PAPER, "relative": RELATIVE, "excitation": EXCITATION}
    if isinstance(setting, str):
        if setting not in named:
            raise UnknownNameError("temperature", setting, named)
        return dict(named[setting]), {}
    if isinstance(setting, (int, float, Relative)):
        if not isinstance(setting, Relative):
            _not_negative(setting)
        return {**dict.fromkeys(PAPER, setting), "attention": 1.0}, {}
    base, _ = temperatures(setting["default"]) if "default" in setting else (dict(PAPER), {})
    layers: dict[str, dict[str, Temperature]] = {}
    for key, value in setting.items():
        if key in PAPER:
            if isinstance(value, (int, float)):
                _not_negative(value)
            base[key] = value  # type: ignore[assignment]
    for key, value in setting.items():
        if key not in PAPER and key != "default":
            layers[key] = {**base, **temperatures(value)[0]}
    return base, layers
