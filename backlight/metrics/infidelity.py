"""Infidelity: does a map predict how far the score falls when parts of the input are replaced?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from backlight.errors import InputError, UnknownNameError
from backlight.metrics.allowed import COUNT, POSITIVE, Check, each, one_of
from backlight.metrics.case import Case
from backlight.metrics.correlation import precise
from backlight.metrics.draws import Seed, drawn, further
from backlight.metrics.fills import FILLS, Fill, filled
from backlight.metrics.maps import positions, region_sums, stacked
from backlight.metrics.metric import Metric
from backlight.metrics.patches import grid, pixels
from backlight.metrics.scorer import BATCH_SIZE, Scorer
from backlight.shapes import Float, Int

SCALINGS = ("optimal", "positive", "none")


def infidelity(
    model: nn.Module | Scorer,
    inputs: Float[Tensor, "N C H W"],
    attributions: Tensor,
    target: Any = None,
    *,
    patches: Sequence[float] = (1 / 2, 1 / 4),
    repeats: int = 5,
    cumulative: bool = True,
    squares: int = 20,
    fill: Fill = "uniform",
    low: float = -1.0,
    high: float = 1.0,
    scaling: str = "optimal",
    pooled: bool = True,
    seed: Seed = 0,
    batch_size: int = BATCH_SIZE,
) -> Float[Tensor, "*M N"]:
    """mean_j (beta a_j - b_j)^2 with a_j = <phi, x - x'_j>, b_j = f(x) - f(x'_j) (Yeh et al. 2019). Lower is better.

    Args:
        model: or a `Scorer` of it at these samples: what it has computed for another metric is not computed again.
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
    scorer = Scorer.of(model, inputs, target, batch_size)
    parts = []
    for number, side in enumerate(pixels(patch, inputs) for patch in patches):
        if cumulative:
            fills = filled_sweeps(fill, scorer.inputs, side, repeats, seed, number, low, high)
            parts.append(swept(scorer, maps, side, fills))
        else:
            count = repeats * squares
            corners = drawn_corners(scorer.inputs, side, count, further(seed, 2 * number))
            fills = filled(fill, scorer.inputs, count, further(seed, 2 * number + 1), low, high)
            parts.append(squared(scorer, maps, side, corners, fills))
    scores = scaled_error([a for a, _ in parts], [b for _, b in parts], scaling, pooled)
    return scores[0] if single else scores


def scaled_error(
    masses: list[Float[Tensor, "M N _"]], drops: list[Float[Tensor, "N _"]], scaling: str, pooled: bool = True
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
) -> Float[Tensor, "N R P"]:
    """The number that each patch of each sweep is filled with; `number`: of the size of patches."""
    count = grid(inputs.shape[2:], side)[1]
    values = filled(fill, inputs, repeats * count, further(seed, number), low, high)
    return values.reshape(len(inputs), repeats, count)


def drawn_corners(inputs: Float[Tensor, "N C H W"], side: int, count: int, seed: Seed) -> Int[Tensor, "N 2 count"]:
    """Upper left corners, (row, column), of squares that lie inside the image, at uniformly drawn places."""
    room = torch.tensor([[size - side + 1] for size in inputs.shape[2:]])
    return drawn(seed, len(inputs), lambda g: (torch.rand(2, count, generator=g) * room).long(), inputs)


def swept(
    scorer: Scorer, maps: Float[Tensor, "M N C H W"], side: int, fills: Float[Tensor, "N R P"]
) -> tuple[Float[Tensor, "M N J"], Float[Tensor, "N J"]]:
    """Masses and falls of cumulative sweeps over a grid of patches, J = R P of them."""
    x = scorer.inputs
    regions, count = grid(x.shape[2:], side, x.device)

    def covered(rows: Tensor, numbers: Tensor) -> Tensor:
        values = fills[rows, numbers // count][:, regions]
        inside = regions <= (numbers % count)[:, None, None]
        return torch.where(inside[:, None], values[:, None], x[rows])

    def masses(row: int) -> Tensor:
        of_input, of_map = (region_sums(sums.flatten(1), regions.flatten(), count) for sums in _sums(maps, x, row))
        return (of_input[:, None] - precise(fills[row]).to(of_map.device) * of_map[:, None]).cumsum(-1).flatten(1)

    found = torch.stack([masses(row).cpu() for row in range(len(x))], 1)
    return found, scorer.drops(found.shape[-1], covered, ("swept", side, fills))


def squared(
    scorer: Scorer,
    maps: Float[Tensor, "M N C H W"],
    side: int,
    corners: Int[Tensor, "N 2 J"],
    fills: Float[Tensor, "N J"],
) -> tuple[Float[Tensor, "M N J"], Float[Tensor, "N J"]]:
    """Masses and falls of squares of which each is replaced alone."""
    x = scorer.inputs
    down, across = (torch.arange(size, device=x.device) for size in x.shape[2:])

    def replaced(rows: Tensor, numbers: Tensor) -> Tensor:
        top, left = corners[rows, :, numbers][:, :, None].unbind(1)
        inside_down = (down >= top) & (down < top + side)
        inside_across = (across >= left) & (across < left + side)
        inside = inside_down[:, :, None] & inside_across[:, None]
        return torch.where(inside[:, None], fills[rows, numbers][:, None, None, None], x[rows])

    def masses(row: int) -> Tensor:
        of_input, of_map = (_square_sums(sums, corners[row].to(sums.device), side) for sums in _sums(maps, x, row))
        return of_input - precise(fills[row]).to(of_map.device) * of_map

    found = torch.stack([masses(row).cpu() for row in range(len(x))], 1)
    return found, scorer.drops(found.shape[-1], replaced, ("squared", side, corners, fills))


def _sums(maps: Tensor, x: Tensor, row: int) -> tuple[Float[Tensor, "M H W"], Float[Tensor, "M H W"]]:
    """Sums over channels of phi x and of phi at one sample: one sample's maps are in double precision at a time."""
    phi = precise(maps[:, row])
    return positions(phi * precise(x[row])), positions(phi)


def _square_sums(values: Float[Tensor, "M H W"], corners: Int[Tensor, "2 J"], side: int) -> Float[Tensor, "M J"]:
    """Sums over squares, from the sums over all rectangles at the upper left corner of the image."""
    table = nn.functional.pad(values.cumsum(-1).cumsum(-2), (1, 0, 1, 0))
    (top, left), (low, right) = corners, corners + side
    return table[:, low, right] - table[:, top, right] - table[:, low, left] + table[:, top, left]


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
        "quantus": {"patches": (4.0,), "repeats": 1, "fill": "min", "scaling": "none", "pooled": False},
    }
    allowed: ClassVar[dict[str, Check]] = {
        "patches": each(POSITIVE),
        "repeats": COUNT,
        "squares": COUNT,
        "fill": one_of(FILLS, others=(int, float)),
        "scaling": one_of(SCALINGS),
    }

    patches: tuple[float, ...] = (1 / 2, 1 / 4)
    repeats: int = 5
    cumulative: bool = True
    squares: int = 20
    fill: Fill = "uniform"
    low: float = -1.0
    high: float = 1.0
    scaling: str = "optimal"
    pooled: bool = True

    def __call__(self, case: Case) -> Tensor:
        return self._of_maps(infidelity, case)

    @property
    def sees_sign(self) -> bool:
        return self.scaling != "optimal"
