"""Controls: orders that know nothing of the later layer, and the plain experiment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from backlight.engine.segment import Segment
from backlight.graph.coded import Coded
from backlight.graph.operators_base import Ends, Operator, Passes, Shares, active, value_at
from backlight.graph.scores import Scores
from backlight.shapes import Float, Int


@dataclass(frozen=True, kw_only=True)
class Random(Operator):
    """Standard normal numbers; the same ones for every image, of `seed`."""

    source: ClassVar[str] = "a control"

    seed: int = 0

    def shares(self, segment: Segment, coded: Coded, ends: Ends, scores: Scores, passes: Passes) -> Shares:
        draw = torch.Generator().manual_seed(self.seed)
        drawn = torch.randn(len(scores), len(coded.atoms) + 1, generator=draw, dtype=torch.float64)
        found = drawn.to(coded.vectors).expand(len(coded.vectors), *drawn.shape)
        on = (coded.codes != 0).any(1)
        return Shares(found[:, :, :-1] * on[:, None], found[:, :, -1] * float(ends.residual))


@dataclass(frozen=True, kw_only=True)
class Activation(Operator):
    """sum_p |u_pq|: how much of a concept there is, whatever becomes of it. The residual by its norms."""

    source: ClassVar[str] = "a control"

    def shares(self, segment: Segment, coded: Coded, ends: Ends, scores: Scores, passes: Passes) -> Shares:
        found = coded.codes.abs().sum(1)[:, None].expand(-1, len(scores), -1)
        rest = coded.residual.norm(dim=2).sum(1)[:, None].expand(-1, len(scores)) * float(ends.residual)
        return Shares(found, rest)


@dataclass(frozen=True, kw_only=True)
class Ablation(Operator):
    """S less S without the concept, at all positions at once: what is measured, one concept at a time.

    One forward pass for every concept that is on in the image.
    """

    source: ClassVar[str] = "Zeiler and Fergus 2014, of a concept"

    def shares(self, segment: Segment, coded: Coded, ends: Ends, scores: Scores, passes: Passes) -> Shares:
        n = len(ends.end)
        values = ends.end.new_zeros(n, len(scores), len(coded.atoms))
        rest = ends.end.new_zeros(n, len(scores))
        for row in range(n):
            own = coded.image(row)
            on = active(own)
            values[row][:, on] = drops(segment, own, ends.end[row], scores, row, on, passes, self.batch_size).T
            if ends.residual:
                rest[row] = _score(segment, coded, torch.stack([ends.end[row], ends.end[row] - own.residual[0]]),
                                   scores, row, passes).diff(dim=0)[0].neg()  # fmt: skip
        return Shares(values, rest)


def drops(
    segment: Segment,
    own: Coded,
    vectors: Float[Tensor, "P C"],
    scores: Scores,
    row: int,
    concepts: Int[Tensor, "Q"],
    passes: Passes,
    batch_size: int,
) -> Float[Tensor, "Q T"]:
    """S(x) - S(x - u_q v_q), the concept taken away at all positions of image `row`, for each of the concepts."""
    whole = _score(segment, own, vectors[None], scores, row, passes)
    found = []
    for chunk in concepts.split(batch_size):
        taken = torch.einsum("pq,qc->qpc", own.codes[0][:, chunk], own.atoms[chunk])
        found.append(whole - _score(segment, own, vectors - taken, scores, row, passes))
    return torch.cat(found) if found else whole.new_zeros(0, len(scores))


def _score(
    segment: Segment, coded: Coded, vectors: Float[Tensor, "B P C"], scores: Scores, row: int, passes: Passes
) -> Float[Tensor, "B T"]:
    rows = torch.full((len(vectors),), row)
    passes.forwards += len(rows)
    with torch.no_grad():
        return scores.all(segment(value_at(coded, vectors), rows), rows)
