"""RandomLogit: does a map change when another class is explained?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any, ClassVar

import torch
from torch import Tensor

from backlight.engine.targets import Logit, output_tensor
from backlight.errors import InputError, TargetError
from backlight.metrics.allowed import Check, one_of
from backlight.metrics.case import Case
from backlight.metrics.draws import Seed, generators
from backlight.metrics.explainers import as_explainer, class_indices, decided, explained
from backlight.metrics.map_similarity import SIMILARITIES, map_similarity
from backlight.metrics.maps import stacked
from backlight.metrics.metric import Metric
from backlight.metrics.scorer import BATCH_SIZE
from backlight.shapes import Float, Int

CLASSES = ("random", "second", "all")


def random_logit(
    explain: Any,
    inputs: Float[Tensor, "N C *space"],
    target: Any,
    others: int | Tensor | Sequence,
    *,
    attributions: Tensor | None = None,
    similarity: str = "pearson",
    absolute: bool = False,
    seed: Seed = 0,
    batch_size: int = BATCH_SIZE,
) -> Float[Tensor, "N"]:
    """The similarity of phi for the target with phi for other classes (Sixt et al. 2020).

    Lower is better: 1 where the map does not depend on the class, about 0 where those of the two have nothing in
    common, and negative where what speaks for one class speaks against the other. Blind to the scale and the sign of
    phi. Cost: one explanation a sample and other class. A method that draws keeps its seed, so that only the class
    differs.

    Args:
        explain: a method, an attribution of Captum, or a function `(inputs, target) -> maps`.
        target: the class of each sample; a `Probability` stays one for the other classes.
        others: the number of classes, of which one that is not the target is drawn for each sample; or the other
            classes themselves, `[N]`, or `[N, R]`, of which the mean similarity is taken.
        attributions: phi for the target, where it is known.
        similarity: see `backlight.metrics.map_similarity`; signed Pearson by default, as in Semantic Pullbacks.
        seed: one for all samples, or one a sample.

    Returns:
        `[N]` in [-1, 1]; NaN where one of the maps is constant.

    Raises:
        InputError: no other class, other classes of another shape, or a target that is left to the output.
        TargetError: a target that is not one class.
    """
    explainer, chosen, x = as_explainer(explain), decided(target, len(inputs)), inputs.detach()
    classes = target_classes(chosen, x)
    found = explained(explainer, x, chosen, batch_size) if attributions is None else attributions
    stacked(found, x)  # refuses what does not fit
    table = random_classes(classes, int(others), seed) if isinstance(others, Integral) else _table(others, len(x))
    if bool((table == classes[:, None]).any()):
        raise InputError("one of the other classes is the target")
    alike = torch.empty(table.numel(), dtype=torch.float64)
    for flat in torch.arange(table.numel()).split(batch_size):
        rows = flat // table.shape[1]
        other = replace(chosen, index=table.flatten()[flat].to(x.device))  # type: ignore[type-var]
        at = rows.to(x.device)
        maps = explainer(x[at], other)
        alike[flat] = map_similarity(found[rows.to(found.device)], maps.to(found.device), similarity, absolute)
    return alike.reshape(table.shape).nanmean(1)


def _table(others: Any, samples: int) -> Int[Tensor, "N R"]:
    """Other classes as `[N, R]`, on the CPU."""
    found = torch.as_tensor(others)
    if found.is_floating_point() or found.ndim not in (1, 2) or len(found) != samples or not found.numel():
        raise InputError(
            f"the other classes are a number of classes, or class indices [N] or [N, R] of {samples} samples, "
            f"got {found.dtype} {list(found.shape)}"
        )
    return found.reshape(samples, -1).long().cpu()


def target_classes(target: Any, inputs: Float[Tensor, "N C *space"]) -> Int[Tensor, "N"]:
    """The class of each sample, on the CPU.

    Raises:
        TargetError: a target that is not one class.
    """
    index = target.index if isinstance(target, Logit) else None
    if index is None or isinstance(index, tuple):
        raise TargetError(f"other classes need a class index as target, not {target!r}")
    return class_indices(Logit(index), inputs).cpu()


def random_classes(classes: Int[Tensor, "N"], count: int, seed: Seed) -> Int[Tensor, "N 1"]:
    """A class of `count` for each sample, drawn uniformly from those that are not its own.

    Raises:
        InputError: fewer than two classes.
    """
    if count < 2:
        raise InputError(f"{count} classes: there is no other one")
    drawn = torch.stack([torch.randint(count - 1, (1,), generator=g) for g in generators(seed, len(classes))])
    own = classes.remainder(count)[:, None]
    return drawn + (drawn >= own).long()


def every_class(classes: Int[Tensor, "N"], count: int) -> Int[Tensor, "N R"]:
    """All classes but each sample's own, R = count - 1."""
    every = torch.arange(count).expand(len(classes), -1)
    return every[every != classes.remainder(count)[:, None]].reshape(len(classes), -1)


def second_class(classes: Int[Tensor, "N"], logits: Float[Tensor, "N K"]) -> Int[Tensor, "N 1"]:
    """The class of the largest logit but each sample's own."""
    own = classes.remainder(logits.shape[1])[:, None]
    return logits.cpu().scatter(1, own, -torch.inf).argmax(1, keepdim=True)


@dataclass(frozen=True, kw_only=True)
class RandomLogit(Metric):
    """Similarity of the maps of the target and another class; settings as in `random_logit`.

    `classes`: which others. "random": one; "second": that of the largest other logit, the hardest one; "all".
    """

    source: ClassVar[str] = "Sixt et al. 2020; Semantic Pullbacks, section 4"
    formula: ClassVar[str] = "Pearson of phi for the target and phi for another class"
    higher_is_better: ClassVar[bool] = False
    needs: ClassVar[tuple[str, ...]] = ("explainers", "classes")
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "pullbacks": {},
        "quantus": {"similarity": "ssim"},
        "second": {"classes": "second"},
    }
    allowed: ClassVar[dict[str, Check]] = {
        "classes": one_of(CLASSES, "choice of classes"),
        "similarity": one_of(SIMILARITIES),
    }

    classes: str = "random"
    similarity: str = "pearson"
    absolute: bool = False

    def __call__(self, case: Case) -> Tensor:
        others = self._others(case)
        found = [
            random_logit(
                case.explainer(name),
                case.inputs,
                case.chosen,
                others,
                attributions=case.map(name),
                similarity=self.similarity,
                absolute=self.absolute,
                seed=case.seed,
                batch_size=case.batch_size,
            )
            for name in case.names
        ]
        return torch.stack(found)

    def _others(self, case: Case) -> Tensor:
        """The same other classes for all explanations."""
        if self.classes == "random":
            return random_classes(case.classes, case.class_count, case.seed)
        if self.classes == "all":
            return every_class(case.classes, case.class_count)
        with torch.no_grad():
            logits = [output_tensor(case.model(piece)) for piece in case.inputs.split(case.batch_size)]
        return second_class(case.classes, torch.cat(logits))
