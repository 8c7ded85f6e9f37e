"""What an attribution operator is: from a score behind a segment to the shares of what lies before it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from backlight.engine.rules import GRADIENT, RuleSet
from backlight.engine.segment import Segment
from backlight.graph.coded import Coded, value_of
from backlight.graph.scores import Scores
from backlight.shapes import Float

DENSE = 0.1  # the share of codes that are on from which a product of matrices is cheaper
ENTRIES = 4_000_000  # of the largest array of atoms where they are on


@dataclass
class Passes:
    """Passes through the segment, counted in samples."""

    forwards: int = 0
    backwards: int = 0


@dataclass(frozen=True)
class Ends:
    """The points between which concepts are attributed: what is there without them, and with them, `[N, P, C]`.

    `residual`: whether what no concept tells is among what is attributed: `end` is then what the model has there.
    """

    base: Float[Tensor, "N P C"]
    end: Float[Tensor, "N P C"]
    residual: bool

    @classmethod
    def of(cls, parents: Coded, residual: bool = True) -> Ends:
        """From the dictionary's offset alone to the PFVs, or to their reconstruction."""
        end = parents.vectors if residual else parents.reconstruction
        return cls(parents.base.expand_as(parents.vectors), end, residual)


@dataclass(frozen=True, eq=False)
class Shares:
    """What an operator says of K concepts, and of the residual (0 where it was left out), for T scores.

    `multipliers` `[T, N, P, C]`: A, of operators that have one; the share of anything z is then <z, A>.
    """

    values: Float[Tensor, "N T K"]
    residual: Float[Tensor, "N T"]
    multipliers: Float[Tensor, "T N P C"] | None = None


@dataclass(frozen=True, kw_only=True)
class Operator:
    """One way to attribute a score to what lies before it.

    Most give multipliers A `[T, N, P, C]` at the earlier site, so that the share of anything z that is part of what the
    site holds is <z, A>: of a concept, u_pq <v_q, A_p>, by the chain rule, as if each coefficient had been attributed
    on its own. `complete`: the shares sum to S(end) - S(base). `batch_size`: the most samples in one pass.
    """

    source: ClassVar[str] = ""
    complete: ClassVar[bool] = False

    batch_size: int = 32

    def rules(self) -> RuleSet:
        """How cotangents travel through the segment."""
        return GRADIENT

    def multipliers(
        self, segment: Segment, coded: Coded, ends: Ends, scores: Scores, passes: Passes
    ) -> Float[Tensor, "T N P C"]:
        """A, for every score and image."""
        raise NotImplementedError

    def shares(self, segment: Segment, coded: Coded, ends: Ends, scores: Scores, passes: Passes) -> Shares:
        """The shares of all concepts and of the residual."""
        multipliers = self.multipliers(segment, coded, ends, scores, passes)
        values = concept_shares(coded, multipliers)
        rest = values.new_zeros(values.shape[:2])
        if ends.residual:
            rest = torch.einsum("npc,tnpc->nt", coded.residual, multipliers)
        return Shares(values, rest, multipliers)


def concept_shares(coded: Coded, multipliers: Float[Tensor, "T N P C"]) -> Float[Tensor, "N T K"]:
    """sum_p u_pq <v_q, A_p>; of sparse codes only where they are on."""
    there = coded.codes != 0
    found = multipliers.new_zeros(multipliers.shape[1], len(multipliers), len(coded.atoms))
    if float(there.double().mean()) > DENSE:
        for target, multiplier in enumerate(multipliers):
            found[:, target] = (coded.codes * (multiplier @ coded.atoms.T)).sum(1)
        return found
    places = there.nonzero()
    for chunk in places.split(max(1, ENTRIES // coded.atoms.shape[1])):
        images, positions, concepts = chunk.unbind(1)
        told = coded.codes[images, positions, concepts][:, None] * coded.atoms[concepts]
        for target, multiplier in enumerate(multipliers):
            shares = (told * multiplier[images, positions]).sum(1)
            found[:, target].index_put_((images, concepts), shares, accumulate=True)
    return found


def active(coded: Coded) -> Tensor:
    """The numbers of the concepts that are on somewhere in some image."""
    return (coded.codes != 0).flatten(0, 1).any(0).nonzero().flatten()


def value_at(coded: Coded, vectors: Float[Tensor, "B P C"]) -> Tensor:
    """The site's tensor that has these PFVs."""
    return value_of(vectors, coded.layout, coded.shape)
