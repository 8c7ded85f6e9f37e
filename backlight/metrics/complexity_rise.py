"""ComplexityRise: do maps become noise when the network forgets everything it has learnt?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from backlight.errors import InputError
from backlight.metrics.allowed import COUNT, Check
from backlight.metrics.case import Case
from backlight.metrics.correlation import precise
from backlight.metrics.explainers import as_explainer, decided, explained
from backlight.metrics.maps import stacked
from backlight.metrics.metric import Metric
from backlight.metrics.parameter_randomisation import finite_maps
from backlight.metrics.random_weights import randomised_networks
from backlight.metrics.scorer import BATCH_SIZE
from backlight.shapes import Float


def complexity_rise(
    model: nn.Module,
    explain: Any,
    inputs: Float[Tensor, "N C *space"],
    target: Any,
    *,
    attributions: Tensor | None = None,
    bins: int = 100,
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
) -> Float[Tensor, "N"]:
    """(H(phi of random weights) - H(phi)) / H(phi), H the entropy of a map's histogram (Hedstroem et al. 2024, eMPRT).

    Higher is better: maps of a network that knows nothing should be less ordered. Blind to the scale of phi, and, but
    for entries at the borders of bins, to its sign. Cost: one explanation a sample, of a network that is random
    throughout; arguments as in `backlight.metrics.parameter_randomisation.randomisation_curve`.

    Args:
        bins: of equal width, from the smallest to the largest entry of each map.

    Returns:
        `[N]`, at least -1; NaN where phi has no entropy, as a constant map.

    Raises:
        InputError: no bins, an explainer that cannot be moved, a target that is left to the output.
    """
    if bins < 1:
        raise InputError(f"needs at least 1 bin, got {bins}")
    explainer, chosen, x = as_explainer(explain), decided(target, len(inputs)), inputs.detach()
    kept = explained(explainer, x, chosen, batch_size) if attributions is None else attributions
    stacked(kept, x)  # refuses what does not fit
    (_, network), *_ = randomised_networks(model, x[:1], "bottom-up", layers=1, seed=seed)
    before = histogram_entropy(kept, bins)
    after = histogram_entropy(finite_maps(explainer.on(network), x, chosen, batch_size, kept), bins)
    return torch.where(before > 0, (after - before) / before, torch.nan)


def histogram_entropy(maps: Float[Tensor, "N C *space"], bins: int) -> Float[Tensor, "N"]:
    """Entropy of the histogram of each map's entries, in nats; NaN where they are not finite."""
    found = torch.full((len(maps),), torch.nan, dtype=torch.float64)
    for row, values in enumerate(precise(maps).flatten(1).cpu()):
        if bool(values.isfinite().all()):
            counts = np.histogram(values.numpy(), bins)[0]
            shares = torch.from_numpy(counts[counts > 0] / counts.sum())
            found[row] = -(shares * shares.log()).sum()
    return found


@dataclass(frozen=True, kw_only=True)
class ComplexityRise(Metric):
    """Relative rise of a map's entropy when all weights are random; settings as in `complexity_rise`.

    `seed`: of the random weights, which are the same for all samples, whatever the case's seed.
    """

    source: ClassVar[str] = "Hedstroem et al. 2024, eMPRT"
    formula: ClassVar[str] = "(H(phi random) - H(phi)) / H(phi), H the entropy of the histogram"
    needs: ClassVar[tuple[str, ...]] = ("explainers",)
    presets: ClassVar[dict[str, dict[str, Any]]] = {"quantus": {}}
    allowed: ClassVar[dict[str, Check]] = {
        "bins": COUNT,
    }

    bins: int = 100
    seed: int = 0

    def __call__(self, case: Case) -> Tensor:
        found = [
            complexity_rise(
                case.model,
                case.explainer(name),
                case.inputs,
                case.chosen,
                attributions=case.map(name),
                batch_size=case.batch_size,
                **self.settings(),
            )
            for name in case.names
        ]
        return torch.stack(found)
