"""Do edges say what happens? Take a parent out of the running model, and see what becomes of the child.

Unlike insertion and deletion, nothing is reconstructed: u_pq v_q is subtracted from what the model has at every
position, the residual stays, and the rest of the model runs on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from backlight.engine.segment import Segment
from backlight.graph.coded import Coded, vectors_of
from backlight.graph.operators_base import active, value_at
from backlight.graph.scores import Alignment
from backlight.metrics.correlation import pearson, spearman
from backlight.shapes import Float, Int

Encode = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Changes:
    """What T children of one image lose without each of Q parents.

    Attributes:
        concepts: `[Q]`, the parents that are on in the image.
        score: `[Q, T]`, S(x) - S(x - u_q v_q). largest: the same of max_i cos(x_i, v_t).
        codes: `[Q, T]`, of sum_i u_it, the later layer coded anew; None where no coder was given.
    """

    concepts: Int[Tensor, "Q"]
    score: Float[Tensor, "Q T"]
    largest: Float[Tensor, "Q T"]
    codes: Float[Tensor, "Q T"] | None = None


@dataclass(frozen=True)
class Agreement:
    """Correlation of edges with measured changes over the parents of one child."""

    pearson: float
    spearman: float


def changes(
    segment: Segment,
    parents: Coded,
    children: Coded,
    targets: Sequence[int],
    row: int = 0,
    *,
    encode: Encode | None = None,
    batch_size: int = 32,
) -> Changes:
    """What happens to the children when each parent is zeroed in the running model: a forward pass a parent.

    `encode`: of the later layer, `[n, C]` to `[n, K]`.
    """
    own = parents.image(row)
    concepts = active(own)
    scores = Alignment.of_concepts(children, targets)
    whole = _states(segment, own, children, own.vectors, scores, targets, row, encode)
    found = []
    for chunk in concepts.split(batch_size):
        taken = torch.einsum("pq,qc->qpc", own.codes[0][:, chunk], own.atoms[chunk])
        without = _states(segment, own, children, own.vectors - taken, scores, targets, row, encode)
        found.append([before - after for before, after in zip(whole, without, strict=True)])
    if not found:
        return Changes(concepts, *(one.new_zeros(0, len(targets)) for one in whole))
    return Changes(concepts, *(torch.cat(parts) for parts in zip(*found, strict=True)))


def _states(
    segment: Segment,
    parents: Coded,
    children: Coded,
    vectors: Float[Tensor, "B P C"],
    scores: Alignment,
    targets: Sequence[int],
    row: int,
    encode: Encode | None,
) -> list[Tensor]:
    """S, the largest cosine, and the sum of codes, `[B, T]` each."""
    rows = torch.full((len(vectors),), row)
    with torch.no_grad():
        later = segment(value_at(parents, vectors), rows)
        found = [scores.all(later, rows), scores.cosines(later).amax(1)]
        if encode is not None:
            after = vectors_of(later, children.layout)
            codes = encode(after.flatten(0, 1)).unflatten(0, after.shape[:2])
            found.append(codes[:, :, list(targets)].sum(1))
    return found


def agreement(values: Float[Tensor, "K"], measured: Float[Tensor, "Q"], concepts: Int[Tensor, "Q"]) -> Agreement:
    """How edges of a child agree with what it loses; NaN where there are fewer than three parents, or no spread."""
    ours, theirs = values[concepts].double(), measured.double()
    if len(ours) < 3:
        return Agreement(float("nan"), float("nan"))
    return Agreement(float(pearson(ours, theirs)), float(spearman(ours, theirs)))
