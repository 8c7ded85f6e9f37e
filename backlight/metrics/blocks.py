"""Blocks of units in the order of a map's values, and the falls of the score where each block alone is replaced."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from backlight.errors import InputError, UnknownNameError
from backlight.metrics.correlation import precise
from backlight.metrics.maps import region_sums
from backlight.metrics.scorer import Scorer
from backlight.shapes import Float, Int

Units = Callable[[Float[Tensor, "C H W"]], Float[Tensor, "U"]]


@dataclass(frozen=True)
class Blocks:
    """Every unit of every map lies in one block.

    `numbers`: `[M, N, U]` small integers, the block of each unit. `masses`: the sums of the map's values over blocks.
    """

    numbers: Tensor
    masses: Float[Tensor, "M N B"]

    @property
    def count(self) -> int:
        """The number of blocks."""
        return self.masses.shape[-1]


def features(phi: Float[Tensor, "C H W"]) -> Float[Tensor, "U"]:
    """Units that are the entries of the input."""
    return phi.flatten()


def per_position(phi: Float[Tensor, "C H W"]) -> Float[Tensor, "U"]:
    """Units that are positions, in all channels."""
    return precise(phi).sum(0).flatten()


UNITS: dict[str, Units] = {"feature": features, "position": per_position}


def blocks_of_ranks(units: int, blocks: int | None = None, step: int | None = None) -> Int[Tensor, "U"]:
    """The block that the unit of each rank lies in: consecutive ranks, `step` of them or `blocks` of equal size.

    Sizes differ by at most 1 where `blocks` does not divide the units, and the last is smaller where `step` does not.
    With more blocks than units, or with neither, every unit is a block.

    Raises:
        InputError: no blocks, or empty ones.
    """
    if min(blocks or 1, step or 1) < 1 or 0 in (blocks, step):
        raise InputError(f"needs at least 1 block of at least 1 unit, got blocks={blocks} and step={step}")
    ranks = torch.arange(units)
    if step is not None:
        return ranks // step
    count = min(units if blocks is None else blocks, units)
    return ranks * count // units


def ordered_blocks(
    maps: Float[Tensor, "M N C H W"],
    units: Units,
    blocks: int | None = None,
    step: int | None = None,
    *,
    absolute: bool,
    descending: bool,
) -> Blocks:
    """Blocks of the units of each map, in the order of their values; block 0 is first in that order.

    Units of equal value keep the order of their index, which is the same on every machine. (NumPy's default sort, and
    with it Quantus, leaves that order open.) One map is sorted at a time.
    """
    size = len(units(maps[0, 0]))
    of_rank = blocks_of_ranks(size, blocks, step).to(maps.device)
    count = int(of_rank[-1]) + 1
    kind = torch.uint8 if count <= 256 else torch.int32  # as many as the entries of all maps: small ones
    numbers = torch.empty(*maps.shape[:2], size, dtype=kind, device=maps.device)
    masses = torch.empty(*maps.shape[:2], count, dtype=torch.float64)
    for method in range(maps.shape[0]):
        for row in range(maps.shape[1]):
            phi = maps[method, row]
            values, order = units(phi.abs() if absolute else phi).sort(stable=True, descending=descending)
            numbers[method, row, order.to(maps.device)] = of_rank.to(kind)
            masses[method, row] = region_sums(values, of_rank, count).cpu()
    return Blocks(numbers, masses)


def map_blocks(
    maps: Float[Tensor, "M N C H W"],
    unit: str,
    blocks: int | None,
    step: int | None,
    *,
    absolute: bool,
    descending: bool,
) -> Blocks:
    """Blocks of entries or positions by the unit's name.

    Raises:
        UnknownNameError: another unit.
        InputError: fewer than two blocks, which cannot be correlated.
    """
    if unit not in UNITS:
        raise UnknownNameError("unit", unit, UNITS)
    found = ordered_blocks(maps, UNITS[unit], blocks, step, absolute=absolute, descending=descending)
    if found.count < 2:
        raise InputError(f"a correlation needs at least 2 blocks, got blocks={blocks} and step={step}")
    return found


def block_drops(scorer: Scorer, blocks: Blocks, fills: Float[Tensor, "N B D"]) -> Float[Tensor, "M N B D"]:
    """By how much the score falls where a block alone is replaced, by each of D numbers, the same for all methods.

    Orders differ, so each method has perturbed inputs of its own: M * B * D forwards a sample, and one of the sample.
    """
    x, numbers = scorer.inputs, blocks.numbers.to(scorer.inputs.device)
    samples, count, draws = fills.shape
    flat = fills.flatten(1).to(x)

    def without(rows: Tensor, versions: Tensor) -> Tensor:
        drawn = versions % (count * draws)
        block = (drawn // draws).to(numbers.dtype)
        inside = numbers[versions // (count * draws), rows] == block[:, None]
        inside = inside.reshape(len(rows), -1, *x.shape[2:])  # one channel, or all
        return torch.where(inside, flat[rows, drawn][:, None, None, None], x[rows])

    drops = scorer.drops(len(numbers) * count * draws, without)
    return drops.reshape(samples, len(numbers), count, draws).transpose(0, 1)
