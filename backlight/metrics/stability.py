"""Stability: the largest slope of a map around a sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from backlight.errors import InputError
from backlight.metrics.allowed import COUNT, POSITIVE, Check
from backlight.metrics.case import Case
from backlight.metrics.draws import Seed
from backlight.metrics.metric import Metric
from backlight.metrics.neighbours import Neighbours, normal_noise
from backlight.metrics.scorer import BATCH_SIZE
from backlight.shapes import Float


def stability(
    explain: Any,
    inputs: Float[Tensor, "N C *space"],
    target: Any,
    *,
    attributions: Tensor | None = None,
    draws: int = 200,
    stdev: float = 0.1,
    normalise: bool = True,
    positions: bool = True,
    fresh: bool = True,
    seed: Seed = 0,
    batch_size: int = BATCH_SIZE,
) -> Float[Tensor, "N"]:
    """max_j ||phi(x_j) - phi(x)||_2 / ||x_j - x||_2, x_j = x + N(0, stdev^2) (Alvarez-Melis and Jaakkola 2018).

    A local Lipschitz constant. Lower is better, at least 0; blind to the sign of phi, and to its scale where it is
    normalised. Cost: `draws` explanations a sample.

    Args:
        explain: a method, an attribution of Captum, or a function `(inputs, target) -> maps`.
        target: the class of each sample, at which its neighbours are explained too.
        attributions: phi(x), where it is known.
        draws: 200, the default of the library that the iERF paper names; the paper gives no number.
        stdev: in units of the input.
        normalise: divide each map by its own largest absolute value; a map of zeros stays one. It then lies in [-1, 1],
            where the paper clamps.
        positions: maps are summed over channels first, so that those of one value a position and of one an entry are
            measured alike: the denominator does not know about channels. False: as they come, as in Quantus.
        fresh: methods that draw get other draws for each neighbour. False: their draws stay, only the input moves.
        seed: one for all samples, or one a sample.

    Raises:
        InputError: no draws, no noise, or a target that is left to the output.
    """
    if not stdev > 0:
        raise InputError(f"stdev must be positive, got {stdev}")
    channels = inputs.shape[1]

    def prepared(maps: Tensor) -> Tensor:
        if positions and maps.shape[1] == inputs[0].numel():
            maps = maps.unflatten(1, (channels, -1)).sum(1)
        largest = maps.abs().amax(1, keepdim=True)
        return maps / torch.where(largest > 0, largest, 1) if normalise else maps

    def change(at_x: Tensor, nearby: Tensor, noise: Tensor) -> Tensor:
        moved = prepared(nearby) - prepared(at_x)
        distance = torch.linalg.vector_norm(noise, dim=1).to(moved.device)
        return torch.linalg.vector_norm(moved, dim=1) / distance

    neighbours = Neighbours(normal_noise(stdev), draws, fresh, seed, batch_size)
    return neighbours.largest(explain, inputs, target, attributions, change)


@dataclass(frozen=True, kw_only=True)
class Stability(Metric):
    """The largest slope of a map under Gaussian noise; settings as in `stability`."""

    source: ClassVar[str] = "Alvarez-Melis and Jaakkola 2018; iERF framework, equation 34"
    formula: ClassVar[str] = "max over x' of ||phi(x') - phi(x)|| / ||x' - x||, phi divided by max |phi|"
    higher_is_better: ClassVar[bool] = False
    needs: ClassVar[tuple[str, ...]] = ("explainers",)
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "ierf": {},
        "quantus": {"positions": False},
    }
    allowed: ClassVar[dict[str, Check]] = {
        "draws": COUNT,
        "stdev": POSITIVE,
    }

    draws: int = 200
    stdev: float = 0.1
    normalise: bool = True
    positions: bool = True
    fresh: bool = True

    def __call__(self, case: Case) -> Tensor:
        return self._of_explainers(stability, case)
