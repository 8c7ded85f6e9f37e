"""Operators that read gradients: on a straight line, or where everything is there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from backlight.engine.paths import line_rule
from backlight.engine.segment import Segment
from backlight.graph.coded import Coded, vectors_of
from backlight.graph.operators_base import Ends, Operator, Passes, value_at
from backlight.graph.scores import Scores
from backlight.shapes import Float


@dataclass(frozen=True, kw_only=True)
class IntegratedGradients(Operator):
    """The mean gradient on the straight line from what is there without concepts to what is there with them.

    `rule`: see `line_rule`. With `riemann_right` it is gradient times input at `n_steps` points of that line, and
    `GradientTimesInput` is its single step. One forward pass a step for all scores, one backward a step and score.
    """

    source: ClassVar[str] = "Sundararajan et al. 2017; the iERF paper's choice, equation 15"
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


def mean_gradients(
    segment: Segment,
    coded: Coded,
    ends: Ends,
    scores: Scores,
    passes: Passes,
    places: list[float],
    weights: list[float],
    batch_size: int,
    held: bool = False,
) -> Float[Tensor, "T N P C"]:
    """sum_s w_s dS_t / dx at base + a_s (end - base), for every score t; `held`: of `Scores.cotangent`.

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
        value = value_at(coded, vectors).detach().requires_grad_()
        later = segment(value, rows)
        passes.forwards += len(rows)
        if not later.requires_grad:
            continue
        for target, cotangent in enumerate(scores.cotangents(later.detach(), rows, held)):
            more = target + 1 < len(scores)
            (gradient,) = torch.autograd.grad(later, value, cotangent, retain_graph=more, allow_unused=True)
            passes.backwards += len(rows)
            if gradient is not None:
                part = vectors_of(gradient, coded.layout) * shares[step, None, None]
                found[target].index_add_(0, at, part)
    return found
