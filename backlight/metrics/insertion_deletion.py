"""Insertion and deletion: the score while the parts that a map ranks highest are put onto a canvas, or taken away."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from backlight.engine.targets import Probability
from backlight.errors import InputError, ModelError, UnknownNameError
from backlight.methods.token_layout import find_sites
from backlight.metrics.allowed import COUNT_OR_NONE, POSITIVE, Check, one_of
from backlight.metrics.blocks import Blocks, blocks_of_ranks, ordered_blocks, per_position
from backlight.metrics.canvas import CANVASES, Canvas, canvas_of
from backlight.metrics.case import Case
from backlight.metrics.correlation import precise
from backlight.metrics.draws import Seed
from backlight.metrics.maps import finite, region_sums, stacked
from backlight.metrics.metric import Metric
from backlight.metrics.patches import grid, pixels
from backlight.metrics.scorer import BATCH_SIZE, Scorer
from backlight.shapes import Float, Int

UNITS = ("patch", "pixel", "token")
NORMALISATIONS = ("none", "image", "range")


class Curve(NamedTuple):
    """`scores`: `[N, T + 1]` or `[M, N, T + 1]`, after each step. `fractions`: `[T + 1]`, of the units, from 0 to 1."""

    scores: Float[Tensor, "*M N T1"]
    fractions: Float[Tensor, "T1"]

    @property
    def auc(self) -> Float[Tensor, "*M N"]:
        """The area under the curve."""
        return auc(*self)


def auc(scores: Float[Tensor, "*rows T1"], fractions: Float[Tensor, "T1"]) -> Float[Tensor, "*rows"]:
    """The area under curves over fractions from 0 to 1, by the trapezoidal rule: a mean score."""
    return torch.trapezoid(precise(scores), precise(fractions))


def replacement_curve(
    model: nn.Module | Scorer,
    inputs: Float[Tensor, "N C H W"],
    attributions: Tensor,
    target: Any = None,
    *,
    insert: bool,
    unit: str = "patch",
    patch: int | float = 1 / 14,
    steps: int | None = 28,
    canvas: Canvas = "zero",
    sigma: float = 1 / 20,
    absolute: bool = False,
    normalise: str = "none",
    seed: Seed = 0,
    batch_size: int = BATCH_SIZE,
) -> Curve:
    """The score on the way from the image to the canvas, or back, unit by unit in the order of the map's sums.

    Samek et al. 2017; Petsiuk et al. 2018. The largest sums go first; for the smallest first, give the negative map.
    Cost: `steps - 1` forwards a map; one of the image and one of the canvas a sample.

    Args:
        model: or a `Scorer` of it at these samples: what it has computed for another metric is not computed again.
        attributions: `[N, C, H, W]`, `[N, 1, H, W]`, or either with a leading axis of methods.
        insert: from the canvas to the image; else from the image to the canvas.
        unit: "patch": square patches; "pixel": positions; "token": the patches of a vision transformer, whose side is
            read from its patch embedding.
        patch: the side of a patch; see `backlight.metrics.patches.pixels`. The default is 16 at 224.
        steps: groups of units, of equal numbers or one apart, that go together; None: every unit goes alone.
        canvas, sigma: see `backlight.metrics.canvas.canvas_of`.
        absolute: sums of absolute values. Otherwise sums are signed, and evidence against the target goes last.
        normalise: "none"; "image": divided by the score of the image; "range": 0 at the canvas, 1 at the image. NaN
            where that divides by 0.
        seed: of the canvas "noise": one for all samples, or one a sample.

    Raises:
        UnknownNameError: another unit, canvas or normalisation.
        SiteError, ModelError: tokens of a network that is not known to have them.
        InputError: no steps, or patches that do not fit.
    """
    if normalise not in NORMALISATIONS:
        raise UnknownNameError("normalisation", normalise, NORMALISATIONS)
    maps, single = stacked(attributions, inputs)
    scorer = Scorer.of(model, inputs, target, batch_size)
    regions, count = _regions(model, scorer.inputs, unit, patch)

    def sums(phi: Tensor) -> Tensor:
        return region_sums(per_position(phi), regions.flatten(), count)

    groups = ordered_blocks(maps, sums, steps, absolute=absolute, descending=True)
    ground = canvas_of(canvas, scorer.inputs, seed, sigma)
    scores = _normalised(_scores(scorer, groups, regions, ground, insert), insert, normalise)
    scores = torch.where(finite(maps, 2)[..., None].cpu(), scores, torch.nan)
    done = blocks_of_ranks(count, steps).bincount().cumsum(0).double() / count
    return Curve(scores[0] if single else scores, torch.cat((torch.zeros(1, dtype=done.dtype), done)))


def deletion_curve(
    model: nn.Module | Scorer,
    inputs: Float[Tensor, "N C H W"],
    attributions: Tensor,
    target: Any = None,
    **settings: Any,
) -> Curve:
    """The score while units are replaced by the canvas; see `replacement_curve`. A good map's falls at once."""
    return replacement_curve(model, inputs, attributions, target, insert=False, **settings)


def insertion_curve(
    model: nn.Module | Scorer,
    inputs: Float[Tensor, "N C H W"],
    attributions: Tensor,
    target: Any = None,
    **settings: Any,
) -> Curve:
    """The score while units are put onto the canvas; see `replacement_curve`. A good map's rises at once."""
    return replacement_curve(model, inputs, attributions, target, insert=True, **settings)


def relevance_gain(
    model: nn.Module | Scorer,
    inputs: Float[Tensor, "N C H W"],
    attributions: Tensor,
    target: Any = None,
    *,
    absolute: bool = False,
    **settings: Any,
) -> Float[Tensor, "*M N"]:
    """Area under the deletion curve of the smallest first, minus that of the largest first; higher is better.

    Bluecher et al. 2024's symmetric relevance gain. A map that orders nothing gets 0 on average, on any canvas, and the
    negative map minus the score. Settings and units as in `replacement_curve`, and twice its cost a map.
    """
    maps, single = stacked(attributions, inputs)
    maps = maps.abs() if absolute else maps
    largest, smallest = deletion_curve(model, inputs, torch.cat((maps, -maps)), target, **settings).auc.chunk(2)
    return (smallest - largest)[0] if single else smallest - largest


def token_side(model: nn.Module) -> int:
    """The side, in pixels, of the patches that a vision transformer makes its tokens of.

    Raises:
        SiteError: a network of no family whose patch tokens are known.
        ModelError: its tokens are not of square patches beside each other.
    """
    embedding = model.get_submodule(find_sites(model).patches)
    found = next((module for module in embedding.modules() if isinstance(module, nn.Conv2d)), None)
    side = None if found is None else found.kernel_size[0]
    if found is None or found.kernel_size != (side, side) or found.stride != (side, side):
        raise ModelError(f"the tokens of {type(model).__name__} are no square patches beside each other: give patch=")
    return found.kernel_size[0]


def _regions(
    model: nn.Module | Scorer, x: Float[Tensor, "N C H W"], unit: str, patch: int | float
) -> tuple[Int[Tensor, "H W"], int]:
    if unit not in UNITS:
        raise UnknownNameError("unit", unit, UNITS)
    if unit == "token":
        if isinstance(model, Scorer):
            raise InputError("the side of tokens is read from the network: give it, or unit='patch' and their side")
        patch = token_side(model)
    side = 1 if unit == "pixel" else patch
    return grid(x.shape[2:], pixels(float(side), x), x.device)


def _scores(
    scorer: Scorer, groups: Blocks, regions: Int[Tensor, "H W"], ground: Float[Tensor, "N C H W"], insert: bool
) -> Float[Tensor, "M N T1"]:
    """The scores after each group; at both ends, where all maps agree, each sample is scored once."""
    x, numbers = scorer.inputs, groups.numbers.to(scorer.inputs.device)
    start, end = (ground, x) if insert else (x, ground)
    between = groups.count - 1

    def replaced(rows: Tensor, versions: Tensor) -> Tensor:
        last = (versions % between).to(numbers.dtype)
        changed = (numbers[versions // between, rows] <= last[:, None])[:, regions]
        return torch.where(changed[:, None], end[rows], start[rows])

    inner = torch.empty(len(x), 0)
    if between:
        inner = scorer.versions(len(numbers) * between, replaced)
    inner = inner.reshape(len(x), len(numbers), between).transpose(0, 1)
    empty = scorer.versions(1, lambda rows, _: ground[rows])[:, 0]
    first, last = (
        scores[:, None].expand(len(numbers), -1, 1)
        for scores in ((empty, scorer.scores) if insert else (scorer.scores, empty))
    )
    return torch.cat((first, inner, last), -1)


def _normalised(scores: Float[Tensor, "M N T1"], insert: bool, normalise: str) -> Float[Tensor, "M N T1"]:
    if normalise == "none":
        return scores
    first, last = scores[..., :1], scores[..., -1:]
    whole, empty = (last, first) if insert else (first, last)
    empty = empty if normalise == "range" else torch.zeros_like(empty)
    return torch.where(whole == empty, torch.nan, (scores - empty) / (whole - empty))


@dataclass(frozen=True, kw_only=True)
class Deletion(Metric):
    """Area under the deletion curve; settings as in `replacement_curve`.

    `probability`: of the class's softmax probability, whatever the case's target reads.
    """

    source: ClassVar[str] = "Samek et al. 2017; Petsiuk et al. 2018"
    formula: ClassVar[str] = "mean over t of f(x with the t highest units replaced by the canvas)"
    higher_is_better: ClassVar[bool] = False
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "patch": {},
        "petsiuk": {"unit": "pixel", "steps": 224, "probability": True},
    }
    allowed: ClassVar[dict[str, Check]] = {
        "unit": one_of(UNITS),
        "patch": POSITIVE,
        "steps": COUNT_OR_NONE,
        "canvas": one_of(CANVASES, others=(int, float, Tensor)),
        "sigma": POSITIVE,
        "normalise": one_of(NORMALISATIONS, "normalisation"),
    }

    unit: str = "patch"
    patch: int | float = 1 / 14
    steps: int | None = 28
    canvas: Canvas = "zero"
    sigma: float = 1 / 20
    absolute: bool = False
    normalise: str = "none"
    probability: bool = False

    def __call__(self, case: Case) -> Tensor:
        return self.curve(case).auc

    def curve(self, case: Case) -> Curve:
        """The curves of all maps."""
        return deletion_curve(**self._of(case))

    def _of(self, case: Case) -> dict[str, Any]:
        """The arguments of the function that stands behind the metric."""
        settings: dict[str, Any] = {"model": case.scorer, "target": case.chosen, **self.settings()}
        if settings.pop("probability"):
            settings |= {"model": case.model, "target": Probability(case.classes)}
        if self.unit == "token":
            settings |= {"unit": "patch", "patch": token_side(case.model)}
        settings |= {"seed": case.seed, "batch_size": case.batch_size}
        return {"inputs": case.inputs, "attributions": case.attributions, **settings}

    @property
    def sees_sign(self) -> bool:
        return not self.absolute


@dataclass(frozen=True, kw_only=True)
class Insertion(Deletion):
    """Area under the insertion curve, from a blurred image on; settings as in `replacement_curve`.

    "petsiuk": their kernel, a Gaussian of 5 pixels reflected inside 11, is nearly a box of standard deviation 3.13;
    ours is a Gaussian of that. Theirs sees zeros outside the image, ours the image reflected.
    """

    source: ClassVar[str] = "Petsiuk et al. 2018"
    formula: ClassVar[str] = "mean over t of f(canvas with the t highest units of x)"
    higher_is_better: ClassVar[bool] = True
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "patch": {},
        "petsiuk": {"unit": "pixel", "steps": 224, "sigma": 3.13 / 224, "probability": True},
    }

    canvas: Canvas = "blur"

    def curve(self, case: Case) -> Curve:
        return insertion_curve(**self._of(case))


@dataclass(frozen=True, kw_only=True)
class RelevanceGain(Deletion):
    """Area between the deletion curves of the smallest and of the largest first; settings as in `replacement_curve`."""

    source: ClassVar[str] = "Bluecher et al. 2024; Samek et al. 2017"
    formula: ClassVar[str] = "Deletion AUC of -phi minus Deletion AUC of phi"
    higher_is_better: ClassVar[bool] = True
    presets: ClassVar[dict[str, dict[str, Any]]] = {"patch": {}}

    def __call__(self, case: Case) -> Tensor:
        return relevance_gain(**self._of(case))
