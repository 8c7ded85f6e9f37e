"""Correlations over the last axis, in double precision; NaN where one of the two does not vary."""

from __future__ import annotations

import torch
from torch import Tensor

from backlight.errors import InputError
from backlight.shapes import Float


def pearson(a: Float[Tensor, "*rows P"], b: Float[Tensor, "*rows_ P"]) -> Float[Tensor, "*rows"]:
    """Pearson's correlation, in [-1, 1]; leading axes broadcast.

    NaN where `a` or `b` is constant, which has none: what rounding leaves of it is no variation.
    """
    if a.shape[-1] != b.shape[-1]:
        raise InputError(f"{a.shape[-1]} and {b.shape[-1]} values cannot be correlated")
    a, b = torch.broadcast_tensors(precise(a), precise(b))
    constant = (a.amax(-1) == a.amin(-1)) | (b.amax(-1) == b.amin(-1))
    a, b = (t - t.mean(-1, keepdim=True) for t in (a, b))
    scale = torch.linalg.vector_norm(a, dim=-1) * torch.linalg.vector_norm(b, dim=-1)
    return torch.where(constant, torch.nan, (a * b).sum(-1) / scale).clamp(-1, 1)


def spearman(a: Float[Tensor, "*rows P"], b: Float[Tensor, "*rows_ P"]) -> Float[Tensor, "*rows"]:
    """Spearman's rank correlation, in [-1, 1]: Pearson's of the ranks, ties taking their mean rank."""
    return pearson(ranks(a), ranks(b))


def ranks(values: Float[Tensor, "*rows P"]) -> Float[Tensor, "*rows P"]:
    """Ranks from 1; tied values share the mean of theirs. NaN ranks are NaN."""
    values = precise(values).contiguous()
    ordered = values.sort(-1).values
    below = torch.searchsorted(ordered, values, right=False)
    upto = torch.searchsorted(ordered, values, right=True)
    return torch.where(values.isnan(), torch.nan, (below + upto + 1).to(values) / 2)


def precise(values: Tensor) -> Tensor:
    """Detached and in double precision; on the CPU where the device has none."""
    values = values.detach()
    return (values.cpu() if values.device.type == "mps" else values).double()
