"""Readouts: what is made of the value at a site, its cotangent, and its difference to the baseline."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from backlight.errors import SiteError, UnknownNameError

# (value at the explained input, cotangent at the point, value minus baseline) -> attribution
Readout = Callable[[Tensor, Tensor, Tensor], Tensor]


def _sum_over(readout: Readout, axes: Callable[[int], tuple[int, ...]]) -> Readout:
    def summed(value: Tensor, cotangent: Tensor, difference: Tensor) -> Tensor:
        result = readout(value, cotangent, difference)
        return result.sum(axes(result.ndim)) if axes(result.ndim) else result

    return summed


def _value(value: Tensor, cotangent: Tensor, difference: Tensor) -> Tensor:
    return value * cotangent


def _tokens(value: Tensor, cotangent: Tensor) -> Tensor:
    if value.ndim != 3:
        raise SiteError(f"a site of shape {list(value.shape)} does not hold tokens [N, L, D]")
    return value * cotangent


READOUTS: dict[str, Readout] = {
    "cotangent": lambda value, cotangent, difference: cotangent,
    "value": _value,
    "difference": lambda value, cotangent, difference: difference * cotangent,
    "positive": lambda value, cotangent, difference: _value(value, cotangent, difference).clamp(min=0),
    "value_over_channels": _sum_over(_value, lambda ndim: (1,)),
    "value_over_space": _sum_over(_value, lambda ndim: tuple(range(2, ndim))),
    # of tokens [N, L, D], whose channels are last: [N, L]; the norm is unsigned and sums to nothing
    "token_norm": lambda value, cotangent, difference: _tokens(value, cotangent).norm(dim=-1),
    "token_sum": lambda value, cotangent, difference: _tokens(value, cotangent).sum(-1),
}


def as_readout(readout: str | Readout) -> Readout:
    """A readout by name, or a function (value, cotangent, difference) -> attribution.

    Raises:
        UnknownNameError: a name that is not in `READOUTS`.
    """
    if callable(readout):
        return readout
    if readout not in READOUTS:
        raise UnknownNameError("readout", readout, READOUTS)
    return READOUTS[readout]
