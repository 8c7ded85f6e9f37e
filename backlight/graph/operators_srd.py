"""SRD between two layers: the relevance of positions, then of the concepts at each of them."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from backlight.engine.segment import OUTPUT, Segment
from backlight.errors import SiteError, UncoveredOperationError
from backlight.graph.coded import Coded, vectors_of
from backlight.graph.operators_base import Ends, Operator, Passes, value_at
from backlight.graph.scores import Scores
from backlight.rules.affine import inner
from backlight.rules.pfv import Sharing
from backlight.rules.relevance_flow import Flow, class_activation
from backlight.rules.windows import safe_ratio


@dataclass(frozen=True, kw_only=True)
class SRD(Operator):
    """Sharing ratios from the later layer's positions to the earlier one's, then to the concepts at each of them.

    The relevance of position i of the later layer is what it adds to the score, R_i = u_it cos(x_i, v_t); of a class,
    Grad-CAM's at the last feature map. It goes back by R_p = sum_i mu_pi R_i. The PFV x_p = sum_q u_pq v_q + offset +
    residual is itself a sum, so that the same ratio shares R_p out among its parts: <u_pq v_q, x_p> / <x_p, x_p> R_p,
    that is A_p = x_p R_p / <x_p, x_p>.

    With `bias="norm"` the shares of concepts, offset and residual sum to S, but for what falls to PFVs of zero.

    Raises:
        SiteError: a site that is no map `[N, C, *space]`.
        UncoveredOperationError: a layer in between leaves the theory.
    """

    source: ClassVar[str] = "Kim, Han, Kwak 2026 (iERF), section 3, equations 17 to 20"

    bias: str = "norm"

    def multipliers(self, segment: Segment, coded: Coded, ends: Ends, scores: Scores, passes: Passes) -> Tensor:
        if coded.layout.kind != "maps" or len(coded.shape) < 2:
            raise SiteError(f"sharing ratios are of maps [N, C, *space]; {coded.site!r} gives {coded.layout}")
        found = ends.end.new_zeros(len(scores), *ends.end.shape)
        for rows in torch.arange(len(ends.end)).split(self.batch_size):
            own = rows.to(ends.end.device)
            value = value_at(coded, ends.end[own]).detach().requires_grad_()
            for target, relevance in enumerate(self._relevances(segment, value, scores, rows, passes)):
                shared = value.detach() * safe_ratio(relevance, inner(value.detach(), value.detach())).to(value.dtype)
                found[target, own] = vectors_of(shared, coded.layout)
        return found

    def _relevances(
        self, segment: Segment, value: Tensor, scores: Scores, rows: Tensor, passes: Passes
    ) -> list[Tensor]:
        """`[B, 1, *space]` of the earlier layer, a score each."""
        sharing = Sharing(Flow(class_activation(False), self.bias))
        sharing.begin(value)
        later = segment.under(sharing.rules())(value, rows)
        passes.forwards += len(rows)
        if segment.stop == OUTPUT:
            sharing.check_head(later)
            seeds = list(scores.cotangents(later.detach(), rows))
        else:
            left = sharing.origin(later).left
            if left is not None:
                raise UncoveredOperationError(
                    "sharing ratios are defined between activations, with affine layers over positions in between: "
                    f"{left}, before {segment.stop!r}, leaves that theory; AttnLRP follows such networks"
                )
            sharing.flow.last = sys.maxsize  # there is no head: the relevance of the later layer's positions is given
            seeds = [_carried(later.detach(), scores, target, rows) for target in range(len(scores))]
        found = []
        for target, seed in enumerate(seeds):
            more = target + 1 < len(seeds)
            (cotangent,) = torch.autograd.grad(later, value, seed, retain_graph=more, allow_unused=True)
            passes.backwards += len(rows)
            if segment.stop == OUTPUT and sharing.flow.last == 0:  # the layer is the last feature map itself
                cotangent = cotangent.mean(tuple(range(2, cotangent.ndim)), keepdim=True)
            found.append(inner(value.detach(), torch.zeros_like(value) if cotangent is None else cotangent))
        return found


def _carried(later: Tensor, scores: Scores, target: int, rows: Tensor) -> Tensor:
    """g_z = z R / <z, z>: the relevance of the later layer's positions, carried by its PFVs."""
    vectors, relevance = scores.places(later, target, rows)
    carried = vectors * safe_ratio(relevance[:, :, None], vectors.square().sum(2, keepdim=True)).to(vectors.dtype)
    return carried.transpose(1, 2).reshape(later.shape)
