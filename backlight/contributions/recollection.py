"""The rows and loadings of other pictures: computed as an extraction did, and told by the modes made of its rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from backlight.contributions.algorithms import ALGORITHMS
from backlight.contributions.collector import ContributionCollector, described
from backlight.contributions.recipe import BASELINES, LABEL
from backlight.data.labelled import Sample
from backlight.engine.targets import Contrast, Entropy, Logit, LogProbability, Probability, Target, TopK
from backlight.errors import InputError, ModelError
from backlight.evaluation.identity import model_hash
from backlight.models import LoadedModel
from backlight.shapes import Float

if TYPE_CHECKING:
    from backlight.contributions.decomposed import Decomposed

TARGETS: tuple[type[Target], ...] = (Logit, Probability, LogProbability, TopK, Contrast, Entropy)


def collector_of(decomposed: Decomposed, loaded: LoadedModel) -> ContributionCollector:
    """What made the rows that were decomposed, for their site and quantity alone.

    Where rows explain the sample's label, which a new picture has not, the predicted class takes its place.

    Raises:
        ModelError: another network, other weights, or another preprocessing than the extraction's.
        InputError: rows without a store, or a setting that was given as a tensor, a file or a rule set of its own.
    """
    made: Mapping[str, Any] = decomposed.identity["data"].get("store") or {}
    if "algorithm" not in made:
        raise InputError(f"nothing tells how the rows of {decomposed.site!r} were made")
    if made["model"]["parameters"] != model_hash(loaded.model):
        raise ModelError(f"the modes are of {made['model']['name']!r} with other weights than {loaded.name!r}")
    if made["preprocessing"] is not None and made["preprocessing"] != described(loaded.preprocessing):
        raise ModelError(f"the modes are of pictures that were prepared in another way than for {loaded.name!r}")
    baseline, rules, reduction = made["baseline"], made["rules"], made["reduction"]
    if not isinstance(rules, str) or not (baseline is None or baseline in BASELINES):
        raise InputError(f"the rows of {decomposed.site!r} have rules or a baseline of their own: they have no name")
    layouts = {site: layout for site, layout in reduction["layouts"].items() if site == decomposed.site}
    return ContributionCollector(
        model=loaded.model,
        sites=(decomposed.site,),
        algorithm=_built(made["algorithm"], ALGORITHMS),
        rules=rules,
        target=_target(made["target"]),
        baseline=baseline,
        quantities=(decomposed.quantity,),
        class_token=reduction["class_token"],
        heads=reduction["heads"],
        layouts=layouts,
        preprocessing=loaded.preprocessing,
        strict=made["strict"],
    )


def rows_of(decomposed: Decomposed, loaded: LoadedModel, pictures: Float[Tensor, "N 3 H W"]) -> Float[Tensor, "N C"]:
    """The rows that the extraction would have kept of pictures in [-1, 1]. Raises as `collector_of` does."""
    samples = [Sample(str(number), one.cpu(), None) for number, one in enumerate(pictures)]
    collected = collector_of(decomposed, loaded).open(0).collect(samples)
    positive, negative = collected.rows[decomposed.site, decomposed.quantity]
    chosen = {"positive": positive, "negative": negative, "sum": positive + negative}
    return chosen[decomposed.sign] if decomposed.sign in chosen else torch.cat((positive, negative), 1)


def loadings_of(
    decomposed: Decomposed, loaded: LoadedModel, pictures: Float[Tensor, "N 3 H W"]
) -> Float[Tensor, "N K"]:
    """How much of each mode is in pictures in [-1, 1]. Raises as `collector_of` does."""
    rows = rows_of(decomposed, loaded, pictures).to(decomposed.modes)
    return decomposed.decomposition.encode(rows / decomposed.scale)


def _target(told: Any) -> Target:
    if told == LABEL:
        return Logit()
    return _built(told, {one.__name__: one for one in TARGETS})


def _built(told: Mapping[str, Any], known: Mapping[str, Any]) -> Any:
    """An object from its class's name and settings, as `described` wrote them."""
    settings = {name: value for name, value in told.items() if name != "class"}
    if told.get("class") not in known or any(
        isinstance(one, (Mapping, Sequence)) for one in settings.values() if not isinstance(one, str)
    ):
        raise InputError(f"a {told.get('class')} with settings of its own cannot be told from what was written of it")
    return known[told["class"]](**settings)
