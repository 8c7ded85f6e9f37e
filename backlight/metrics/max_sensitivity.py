"""MaxSensitivity: by how much does a map change when the input hardly does?"""

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
from backlight.metrics.neighbours import Neighbours, uniform_noise
from backlight.metrics.scorer import BATCH_SIZE
from backlight.shapes import Float


def max_sensitivity(
    explain: Any,
    inputs: Float[Tensor, "N C *space"],
    target: Any,
    *,
    attributions: Tensor | None = None,
    draws: int = 10,
    radius: float = 0.02,
    fresh: bool = True,
    seed: Seed = 0,
    batch_size: int = BATCH_SIZE,
) -> Float[Tensor, "N"]:
    """max_j ||phi(x + n_j) - phi(x)||_2 / ||phi(x)||_2 with n_j ~ U(-radius, radius) (Yeh et al. 2019).

    Lower is better, at least 0; blind to the scale and the sign of phi. Cost: `draws` explanations a sample.

    Args:
        explain: a method, an attribution of Captum, or a function `(inputs, target) -> maps`.
        target: the class of each sample, at which its neighbours are explained too.
        attributions: phi(x), where it is known.
        radius: in units of the input.
        fresh: methods that draw get other draws for each neighbour, and are charged their own sampling noise, as in
            Semantic Pullbacks. False: their draws stay, only the input moves.
        seed: one for all samples, or one a sample.

    Returns:
        `[N]`; NaN where phi(x) is zero everywhere.

    Raises:
        InputError: no draws, no radius, or a target that is left to the output.
    """
    if not radius > 0:
        raise InputError(f"the radius must be positive, got {radius}")

    def change(at_x: Tensor, nearby: Tensor, noise: Tensor) -> Tensor:
        size = torch.linalg.vector_norm(at_x, dim=1)
        return torch.where(size > 0, torch.linalg.vector_norm(nearby - at_x, dim=1) / size, torch.nan)

    neighbours = Neighbours(uniform_noise(radius), draws, fresh, seed, batch_size)
    return neighbours.largest(explain, inputs, target, attributions, change)


@dataclass(frozen=True, kw_only=True)
class MaxSensitivity(Metric):
    """The largest relative change of a map under small uniform noise; settings as in `max_sensitivity`."""

    source: ClassVar[str] = "Yeh et al. 2019; Semantic Pullbacks, section 4"
    formula: ClassVar[str] = "max over n of ||phi(x + n) - phi(x)|| / ||phi(x)||"
    higher_is_better: ClassVar[bool] = False
    needs: ClassVar[tuple[str, ...]] = ("explainers",)
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "pullbacks": {},
        "quantus": {"draws": 200, "radius": 0.2},
    }
    allowed: ClassVar[dict[str, Check]] = {
        "draws": COUNT,
        "radius": POSITIVE,
    }

    draws: int = 10
    radius: float = 0.02
    fresh: bool = True

    def __call__(self, case: Case) -> Tensor:
        return self._of_explainers(max_sensitivity, case)
