"""Instantaneous receptive fields: what in the stimulus a cell's rate depends on, frame by frame."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from backlight.errors import InputError, ModelError
from backlight.shapes import Float

LOBE = 0.5  # of the height of the tallest lobe


@dataclass(frozen=True, eq=False)
class SpaceTime:
    """The closest product of a course in time and a map in space: `strength` x `temporal` x `spatial`.

    `temporal` `[*n, F]` and `spatial` `[*n, H, W]` have length 1. The latest entry of `temporal` that is at least half
    as far from 0 as the farthest is positive: `spatial` says whether light (+) or dark (-) just now drives the cell.
    (Of filters with two lobes of nearly one height the farthest entry alone says now this, now that.) `share`: how much
    of the sum of squares the product tells, in [0, 1]. Of a field that is 0 all are 0.
    """

    temporal: Float[Tensor, "*n F"]
    spatial: Float[Tensor, "*n H W"]
    strength: Float[Tensor, "*n"]
    share: Float[Tensor, "*n"]


def receptive_fields(
    network: nn.Module, windows: Float[Tensor, "n F H W"], cells: Sequence[int] | None = None, *, batch_size: int = 64
) -> Float[Tensor, "n cells F H W"]:
    """d rate_c / d stimulus at each window (CODEC, section 7), for chosen cells; None: all.

    A forward pass a batch and a backward pass a batch and cell; frames are independent of each other in evaluation
    mode, so that the gradient of their sum is that of each. Memory: n x cells windows.

    Raises:
        ModelError: a network in training mode. InputError: cells that there are not.
    """
    training = [name or "the network itself" for name, part in network.named_modules() if part.training]
    if training:
        raise ModelError(f"the network is in training mode ({training[0]}): call network.eval() first")
    place = next((one for one in (*network.parameters(), *network.buffers()) if one.is_floating_point()), windows)
    parts = []
    for start in range(0, len(windows), batch_size):
        x = windows[start : start + batch_size].to(place).contiguous().requires_grad_()
        with torch.enable_grad():
            rates = network(x)
            wanted = range(rates.shape[1]) if cells is None else cells
            if not len(wanted) or min(wanted) < 0 or max(wanted) >= rates.shape[1]:
                raise InputError(f"cells are numbers from 0 to {rates.shape[1] - 1}, at least one: got {list(wanted)}")
            sums = rates.sum(0)
            fields = [torch.autograd.grad(sums[c], x, retain_graph=c != wanted[-1] or i + 1 < len(wanted))[0]
                      for i, c in enumerate(wanted)]  # fmt: skip
        parts.append(torch.stack(fields, 1).cpu())
    return torch.cat(parts)


def space_time(fields: Float[Tensor, "*n F H W"], *, centred: bool = False) -> SpaceTime:
    """The singular value decomposition of `[F, H W]`, its first term, float64 inside.

    `centred`: take the mean over all entries away first, as the reference does; `share` is then of what is left.
    """
    flat = fields.detach().double().flatten(-2)
    if centred:
        flat = flat - flat.mean((-2, -1), keepdim=True)
    u, s, v = torch.linalg.svd(flat, full_matrices=False)
    temporal, spatial = u[..., 0], v[..., 0, :]
    size = temporal.abs()
    tall = (size >= LOBE * size.amax(-1, keepdim=True)).double()
    latest = (tall * torch.arange(1, size.shape[-1] + 1, device=tall.device)).argmax(-1, keepdim=True)
    sign = torch.where(temporal.gather(-1, latest) < 0, -1.0, 1.0).double()
    power = s.square().sum(-1)
    known = (power > 0).double()
    share = s[..., 0].square() / torch.where(power > 0, power, torch.ones_like(power))
    on = known[..., None]
    spatial = (spatial * sign * on).unflatten(-1, fields.shape[-2:])
    kept = (temporal * sign * on, spatial, s[..., 0] * known, share * known)
    return SpaceTime(*(one.to(fields.dtype) for one in kept))


def cropped(maps: Float[Tensor, "*n H W"], side: int, about: Float[Tensor, "H W"] | None = None) -> Tensor:
    """Squares `[*n, side, side]` about the place where `about` (None: the mean of |maps|) is farthest from 0.

    Moved inwards at the edge, so that nothing is filled in; a map that is smaller stays whole on that axis.
    """
    height, width = maps.shape[-2:]
    weight = maps.abs().reshape(-1, height, width).mean(0) if about is None else about.abs()
    row, column = divmod(int(weight.argmax()), width)
    top = min(max(0, row - side // 2), max(0, height - side))
    left = min(max(0, column - side // 2), max(0, width - side))
    return maps[..., top : top + side, left : left + side]
