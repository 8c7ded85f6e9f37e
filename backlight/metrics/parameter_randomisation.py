"""ParameterRandomisation: does a map change when the network forgets what it has learnt?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from backlight.errors import NonFiniteError
from backlight.metrics.allowed import COUNT_OR_NONE, Check, one_of
from backlight.metrics.case import Case
from backlight.metrics.explainers import Explainer, as_explainer, decided, explained
from backlight.metrics.map_similarity import SIMILARITIES, map_similarity
from backlight.metrics.maps import stacked
from backlight.metrics.metric import Metric
from backlight.metrics.random_weights import ORDERS, randomised_networks
from backlight.metrics.scorer import BATCH_SIZE
from backlight.shapes import Float


@dataclass(frozen=True)
class RandomisationCurve:
    """`layers`: the last layer that each step drew anew. `similarity`: of the maps before and after, a step each."""

    layers: tuple[str, ...]
    similarity: Float[Tensor, "N L"]


def parameter_randomisation(
    model: nn.Module, explain: Any, inputs: Float[Tensor, "N C *space"], target: Any, **settings: Any
) -> Float[Tensor, "N"]:
    """The mean over steps of the similarity of maps before and after weights are drawn anew (Adebayo et al. 2018).

    In [-1, 1]. The nearer to 0 the better: 1 means that the map does not depend on what the network has learnt. Blind
    to the scale and the sign of phi. Arguments, settings and errors as in `randomisation_curve`. NaN where no step has
    a similarity.
    """
    return randomisation_curve(model, explain, inputs, target, **settings).similarity.nanmean(1)


def randomisation_curve(
    model: nn.Module,
    explain: Any,
    inputs: Float[Tensor, "N C *space"],
    target: Any,
    *,
    attributions: Tensor | None = None,
    order: str = "top-down",
    layers: int | None = None,
    similarity: str = "spearman",
    absolute: bool = True,
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
) -> RandomisationCurve:
    """The similarity of the maps of a network and of its copies, in which more and more layers are random.

    Cost: one explanation a sample and step. A method that draws keeps its seed. All samples see the same networks.

    Args:
        explain: a method or an attribution of Captum, which can be moved to another network.
        target: the class of each sample.
        attributions: phi of the model, where it is known.
        order, layers, seed: see `backlight.metrics.random_weights.randomised_networks`.
        similarity, absolute: see `backlight.metrics.map_similarity`. NaN where a map is constant, or not finite.

    Raises:
        InputError: an explainer that cannot be moved, a target that is left to the output, no layer.
        UnknownNameError: another order or similarity.
    """
    explainer, chosen, x = as_explainer(explain), decided(target, len(inputs)), inputs.detach()
    kept = explained(explainer, x, chosen, batch_size) if attributions is None else attributions
    stacked(kept, x)  # refuses what does not fit
    names, alike = [], []
    for name, network in randomised_networks(model, x[:1], order, layers, seed):
        found = finite_maps(explainer.on(network), x, chosen, batch_size, kept)
        names.append(name)
        alike.append(map_similarity(kept, found.to(kept), similarity, absolute))
    return RandomisationCurve(tuple(names), torch.stack(alike, 1))


def finite_maps(
    explainer: Explainer, inputs: Float[Tensor, "N C *space"], target: Any, batch_size: int, like: Tensor
) -> Tensor:
    """The maps; NaN those that are not finite, as random weights may make them."""
    try:
        return explained(explainer, inputs, target, batch_size)
    except NonFiniteError:
        if len(inputs) == 1:
            return torch.full_like(like, torch.nan)
    rows = torch.arange(len(inputs)).split(1)
    return torch.cat([finite_maps(explainer, inputs[row], target.rows(row), 1, like[row]) for row in rows])


@dataclass(frozen=True, kw_only=True)
class ParameterRandomisation(Metric):
    """Similarity of the maps of a network and its randomised copies; settings as in `randomisation_curve`.

    `seed`: of the random weights, which are the same for all samples, whatever the case's seed.
    """

    source: ClassVar[str] = "Adebayo et al. 2018"
    formula: ClassVar[str] = "mean over layers l of Spearman(|phi|, |phi of the network random from l on|)"
    higher_is_better: ClassVar[bool] = False
    needs: ClassVar[tuple[str, ...]] = ("explainers",)
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "adebayo": {},
        "signed": {"absolute": False},
        "ssim": {"similarity": "ssim"},
        "independent": {"order": "independent"},
        "quantus": {},
    }
    allowed: ClassVar[dict[str, Check]] = {
        "order": one_of(ORDERS),
        "layers": COUNT_OR_NONE,
        "similarity": one_of(SIMILARITIES),
    }

    order: str = "top-down"
    layers: int | None = None
    similarity: str = "spearman"
    absolute: bool = True
    seed: int = 0

    def __call__(self, case: Case) -> Tensor:
        found = [
            parameter_randomisation(
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
