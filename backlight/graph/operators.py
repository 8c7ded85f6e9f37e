"""Attribution operators: what makes an edge of a concept graph.

An operator gives multipliers A `[T, N, P, C]` at the earlier site, so that the share of anything z that is part of
what the site holds is <z, A>: of a concept, u_pq <v_q, A_p>, by the chain rule, as if each coefficient had been
attributed on its own (specs of ICAT, iERF paper, section VI-B).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from backlight.engine.paths import line_rule
from backlight.engine.rules import GRADIENT, RuleSet
from backlight.engine.segment import Segment
from backlight.errors import UnknownNameError
from backlight.graph.coded import Coded, value_of, vectors_of
from backlight.graph.scores import Scores
from backlight.shapes import Float


@dataclass
class Passes:
    """Passes through the segment, counted in samples."""

    forwards: int = 0
    backwards: int = 0


@dataclass(frozen=True)
class Ends:
    """The points between which concepts are attributed: what is there without them, and with them, `[N, P, C]`."""

    base: Float[Tensor, "N P C"]
    end: Float[Tensor, "N P C"]


@dataclass(frozen=True, kw_only=True)
class Operator:
    """One way to attribute a score to what lies before it. `rules`: the segment's."""

    source: ClassVar[str] = ""
    complete: ClassVar[bool] = False  # the shares sum to S(end) - S(base)

    batch_size: int = 32

    def rules(self) -> RuleSet:
        """How cotangents travel through the segment."""
        return GRADIENT

    def multipliers(
        self, segment: Segment, coded: Coded, ends: Ends, scores: Scores, passes: Passes
    ) -> Float[Tensor, "T N P C"]:
        """A, for every score and image."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class IntegratedGradients(Operator):
    """The mean gradient on the straight line from what is there without concepts to what is there with them.

    One forward pass a step for all scores, and one backward pass a step and score.
    """

    source: ClassVar[str] = "Sundararajan et al. 2017; the iERF paper's choice"
    complete: ClassVar[bool] = True

    n_steps: int = 20
    rule: str = "gausslegendre"

    def multipliers(self, segment: Segment, coded: Coded, ends: Ends, scores: Scores, passes: Passes) -> Tensor:
        places, weights = line_rule(self.rule, self.n_steps)
        return mean_gradients(segment, coded, ends, scores, passes, places.tolist(), weights.tolist(), self.batch_size)


@dataclass(frozen=True, kw_only=True)
class GradientTimesInput(Operator):
    """The gradient where everything is there. One forward pass, one backward pass a score."""

    source: ClassVar[str] = "Shrikumar et al. 2016"

    def multipliers(self, segment: Segment, coded: Coded, ends: Ends, scores: Scores, passes: Passes) -> Tensor:
        return mean_gradients(segment, coded, ends, scores, passes, [1.0], [1.0], self.batch_size)


@dataclass(frozen=True, kw_only=True)
class RuleTimesInput(GradientTimesInput):
    """The cotangent under a rule set, where everything is there: LRP, AttnLRP, soft pullbacks."""

    source: ClassVar[str] = "relevance as value times modified gradient"

    made: Callable[[], RuleSet] = field(default=lambda: GRADIENT)

    def rules(self) -> RuleSet:
        return self.made()


def mean_gradients(
    segment: Segment,
    coded: Coded,
    ends: Ends,
    scores: Scores,
    passes: Passes,
    places: list[float],
    weights: list[float],
    batch_size: int,
) -> Float[Tensor, "T N P C"]:
    """sum_s w_s dS_t / dx at base + a_s (end - base), for every score t.

    The points are run in batches, each batch forwards once and backwards once a score.
    """
    n = len(ends.end)
    found = ends.end.new_zeros(len(scores), *ends.end.shape)
    steps = torch.tensor(places, dtype=ends.end.dtype, device=ends.end.device)
    shares = torch.tensor(weights, dtype=ends.end.dtype, device=ends.end.device)
    points = torch.arange(n * len(places))  # image-major
    for chunk in points.split(batch_size):
        rows, step = chunk // len(places), (chunk % len(places)).to(steps.device)
        at = rows.to(steps.device)
        vectors = ends.base[at] + steps[step, None, None] * (ends.end - ends.base)[at]
        value = value_of(vectors, coded.layout, coded.shape).detach().requires_grad_()
        later = segment(value, rows)
        passes.forwards += len(rows)
        for target in range(len(scores)):
            total = scores.of(later, target, rows).sum()
            if not total.requires_grad:
                continue
            (gradient,) = torch.autograd.grad(total, value, retain_graph=target + 1 < len(scores), allow_unused=True)
            passes.backwards += len(rows)
            if gradient is not None:
                part = vectors_of(gradient, coded.layout) * shares[step, None, None]
                found[target].index_add_(0, at, part)
    return found


OPERATORS: dict[str, Callable[[], Operator]] = {
    "IntegratedGradients": IntegratedGradients,
    "GradientTimesInput": GradientTimesInput,
}


def operator(name: str | Operator) -> Operator:
    """An operator by its name.

    Raises:
        UnknownNameError: none of that name.
    """
    if isinstance(name, Operator):
        return name
    if name not in OPERATORS:
        raise UnknownNameError("attribution operator", name, OPERATORS)
    return OPERATORS[name]()
