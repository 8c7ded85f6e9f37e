"""Focus: of a mosaic of several classes' pictures, does the relevance for one class lie on its pictures?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from backlight.metrics.attribution_localisation import AttributionLocalisation, attribution_localisation
from backlight.metrics.case import Case
from backlight.metrics.maps import stacked
from backlight.shapes import Bool, Float


def focus(
    inputs: Float[Tensor, "N C H W"],
    attributions: Tensor,
    masks: Bool[Tensor, "N H W"],
    *,
    times_input: bool = True,
    unit: str = "feature",
    **settings: Any,
) -> Float[Tensor, "*M N"]:
    """The share of the positive relevance that lies on the target's tiles of a mosaic (Arias-Duart et al. 2022).

    Higher is better, in [0, 1]; 0.5 is chance on mosaics of `backlight.data.mosaics`, where the target has two of four
    tiles. It sees the sign of an attribution, which most metrics of faithfulness do not.

    Args:
        inputs: mosaics, as the network gets them.
        attributions: `[N, C, H, W]`, `[N, 1, H, W]`, or either with a leading axis of methods.
        masks: the tiles of the target class.
        times_input: relevance is x phi, as in the code of Semantic Pullbacks; False for maps that are relevance
            already (LRP, SRD, Integrated Gradients, class activation maps).
        unit: "feature": the positive part of every entry, as there. "position": of the sum over channels.
        settings: the others of `attribution_localisation`.

    Raises:
        InputError: maps of another shape than the mosaics.
    """
    maps, single = stacked(attributions, inputs)
    scores = []
    for of_method in maps:
        relevance = of_method * inputs.to(of_method) if times_input else of_method
        scores.append(attribution_localisation(relevance, masks, unit=unit, **settings))
    return scores[0] if single else torch.stack(scores)


@dataclass(frozen=True, kw_only=True)
class Focus(AttributionLocalisation):
    """The share of positive relevance on the target's tiles; the masks of the case are these tiles."""

    source: ClassVar[str] = "Arias-Duart et al. 2022; the code of Semantic Pullbacks, evaluate_focus.py"
    formula: ClassVar[str] = "sum of (x phi)+ on the target's tiles of a mosaic / sum of (x phi)+"
    presets: ClassVar[dict[str, dict[str, Any]]] = {"pullbacks": {}, "quantus": {"times_input": False}}

    times_input: bool = True
    unit: str = "feature"

    def __call__(self, case: Case) -> Tensor:
        return focus(case.inputs, case.attributions, case.object_masks(), **self.settings())
