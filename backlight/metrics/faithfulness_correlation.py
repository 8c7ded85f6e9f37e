"""FaithfulnessCorrelation and Fidelity: does the score fall most where the map says it would?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from backlight.errors import InputError, UnknownNameError
from backlight.metrics.allowed import COUNT, PAIR, POSITIVE, Check, one_of
from backlight.metrics.case import Case
from backlight.metrics.correlation import pearson, precise
from backlight.metrics.draws import Seed, drawn, further
from backlight.metrics.fills import FILLS, Fill, filled
from backlight.metrics.maps import positions, region_sums, stacked
from backlight.metrics.metric import Metric
from backlight.metrics.patches import grid, pixels
from backlight.metrics.scorer import BATCH_SIZE, Scorer
from backlight.shapes import Float, Int

UNITS = ("patch", "position", "feature")


def faithfulness_correlation(
    model: nn.Module | Scorer,
    inputs: Float[Tensor, "N C H W"],
    attributions: Tensor,
    target: Any = None,
    *,
    unit: str = "patch",
    patch: float = 1 / 4,
    subset: int = 224,
    runs: int = 100,
    fill: Fill = 0.0,
    absolute: bool = True,
    difference: bool = False,
    seed: Seed = 0,
    batch_size: int = BATCH_SIZE,
) -> Float[Tensor, "*M N"]:
    """Pearson's correlation of the map's sum over a subset with the fall of the score when the subset is replaced.

    Bhatt et al. 2020. Higher is better, in [-1, 1]; NaN where the sums or the falls do not vary.

    Args:
        model: or a `Scorer` of it at these samples: what it has computed for another metric is not computed again.
        attributions: `[N, C, H, W]`, `[N, 1, H, W]`, or either with a leading axis of methods: all methods see the same
            replaced inputs, whose scores are computed once.
        unit: "patch": each patch of a grid, once, in all channels (Semantic Pullbacks, equations 29 to 31). "position":
            `runs` random subsets of `subset` positions, in all channels. "feature": of `subset` entries of the input,
            as in Quantus.
        patch: the side of a patch; see `backlight.metrics.patches.pixels`.
        fill: what replaces the subset; see `backlight.metrics.fills`.
        absolute: sum absolute values, which cannot tell a map from its negative.
        difference: sum phi (x - x') in place of phi: what a gradient says of the fall, to first order.
        seed: one for all samples, or one a sample.

    Raises:
        UnknownNameError: another unit.
        InputError: a subset or number of runs that does not fit, or `absolute` with `difference`.
    """
    if unit not in UNITS:
        raise UnknownNameError("unit", unit, UNITS)
    if absolute and difference:
        raise InputError("the inner product with a difference has a sign: give absolute=False with difference=True")
    maps, single = stacked(attributions, inputs)
    maps = maps.abs() if absolute else maps
    scorer = Scorer.of(model, inputs, target, batch_size)
    if unit == "patch":
        regions, count = grid(inputs.shape[2:], pixels(patch, inputs), inputs.device)
        fills = filled(fill, scorer.inputs, count, seed)
        drops = patch_drops(scorer, regions, fills)

        def masses(values: Float[Tensor, "M N C H W"]) -> Float[Tensor, "M N J"]:
            return region_sums(positions(values).flatten(2), regions.flatten(), count).cpu()

    else:
        channels = 1 if unit == "feature" else inputs.shape[1]
        chosen = drawn_subsets(scorer.inputs, unit, subset, runs, seed)
        fills = filled(fill, scorer.inputs, runs, further(seed, 1))
        drops = subset_drops(scorer, chosen, channels, fills)

        def masses(values: Float[Tensor, "M N C H W"]) -> Float[Tensor, "M N J"]:
            return subset_masses(values, chosen, channels)

    mass = masses(maps * scorer.inputs) - precise(fills).cpu() * masses(maps) if difference else masses(maps)
    scores = pearson(mass, drops)
    return scores[0] if single else scores


def patch_drops(scorer: Scorer, regions: Int[Tensor, "H W"], fills: Float[Tensor, "N P"]) -> Float[Tensor, "N P"]:
    """Falls of the score where each of P patches alone is replaced, in all channels."""
    x = scorer.inputs

    def without(rows: Tensor, numbers: Tensor) -> Tensor:
        inside = regions == numbers[:, None, None]
        return torch.where(inside[:, None], fills[rows, numbers][:, None, None, None], x[rows])

    return scorer.drops(fills.shape[1], without, ("patches", regions, fills))


def drawn_subsets(
    inputs: Float[Tensor, "N C H W"], unit: str, subset: int, runs: int, seed: Seed
) -> Int[Tensor, "N R k"]:
    """Indices of random subsets, without repetition, of an image's positions or of its features.

    Raises:
        InputError: a subset or number of runs that does not fit.
    """
    entries = inputs[0].numel() // (1 if unit == "feature" else inputs.shape[1])
    if not 1 <= subset <= entries or runs < 2:
        raise InputError(
            f"needs subsets of 1 to {entries} of {entries} {unit}s and at least 2 runs, got {subset}, {runs}"
        )

    def draw(generator: torch.Generator) -> Tensor:
        return torch.stack([torch.randperm(entries, generator=generator)[:subset] for _ in range(runs)])

    return drawn(seed, len(inputs), draw, inputs)


def subset_masses(maps: Float[Tensor, "M N C H W"], chosen: Tensor, channels: int) -> Float[Tensor, "M N R"]:
    """Sums of maps over subsets `chosen`, `[N, R, k]` indices of positions (`channels` > 1) or features (1)."""
    flat = maps.flatten(2) if channels == 1 else positions(maps).flatten(2)
    taken = [precise(flat[:, row][:, chosen[row].to(flat.device)]).sum(-1).cpu() for row in range(len(chosen))]
    return torch.stack(taken, 1)


def subset_drops(scorer: Scorer, chosen: Tensor, channels: int, fills: Float[Tensor, "N R"]) -> Float[Tensor, "N R"]:
    """Falls of the score where subsets are replaced."""
    x = scorer.inputs

    def without(rows: Tensor, numbers: Tensor) -> Tensor:
        flat = x[rows].reshape(len(rows), channels, -1)
        index = chosen[rows, numbers][:, None].expand(-1, channels, -1)
        values = fills[rows, numbers][:, None, None].expand_as(index)
        return flat.scatter(2, index, values).reshape(len(rows), *x.shape[1:])

    return scorer.drops(chosen.shape[1], without, ("subsets", channels, chosen, fills))


@dataclass(frozen=True, kw_only=True)
class FaithfulnessCorrelation(Metric):
    """Correlation of a map's sums over patches, or random subsets, with falls of the score."""

    source: ClassVar[str] = "Bhatt et al. 2020; Semantic Pullbacks, equations 29 to 31"
    formula: ClassVar[str] = "Pearson over subsets S of (sum_S |phi|, f(x) - f(x without S))"
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "pullbacks": {},
        "signed": {"absolute": False},
        "first-order": {"absolute": False, "difference": True},
        "quantus": {"unit": "feature", "subset": 224, "runs": 100, "fill": "min", "absolute": False},
    }
    allowed: ClassVar[dict[str, Check]] = {
        "unit": one_of(UNITS),
        "patch": POSITIVE,
        "subset": COUNT,
        "runs": PAIR,
        "fill": one_of(FILLS, others=(int, float)),
    }

    unit: str = "patch"
    patch: float = 1 / 4
    subset: int = 224
    runs: int = 100
    fill: Fill = 0.0
    absolute: bool = True
    difference: bool = False

    def __call__(self, case: Case) -> Tensor:
        return self._of_maps(faithfulness_correlation, case)

    @property
    def sees_sign(self) -> bool:
        return not self.absolute


@dataclass(frozen=True, kw_only=True)
class Fidelity(FaithfulnessCorrelation):
    """Correlation of a signed map's sums over random subsets of positions with falls of the score."""

    source: ClassVar[str] = "Bhatt et al. 2020; iERF framework, section V-A"
    formula: ClassVar[str] = "Pearson over random S of (sum_S phi, f(x) - f(x without S)), |S| = 200 positions"
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "ierf": {},
        "quantus": FaithfulnessCorrelation.presets["quantus"],
    }

    unit: str = "position"
    subset: int = 200
    absolute: bool = False
