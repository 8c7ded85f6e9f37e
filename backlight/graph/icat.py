"""ICAT, interlayer concept attribution: how much each concept of one layer does for a concept or class of a later one.

S_t(x) = sum_i u^b_it cos(M_ab(x)_i, v_t); ICAT(q -> t) = sum_p AT(u_pq, S_t) (iERF paper, section VI-B). With a path
attribution AT(u_pq) = u_pq <v_q, A_p>, A_p the mean of dS_t / dx_p on the path: one run in activation space gives the
edges of all parents at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from backlight.engine.segment import OUTPUT, Segment
from backlight.errors import InputError
from backlight.graph.coded import Coded
from backlight.graph.operators import operator
from backlight.graph.operators_base import Ends, Operator, Passes, value_at
from backlight.graph.scores import Alignment, Classes, Scores
from backlight.shapes import Float


@dataclass(frozen=True, eq=False)
class Edges:
    """What K parents do for T children, in N images.

    Attributes:
        values: `[N, T, K]`, ICAT of every concept of the earlier layer.
        residual: `[N, T]`, what the part that no concept tells does; 0 where it was left out.
        reached: `[N, T]`, S with everything that is attributed; base: without any of it.
        passes: through the segment, in samples.
        multipliers: `[T, N, P, C]`, kept where asked for; `places` needs them.
    """

    values: Float[Tensor, "N T K"]
    residual: Float[Tensor, "N T"]
    reached: Float[Tensor, "N T"]
    base: Float[Tensor, "N T"]
    passes: Passes = field(default_factory=Passes)
    multipliers: Float[Tensor, "T N P C"] | None = None

    @property
    def completeness_gap(self) -> Float[Tensor, "N T"]:
        """Sum of the shares - (S - S(base)): 0 for complete operators, up to the quadrature."""
        return self.values.sum(2) + self.residual - (self.reached - self.base)

    def places(self, coded: Coded, concept: int) -> Float[Tensor, "N T P"]:
        """Where a parent does it: u_pq <v_q, A_p> at every position.

        Raises:
            InputError: multipliers were not kept, or the operator has none.
        """
        if self.multipliers is None:
            raise InputError(
                "positions of an edge need its multipliers: compute edges with positions=True, and with an operator "
                "that attributes to positions"
            )
        return torch.einsum("np,tnpc,c->ntp", coded.codes[:, :, concept], self.multipliers, coded.atoms[concept])


def edges(
    model: nn.Module,
    inputs: Float[Tensor, "N ..."],
    parents: Coded,
    children: Coded | None,
    targets: Sequence[int] | Tensor,
    *,
    attribution: str | Operator = "IntegratedGradients",
    residual: bool = True,
    positions: bool = False,
    segment: Segment | None = None,
) -> Edges:
    """The edges from all concepts of a layer to some concepts of a later one, or to classes.

    Args:
        parents: the earlier layer, coded at these inputs.
        children: the later one; None: the classes, at the model's output.
        targets: concepts of `children`, or classes.
        residual: what no concept tells is there on the path too, and is a parent of its own, so that the later layer
            is the model's own at its end. False: left out, as in the paper.
        positions: keep what `Edges.places` needs, T times the size of the activation.
        segment: of the model, from the one site to the other, if it is there already.

    Cost: with Integrated Gradients, `n_steps` forward passes of the layers in between, and as many backward a target.

    Raises:
        UnknownNameError: the operator; SiteError: a later layer that comes first; InputError: no such targets.
    """
    chosen = operator(attribution)
    scores = score_of(children, targets)
    stop = OUTPUT if children is None else children.site
    segment = (segment or Segment(model, inputs, parents.site, stop)).under(chosen.rules())
    ends, passes = Ends.of(parents, residual), Passes()
    found = chosen.shares(segment, parents, ends, scores, passes)
    return Edges(
        found.values,
        found.residual,
        reached(segment, parents, ends.end, scores),
        reached(segment, parents, ends.base, scores),
        passes,
        found.multipliers if positions else None,
    )


def score_of(children: Coded | None, targets: Sequence[int] | Tensor) -> Scores:
    """The scores of the targets. Raises `InputError` where there are none."""
    numbers = [int(one) for one in torch.as_tensor(targets).reshape(-1)]
    if not numbers:
        raise InputError("edges need at least one target")
    return Classes(tuple(numbers)) if children is None else Alignment.of_concepts(children, numbers)


def reached(segment: Segment, coded: Coded, vectors: Float[Tensor, "N P C"], scores: Scores) -> Float[Tensor, "N T"]:
    """The scores when the earlier layer has these PFVs."""
    rows = torch.arange(len(vectors))
    with torch.no_grad():
        return scores.all(segment(value_at(coded, vectors), rows), rows)
