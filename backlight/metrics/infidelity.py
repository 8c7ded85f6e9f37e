"""Infidelity: does a map predict how far the score falls when parts of the input are replaced?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from backlight.errors import InputError, UnknownNameError
from backlight.metrics.case import Case
from backlight.metrics.correlation import precise
from backlight.metrics.draws import Seed, generators
from backlight.metrics.fills import Fill, filled
from backlight.metrics.maps import region_sums, stacked
from backlight.metrics.metric import Metric
from backlight.metrics.patches import grid, pixels
from backlight.metrics.scorer import BATCH_SIZE, Scorer
from backlight.shapes import Float

SCALINGS = ("optimal", "positive", "none")


def infidelity(
    model: nn.Module,
    inputs: Float[Tensor, "N C H W"],
    attributions: Tensor,
    target: Any = None,
    *,
    patches: Sequence[float] = (1 / 2, 1 / 4),
    repeats: int = 5,
    cumulative: bool = True,
    squares: int = 20,
    fill: Fill = "uniform",
    low: float = -1,
    high: float = 1,
    scaling: str = "optimal",
    pooled: bool = True,
    seed: Seed = 0,
    batch_size: int = BATCH_SIZE,
) -> Float[Tensor, "*M N"]:
    """mean_j (beta a_j - b_j)^2 with a_j = <phi, x - x'_j>, b_j = f(x) - f(x'_j) (Yeh et al. 2019). Lower is better.

    Args:
        attributions: `[N, C, H, W]`, `[N, 1, H, W]`, or either with a leading axis of methods: all methods see the same
            perturbed inputs, whose scores are computed once.
        patches: sides of square patches: whole numbers are pixels, fractions below 1 parts of the shorter side.
        repeats: draws of each sweep.
        cumulative: sweep the grid of patches in raster order, each replaced on top of those before, as Quantus and the
            reference of Semantic Pullbacks do. False: `squares` independent squares a repeat and size, at uniformly
            drawn places, as the paper's text says.
        fill: what a patch is replaced with; see `backlight.metrics.fills`. One number, the same in all channels.
        scaling: "optimal", beta = sum ab / sum a^2, which makes the score E[b^2] (1 - cos^2(a, b)), blind to scale and
            sign; "positive", the same but never below 0, so that a map of the wrong sign gets E[b^2]; "none", beta = 1.
        pooled: the mean over all perturbations. False: over each size's own mean, as in Quantus.
        seed: one for all samples, or one a sample.

    Returns:
        `[N]`, or `[M, N]` for several methods; at least 0, in squared units of the score.
    """
    if scaling not in SCALINGS:
        raise UnknownNameError("scaling", scaling, SCALINGS)
    if repeats < 1 or not patches or squares < 1:
        raise InputError(f"needs repeats, patches and squares, got {repeats}, {tuple(patches)} and {squares}")
    maps, single = stacked(attributions, inputs)
    scorer = Scorer(model, inputs, target, batch_size)
    sides = [pixels(patch, inputs) for patch in patches]
    parts = [
        _swept(scorer, maps, side, repeats, filled_sweeps(fill, inputs, side, repeats, seed, number, low, high))
        if cumulative
        else _squared(scorer, maps, side, repeats * squares, fill, seed, number, low, high)
        for number, side in enumerate(sides)
    ]
    scores = scaled_error([a for a, _ in parts], [b for _, b in parts], scaling, pooled)
    return scores[0] if single else scores


def scaled_error(
    masses: list[Float[Tensor, "M N J"]], drops: list[Float[Tensor, "N J"]], scaling: str, pooled: bool = True
) -> Float[Tensor, "M N"]:
    """The error of `drops` predicted by `masses`, given by size of patch; see `infidelity`."""
    a, b = torch.cat(masses, -1), torch.cat(drops, -1)
    square = (a * a).sum(-1, keepdim=True)
    beta = torch.where(square > 0, (a * b).sum(-1, keepdim=True) / square, 1.0)
    beta = {"optimal": beta, "positive": beta.clamp(min=0), "none": torch.ones_like(beta)}[scaling]
    errors = [((beta * mass - drop) ** 2).mean(-1) for mass, drop in zip(masses, drops, strict=True)]
    return ((beta * a - b) ** 2).mean(-1) if pooled else torch.stack(errors).mean(0)


def filled_sweeps(
    fill: Fill, inputs: Tensor, side: int, repeats: int, seed: Seed, number: int, low: float, high: float
) -> Float[Tensor, "N repeats P"]:
    """The number that each patch of each sweep is filled with."""
    count = grid(inputs.shape[2:], side)[1]
    values = filled(fill, inputs, repeats * count, _apart(seed, number, len(inputs)), low, high)
    return values.reshape(len(inputs), repeats, count)


def _swept(
    scorer: Scorer, maps: Tensor, side: int, repeats: int, fills: Float[Tensor, "N R P"]
) -> tuple[Float[Tensor, "M N J"], Float[Tensor, "N J"]]:
    x = scorer.inputs
    regions, count = grid(x.shape[2:], side, x.device)

    def swept(rows: Tensor, numbers: Tensor) -> Tensor:
        values = fills[rows, numbers // count][:, regions]
        covered = regions <= (numbers % count)[:, None, None]
        return torch.where(covered[:, None], values[:, None], x[rows])

    of_input = region_sums((maps * x).sum(2).flatten(2), regions.flatten(), count)[:, :, None]
    of_map = region_sums(maps.sum(2).flatten(2), regions.flatten(), count)[:, :, None]
    masses = (of_input - precise(fills).to(of_map.device) * of_map).cumsum(-1)
    return masses.flatten(2).cpu(), scorer.drops(repeats * count, swept)


def _squared(
    scorer: Scorer, maps: Tensor, side: int, count: int, fill: Fill, seed: Seed, number: int, low: float, high: float
) -> tuple[Float[Tensor, "M N J"], Float[Tensor, "N J"]]:
    x = scorer.inputs
    height, width = x.shape[2:]
    own = _apart(seed, number, len(x))
    fills = filled(fill, x, count, [one + 1 for one in own], low, high)
    places = [torch.rand(2, count, generator=generator) for generator in generators(own, len(x))]
    room = torch.tensor([[height - side + 1], [width - side + 1]])
    corners = torch.stack([(place * room).long() for place in places]).to(x.device)  # [N, 2, count]

    def inside(rows: Tensor, numbers: Tensor) -> Tensor:
        top, left = corners[rows, 0, numbers][:, None], corners[rows, 1, numbers][:, None]
        down, across = torch.arange(height, device=x.device), torch.arange(width, device=x.device)
        return ((down >= top) & (down < top + side))[:, :, None] & ((across >= left) & (across < left + side))[:, None]

    def squared(rows: Tensor, numbers: Tensor) -> Tensor:
        return torch.where(inside(rows, numbers)[:, None], fills[rows, numbers][:, None, None, None], x[rows])

    of_input, of_map = _integral((maps * x).sum(2)), _integral(maps.sum(2))
    masses = []
    for row in range(len(x)):
        top, left = corners[row].to(of_map.device)

        def total(table: Tensor, row: int = row, top: Tensor = top, left: Tensor = left) -> Tensor:
            table = table[:, row]
            low, right = top + side, left + side
            return table[:, low, right] - table[:, top, right] - table[:, low, left] + table[:, top, left]

        masses.append(total(of_input) - precise(fills[row]).to(of_map.device) * total(of_map))
    return torch.stack(masses, 1).cpu(), scorer.drops(count, squared)


def _integral(values: Float[Tensor, "M N H W"]) -> Float[Tensor, "M N H1 W1"]:
    """Sums over all rectangles from the upper left corner."""
    return nn.functional.pad(precise(values).cumsum(-1).cumsum(-2), (1, 0, 1, 0))


def _apart(seed: Seed, number: int, samples: int) -> list[int]:
    """Seeds of one size's draws, away from those of the others."""
    seeds = [seed] * samples if isinstance(seed, int) else list(seed)
    return [one + 1_000_003 * number for one in seeds]


@dataclass(frozen=True, kw_only=True)
class Infidelity(Metric):
    """Infidelity of square patches; settings as in `infidelity`."""

    source: ClassVar[str] = "Yeh et al. 2019; Semantic Pullbacks, equation 28"
    formula: ClassVar[str] = "mean over perturbations x' of (beta <phi, x - x'> - (f(x) - f(x')))^2"
    higher_is_better: ClassVar[bool] = False
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "pullbacks": {},
        "text": {"cumulative": False, "repeats": 1, "squares": 50},
        "signed": {"scaling": "positive"},
        "quantus": {"patches": (4,), "repeats": 1, "fill": "min", "scaling": "none", "pooled": False},
    }

    patches: tuple[float, ...] = (1 / 2, 1 / 4)
    repeats: int = 5
    cumulative: bool = True
    squares: int = 20
    fill: Fill = "uniform"
    low: float = -1
    high: float = 1
    scaling: str = "optimal"
    pooled: bool = True

    def __call__(self, case: Case) -> Tensor:
        return infidelity(
            case.model,
            case.inputs,
            case.attributions,
            case.chosen,
            seed=case.seed,
            batch_size=case.batch_size,
            **self.settings(),
        )

    @property
    def sees_sign(self) -> bool:
        return self.scaling != "optimal"
