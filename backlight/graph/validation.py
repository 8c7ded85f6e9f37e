"""Interlayer concept insertion and deletion: does an order of parents find those that make a child? (iERF, VI-C)

The parents of a concept are added to nothing, or taken from everything, in the order of their edges, at all positions
of the earlier layer at once, and the rest of the model says what is left of the concept.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from backlight.engine.segment import Segment
from backlight.errors import BacklightError, InputError, UnknownNameError
from backlight.graph.coded import Coded
from backlight.graph.icat import Edges, edges
from backlight.graph.operators import operator
from backlight.graph.operators_base import Operator, value_at
from backlight.graph.scores import Alignment
from backlight.shapes import Float, Int

METRICS = ("max", "mean", "top", "score")
LEAST = 0.05  # of a cosine with all concepts; what is divided by less says nothing


@dataclass(frozen=True, eq=False)
class Curves:
    """What is left of T children of one image, for each of M metrics, at S shares of the active parents.

    Attributes:
        shares: `[S]`, from 0 to 1.
        inserted: `[M, T, S]`, with the first parents alone; deleted: without them. Divided by the value with all
            parents; NaN where that is less than `least`.
        full: `[M, T]`, the value with all parents, as it is.
    """

    shares: Float[Tensor, "S"]
    inserted: Float[Tensor, "M T S"]
    deleted: Float[Tensor, "M T S"]
    full: Float[Tensor, "M T"]

    @property
    def insertion(self) -> Float[Tensor, "M T"]:
        """The area under the curve: large where the first parents bring the child."""
        return torch.trapezoid(self.inserted, self.shares, dim=2)

    @property
    def deletion(self) -> Float[Tensor, "M T"]:
        """The area under the curve: small where the first parents take it away."""
        return torch.trapezoid(self.deleted, self.shares, dim=2)


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How curves are taken.

    `points`: shares of the active parents, 0 and 1 among them. `residual`: whether what no concept tells is there all
    along; False, as in the paper: the earlier layer is U V. `top`: the share of positions that the metric `top` takes
    the mean of. `least`: the smallest cosine with all parents that others are divided by; of `score`, times sum |u_t|.

    Metrics, of cos(M(X')_i, v_t) over positions i: `max` (the paper's), `mean`, `top`, and `score`, the sum weighed by
    the codes u_it, which is what edges attribute.
    """

    points: int = 21
    residual: bool = False
    top: float = 0.05
    least: float = LEAST
    batch_size: int = 32

    def __post_init__(self) -> None:
        if self.points < 2 or not 0 < self.top <= 1 or self.batch_size < 1:
            raise InputError("curves have at least 2 points, `top` is a share from 0 to 1, batches at least one sample")


def curves(
    segment: Segment,
    parents: Coded,
    children: Coded,
    targets: Sequence[int],
    order: Float[Tensor, "T K"],
    protocol: Protocol,
    row: int = 0,
) -> Curves:
    """The curves of one image, its active parents in the order of falling `order`.

    Two forward passes of the segment a point and target.

    Raises:
        InputError: an order that is not of these parents.
    """
    if order.shape != (len(targets), len(parents.atoms)):
        raise InputError(f"an order of {list(order.shape)} for {len(targets)} targets and {len(parents.atoms)} parents")
    on = (parents.codes[row] != 0).any(0).nonzero().flatten()
    shares = torch.linspace(0, 1, protocol.points, dtype=torch.float64)
    counts = [round(float(share) * len(on)) for share in shares]
    base = parents.base + (parents.residual[row] if protocol.residual else 0)
    scores = Alignment.of_concepts(children, targets)
    halves: list[list[Tensor]] = [[], []]
    for target in range(len(targets)):
        ranked = on[order[target, on].argsort(descending=True, stable=True)]
        there = _added(parents, row, ranked, counts)
        for half, vectors in zip(halves, (base + there, base + (there[-1] - there)), strict=True):
            half.append(_measured(segment, parents, vectors, scores, target, row, protocol))
    inserted, deleted = (torch.stack(half, 1) for half in halves)
    full = inserted[:, :, -1]
    units = torch.ones_like(full)
    units[METRICS.index("score")] = scores.weights[row].abs().sum(0)  # of a sum of cosines, weighed by these
    scale = torch.where((full >= protocol.least * units) & (full != 0), full, torch.nan)[:, :, None]
    return Curves(shares, inserted / scale, deleted / scale, full)


def _added(parents: Coded, row: int, ranked: Int[Tensor, "Q"], counts: Sequence[int]) -> Float[Tensor, "S P C"]:
    """What the first parents make, for each count: each is added once."""
    steps = []
    for start, stop in zip((0, *counts[:-1]), counts, strict=True):
        chosen = ranked[start:stop]
        steps.append(parents.codes[row][:, chosen] @ parents.atoms[chosen])
    return torch.stack(steps).cumsum(0)


def _measured(
    segment: Segment,
    parents: Coded,
    vectors: Float[Tensor, "S P C"],
    scores: Alignment,
    target: int,
    row: int,
    protocol: Protocol,
) -> Float[Tensor, "M S"]:
    one = Alignment(scores.weights[:, :, target : target + 1], scores.directions[target : target + 1], scores.layout)
    found = []
    with torch.no_grad():
        for chunk in vectors.split(protocol.batch_size):
            rows = torch.full((len(chunk),), row)
            cosines = one.cosines(segment(value_at(parents, chunk), rows))[:, :, 0]
            found.append(_metrics(cosines, one.weights[row, :, 0], protocol.top))
    return torch.cat(found, 1)


def _metrics(cosines: Float[Tensor, "B P"], weights: Float[Tensor, "P"], top: float) -> Float[Tensor, "M B"]:
    """Of `METRICS`, in float64."""
    wide = cosines.double()
    count = math.ceil(top * wide.shape[1])
    return torch.stack([wide.amax(1), wide.mean(1), wide.topk(count, 1).values.mean(1), wide @ weights.double()])


@dataclass(frozen=True, eq=False)
class Validated:
    """One image: curves and edges of each operator, and why the others have none."""

    targets: tuple[int, ...]
    curves: Mapping[str, Curves]
    edges: Mapping[str, Edges]
    left_out: Mapping[str, str]


def validate(
    model: nn.Module,
    x: Float[Tensor, "1 ..."],
    parents: Coded,
    children: Coded,
    targets: Sequence[int],
    operators: Mapping[str, str | Operator],
    protocol: Protocol | None = None,
    *,
    segment: Segment | None = None,
) -> Validated:
    """Insertion and deletion of one image's parents, in the order of each operator's edges.

    An operator that does not know the layers in between is left out, and its error kept.

    Raises:
        UnknownNameError: an operator; InputError: several images, or no targets.
    """
    protocol = protocol or Protocol()
    if len(x) != 1 or len(parents.vectors) != 1:
        raise InputError(f"images are validated one by one, got {len(parents.vectors)}")
    chosen = {name: operator(one) for name, one in operators.items()}
    segment = segment or Segment(model, x, parents.site, children.site)
    found: dict[str, Curves] = {}
    known: dict[str, Edges] = {}
    left_out: dict[str, str] = {}
    for name, one in chosen.items():
        try:
            known[name] = edges(
                model, x, parents, children, targets,
                attribution=one, residual=protocol.residual, segment=segment,
            )  # fmt: skip
        except BacklightError as error:
            if isinstance(error, InputError):
                raise
            left_out[name] = " ".join(str(error).split())
            continue
        found[name] = curves(segment, parents, children, targets, known[name].values[0], protocol)
    return Validated(tuple(targets), found, known, left_out)


def strongest(coded: Coded, count: int, row: int = 0) -> list[int]:
    """The concepts of one image with the largest sum of positive codes; fewer where fewer are on."""
    mass = coded.codes[row].clamp(min=0).double().sum(0)
    found = mass.topk(min(count, len(mass)))
    return [int(q) for value, q in zip(found.values, found.indices, strict=True) if value > 0]


def most_important(
    model: nn.Module,
    x: Float[Tensor, "1 ..."],
    coded: Coded,
    count: int,
    target: int | None = None,
    attribution: str | Operator = "IntegratedGradients",
) -> list[int]:
    """The concepts of one image that do the most for a class, sum_i AT(u_iq, logit_c); None: the predicted one's."""
    if target is None:
        with torch.no_grad():
            target = int(model(x)[0].argmax())
    importance = edges(model, x, coded, None, [target], attribution=attribution).values[0, 0]
    found = importance.topk(min(count, len(importance)))
    return [int(q) for value, q in zip(found.values, found.indices, strict=True) if value > 0]


CHOICES = ("mass", "importance")


def choose_targets(by: str, model: nn.Module, x: Float[Tensor, "1 ..."], children: Coded, count: int) -> list[int]:
    """The children that are validated: `mass`, the strongest; `importance`, those that make the predicted class.

    Raises:
        UnknownNameError: another choice.
    """
    if by not in CHOICES:
        raise UnknownNameError("choice of targets", by, CHOICES)
    return strongest(children, count) if by == "mass" else most_important(model, x, children, count)
