"""Paths: the points at which an explanation is evaluated, and how they are combined.

`Point`, `Line`, `Noise` and `WeightNoise` give weighted points that are evaluated independently, in batches. Random
draws are the same for every sample of a batch: a sample's result does not depend on its batch mates. `Ascent` follows
the explanation from point to point.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from backlight.errors import InputError, UnknownNameError

Inputs = tuple[Tensor, ...]
Parameters = dict[nn.Parameter, Tensor]


@dataclass(frozen=True)
class Step:
    """One point for all samples: where, with which weight, and with which parameters (None: the model's own)."""

    inputs: Inputs
    weight: float
    parameters: Parameters | None = None


@dataclass(frozen=True)
class Point:
    """The input itself. Cost: one forward and one backward pass."""

    def steps(self, inputs: Inputs, model: nn.Module) -> Iterator[Step]:
        """The points and their weights."""
        yield Step(inputs, 1.0)


def line_rule(rule: str, n_steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes in [0, 1] and weights (of sum 1) of a quadrature rule with `n_steps` nodes.

    Raises:
        UnknownNameError: a rule other than trapezoid, gausslegendre, riemann_left, riemann_right, riemann_middle.
    """
    if n_steps < 1:
        raise InputError(f"n_steps must be at least 1, got {n_steps}")
    if rule == "gausslegendre":
        nodes, weights = np.polynomial.legendre.leggauss(n_steps)
        return (nodes + 1) / 2, weights / 2
    if rule == "trapezoid":
        if n_steps == 1:
            return np.array([1.0]), np.array([1.0])
        weights = np.full(n_steps, 1 / (n_steps - 1))
        weights[[0, -1]] /= 2
        return np.linspace(0, 1, n_steps), weights
    offsets = {"riemann_left": 0.0, "riemann_middle": 0.5, "riemann_right": 1.0}
    if rule not in offsets:
        raise UnknownNameError("line rule", rule, ["trapezoid", "gausslegendre", *offsets])
    return (np.arange(n_steps) + offsets[rule]) / n_steps, np.full(n_steps, 1 / n_steps)


def baseline_like(baseline: Any, x: Tensor) -> Tensor:
    """A baseline of x's shape: None or "zero", "mean" (each channel's own mean), "blur" (Gaussian, an eighth of the
    width), a number, or a tensor that broadcasts. "grey" is zero, the middle of inputs in [-1, 1].

    Raises:
        InputError: a tensor that does not broadcast to the input; "blur" of what is not an image.
    """
    if baseline is None:
        return torch.zeros_like(x)
    if isinstance(baseline, str):
        if baseline in ("zero", "grey"):
            return torch.zeros_like(x)
        if baseline == "mean":
            return x.mean(tuple(range(2, x.ndim)), keepdim=True).expand_as(x) if x.ndim > 2 else torch.zeros_like(x)
        if baseline == "blur":
            return blur(x, max(1.0, x.shape[-1] / 16))
        raise UnknownNameError("baseline", baseline, ["zero", "grey", "mean", "blur"])
    value = torch.as_tensor(baseline, dtype=x.dtype, device=x.device)
    try:
        return value.expand_as(x)
    except RuntimeError:
        raise InputError(f"baseline {list(value.shape)} does not broadcast to the input {list(x.shape)}") from None


def blur(x: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of `[N, C, H, W]` with reflected borders; sigma in pixels."""
    if x.ndim != 4:
        raise InputError(f"blur needs images [N, C, H, W], got {list(x.shape)}")
    for axis in (2, 3):
        radius = min(int(3 * sigma + 0.5), x.shape[axis] - 1)
        taps = torch.arange(-radius, radius + 1, dtype=x.dtype, device=x.device)
        kernel = torch.exp(-(taps**2) / (2 * sigma**2))
        shape = [1, 1, 1, 1]
        shape[axis] = len(taps)
        pad = (0, 0, radius, radius) if axis == 2 else (radius, radius, 0, 0)
        weight = (kernel / kernel.sum()).reshape(shape).repeat(x.shape[1], 1, 1, 1)
        x = nn.functional.conv2d(nn.functional.pad(x, pad, mode="reflect"), weight, groups=x.shape[1])
    return x


@dataclass(frozen=True)
class Line:
    """The straight line from a baseline to the input (Sundararajan et al. 2017). Cost: `n_steps` passes.

    `baseline`: see `baseline_like`; one for each input if a tuple.
    """

    n_steps: int = 50
    rule: str = "gausslegendre"
    baseline: Any = None

    def baselines(self, inputs: Inputs) -> Inputs:
        """The start of the line."""
        given = self.baseline if isinstance(self.baseline, tuple) else (self.baseline,) * len(inputs)
        if len(given) != len(inputs):
            raise InputError(f"{len(given)} baselines for {len(inputs)} inputs")
        return tuple(baseline_like(b, x.detach()) for b, x in zip(given, inputs, strict=True))

    def steps(self, inputs: Inputs, model: nn.Module) -> Iterator[Step]:
        """The points and their weights."""
        start = self.baselines(inputs)
        nodes, weights = line_rule(self.rule, self.n_steps)
        for node, weight in zip(nodes.tolist(), weights.tolist(), strict=True):
            yield Step(tuple(b + node * (x - b) for b, x in zip(start, inputs, strict=True)), weight)


def _normal(like: Tensor, generator: torch.Generator) -> Tensor:
    """Standard normal numbers of one sample's shape, `[1, ...]`; drawn on the CPU, so that devices agree."""
    return torch.randn(1, *like.shape[1:], generator=generator, dtype=torch.float32).to(like)


@dataclass(frozen=True)
class Noise:
    """Gaussian noise on the input (SmoothGrad, Smilkov et al. 2017). `stdev` in units of the input. Cost: n_samples."""

    n_samples: int = 50
    stdev: float = 0.15
    seed: int = 0

    def steps(self, inputs: Inputs, model: nn.Module) -> Iterator[Step]:
        """The points and their weights."""
        generator = torch.Generator().manual_seed(self.seed)
        for _ in range(_positive("n_samples", self.n_samples)):
            yield Step(tuple(x + self.stdev * _normal(x, generator) for x in inputs), 1 / self.n_samples)


@dataclass(frozen=True)
class WeightNoise:
    """Noisy weights and noisy inputs (FusionGrad, Bykov et al. 2022): every parameter x N(1, weight_stdev^2).

    The model's parameters are never written to. Cost: `n_weights` x `n_samples` passes.
    """

    n_weights: int = 10
    n_samples: int = 10
    weight_stdev: float = 0.1
    stdev: float = 0.15
    seed: int = 0

    def steps(self, inputs: Inputs, model: nn.Module) -> Iterator[Step]:
        """The points and their weights."""
        generator = torch.Generator().manual_seed(self.seed)
        count = _positive("n_weights", self.n_weights) * _positive("n_samples", self.n_samples)
        for _ in range(self.n_weights):
            parameters = {
                p: p.detach() * (1 + self.weight_stdev * _normal(p[None], generator)[0])
                for p in model.parameters()
                if p.is_floating_point()
            }
            for _ in range(self.n_samples):
                yield Step(tuple(x + self.stdev * _normal(x, generator) for x in inputs), 1 / count, parameters)


def _positive(name: str, value: int) -> int:
    if value < 1:
        raise InputError(f"{name} must be at least 1, got {value}")
    return value


def norms(x: Tensor) -> Tensor:
    """l2 norm of each sample over all its entries, `[N, 1, ...]`, in float32 at least."""
    wide = x.flatten(1).to(torch.promote_types(x.dtype, torch.float32))
    return torch.linalg.vector_norm(wide, dim=1).reshape(-1, *(1,) * (x.ndim - 1))


@dataclass(frozen=True)
class Ascent:
    """Follow the explanation: x <- x + step * g / |g| (Semantic Pullbacks, section 3.3, equation 6).

    `step`: the l2 length of a step over a sample's entries, in units of the input (20 for 224 x 224 images in
    [-1, 1]); None adds the raw direction. `relative`: lengths are multiplied by the norm of x. `radius`: an l2 ball
    around the start. `box`: (low, high), numbers or tensors, the valid range; `project`: when to clip to it, "never",
    "every" step or "last". Result: the accumulated displacement. Cost: `n_steps` forward and backward passes.
    """

    n_steps: int = 5
    step: float | None = 20.0
    normalise: bool = True
    relative: bool = False
    radius: float | None = None
    box: tuple[Any, Any] | None = None
    project: str = "never"

    def __post_init__(self) -> None:
        _positive("n_steps", self.n_steps)
        if self.project not in ("never", "every", "last"):
            raise UnknownNameError("projection", self.project, ["never", "every", "last"])
        if self.project != "never" and self.box is None:
            raise InputError(f"project={self.project!r} needs box=(low, high)")
        if self.radius is not None and self.radius < 0:
            raise InputError(f"radius must not be negative, got {self.radius}")

    def climb(self, inputs: Inputs, direction: Callable[[Inputs], Inputs]) -> Iterator[Inputs]:
        """The points after each step; `direction` evaluates the explanation at a point."""
        x = inputs
        for number in range(1, self.n_steps + 1):
            g = direction(x)
            x = tuple(self._next(number, *point) for point in zip(inputs, x, g, strict=True))
            yield x

    def _next(self, number: int, start: Tensor, x: Tensor, g: Tensor) -> Tensor:
        if self.step is not None:
            if self.normalise:
                g = g / norms(g).clamp(min=1e-20)
            if self.relative:
                g = g * norms(x)
            g = g * self.step
        x = x + g.to(x.dtype)
        if self.radius is not None:
            away = x - start
            x = start + (away * (self.radius / norms(away).clamp(min=1e-12)).clamp(max=1)).to(x.dtype)
        if self.box is not None and (self.project == "every" or (self.project == "last" and number == self.n_steps)):
            low, high = (torch.as_tensor(bound, dtype=x.dtype, device=x.device) for bound in self.box)
            x = torch.minimum(torch.maximum(x, low), high)
        return x
