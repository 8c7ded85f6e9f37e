"""Normalisation: statistics are held, also the mean (Semantic Pullbacks, A.3).

y = gamma (z - mu) / s + beta with mu and s held, so delta_z = gamma delta_y / s, and beta - gamma mu / s is bias.
BatchNorm in evaluation mode is affine already; its rule only keeps nothing but a number a channel.

With `hold_mean=False` only s is held, and the mean stays in the graph, as in the identity rule of AttnLRP: with
h = gamma delta_y / s, delta_z = h - mean(h), the mean being over the axes of the statistics; only beta is bias.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from backlight.engine.adjoint import replace_adjoint
from backlight.engine.rules import Call, Mark
from backlight.errors import ModelError

# z -> (mean, 1 / s), both broadcastable to z
Statistics = Callable[[Tensor], tuple[Tensor | float, Tensor]]


def _moments(z: Tensor, axes: tuple[int, ...], eps: float) -> tuple[Tensor, Tensor]:
    wide = z.to(torch.promote_types(z.dtype, torch.float32))
    variance, mean = torch.var_mean(wide, axes, correction=0, keepdim=True)
    return mean, torch.rsqrt(variance + eps)


def _layer(call: Call) -> tuple[Statistics, Any, Any]:
    shape = call.argument(1, "normalized_shape")
    count = len(shape) if hasattr(shape, "__len__") else 1
    axes, eps = tuple(range(-count, 0)), call.argument(4, "eps", 1e-5)
    return lambda z: _moments(z, axes, eps), call.argument(2, "weight"), call.argument(3, "bias")


def _rms(call: Call) -> tuple[Statistics, Any, Any]:
    shape = call.argument(1, "normalized_shape")
    axes, eps = tuple(range(-len(shape), 0)), call.argument(3, "eps")

    def statistics(z: Tensor) -> tuple[float, Tensor]:
        wide = z.to(torch.promote_types(z.dtype, torch.float32))
        stable = torch.finfo(z.dtype).eps if eps is None else eps
        return 0.0, torch.rsqrt(wide.square().mean(axes, keepdim=True) + stable)

    return statistics, call.argument(2, "weight"), None


def _per_channel(parameter: Tensor | None, z: Tensor) -> Tensor | None:
    return None if parameter is None else parameter.reshape(1, -1, *(1,) * (z.ndim - 2))


def _group(call: Call) -> tuple[Statistics, Any, Any]:
    groups, eps = call.argument(1, "num_groups"), call.argument(4, "eps", 1e-5)

    def statistics(z: Tensor) -> tuple[Tensor, Tensor]:
        grouped = z.reshape(len(z), groups, -1)
        mean, scale = _moments(grouped, (2,), eps)
        shape = (len(z), z.shape[1], *(1,) * (z.ndim - 2))
        width = z.shape[1] // groups
        return mean.repeat_interleave(width, 1).reshape(shape), scale.repeat_interleave(width, 1).reshape(shape)

    z = call.input
    return statistics, _per_channel(call.argument(2, "weight"), z), _per_channel(call.argument(3, "bias"), z)


def _instance(call: Call) -> tuple[Statistics, Any, Any]:
    z, eps = call.input, call.argument(7, "eps", 1e-5)
    weight, bias = _per_channel(call.argument(3, "weight"), z), _per_channel(call.argument(4, "bias"), z)
    if not call.argument(5, "use_input_stats", True):
        mean, variance = (
            _per_channel(call.argument(n, name), z) for n, name in ((1, "running_mean"), (2, "running_var"))
        )
        return lambda z: (mean, torch.rsqrt(variance + eps)), weight, bias  # type: ignore[return-value]
    return lambda z: _moments(z, tuple(range(2, z.ndim)), eps), weight, bias


def _batch(call: Call) -> tuple[Statistics, Any, Any]:
    z, eps = call.input, call.argument(7, "eps", 1e-5)
    mean, variance = (_per_channel(call.argument(n, name), z) for n, name in ((1, "running_mean"), (2, "running_var")))
    if call.argument(5, "training", False) or mean is None or variance is None:
        raise ModelError(
            f"BatchNorm in layer {call.layer!r} uses the statistics of the batch, so that samples explain each other: "
            "call model.eval()"
        )
    scale = torch.rsqrt(variance + eps)
    weight, bias = _per_channel(call.argument(3, "weight"), z), _per_channel(call.argument(4, "bias"), z)
    return lambda z: (mean, scale), weight, bias


_NORMS = {
    "layer_norm": _layer,
    "rms_norm": _rms,
    "group_norm": _group,
    "instance_norm": _instance,
    "batch_norm": _batch,
}


def read_norm(call: Call) -> tuple[Statistics, Tensor | None, Tensor | None]:
    """(statistics of the input, weight, bias), all broadcastable to the input, of a normalisation's call.

    Raises:
        ModelError: a BatchNorm in training mode.
    """
    return _NORMS[call.operation](call)


def _runs_on(call: Call) -> bool:
    """Whether a normalisation uses running statistics, which are constants."""
    return call.operation == "batch_norm" or (
        call.operation == "instance_norm" and not call.argument(5, "use_input_stats", True)
    )


@dataclass(frozen=True)
class NormRule:
    """delta_z = gamma delta_y / s with the statistics held; with `hold_mean=False` less its mean: only s is held."""

    hold_mean: bool = True
    label: str = "held statistics"

    def __call__(self, call: Call) -> Any:
        statistics, weight, bias = read_norm(call)
        centred = not self.hold_mean and not _runs_on(call)
        known: list[Tensor] = []  # 1 / s where the kernel computes it anyway
        dtype = call.input.dtype

        def compute(z: Tensor) -> Tensor:
            if call.operation != "layer_norm" or torch.is_autocast_enabled(z.device.type):
                return call.on(z)
            shape = call.argument(1, "normalized_shape")
            shape = list(shape) if hasattr(shape, "__len__") else [shape]
            y, _, scale = torch.native_layer_norm(z, shape, weight, bias, call.argument(4, "eps", 1e-5))
            known.append(scale)
            return y

        def vjp(z: Tensor, y: Any, cotangent: Tensor) -> Tensor:
            scale = known[0] if known and not torch.is_grad_enabled() else statistics(z)[1]
            if weight is not None and weight.numel() > scale.numel():
                cotangent, factor = cotangent * weight, scale
            else:
                factor = scale if weight is None else scale * weight
            if not centred:
                return (cotangent * factor).to(dtype)
            passed = cotangent * factor
            return (passed - statistics(passed)[0]).to(dtype)  # their mean over the axes of the statistics

        def constant() -> Tensor | float:
            if centred:
                return 0.0 if bias is None else bias
            mean, scale = statistics(call.input.detach())
            shift = -mean * scale if weight is None else -mean * scale * weight
            return shift if bias is None else shift + bias

        result = replace_adjoint(
            call.input, compute, vjp, "" if call.operation == "batch_norm" else "z", call.run.phase
        )
        return call.run.bias(result, constant)


@dataclass(frozen=True)
class NormalizeRule:
    """`F.normalize`, x / max(|x|, eps), and local response normalisation: the denominator is held."""

    label: str = "held statistics"

    def __call__(self, call: Call) -> Any:
        if call.operation == "normalize":
            p, axis, eps = call.argument(1, "p", 2.0), call.argument(2, "dim", 1), call.argument(3, "eps", 1e-12)

            def denominator(z: Tensor) -> Tensor:
                return z.norm(p, axis, keepdim=True).clamp_min(eps)
        else:
            size, alpha = call.argument(1, "size"), call.argument(2, "alpha", 1e-4)
            beta, k = call.argument(3, "beta", 0.75), call.argument(4, "k", 1.0)

            def denominator(z: Tensor) -> Tensor:
                squares = torch.nn.functional.pad(z.square().movedim(1, -1), (size // 2, (size - 1) // 2))
                sums = squares.unfold(-1, size, 1).mean(-1).movedim(-1, 1)
                return (k + alpha * sums).pow(beta)

        return call.adjoint(lambda z, y, cotangent: cotangent / denominator(z))


@dataclass(frozen=True)
class MeanRule:
    """An ordinary mean; it is remembered, in case it is subtracted from what it is the mean of."""

    label: str = "exact"

    def __call__(self, call: Call) -> Any:
        result = call.original()
        if isinstance(result, Tensor):
            call.run.marks[result] = Mark("mean", call.input)
        return result
