"""DeepLIFT's rescale rule by the engine: any activation, in any spelling, used as often as a network likes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from backlight.engine.adjoint import replace_adjoint, true_gradients
from backlight.engine.rules import Call, Rule, RuleSet, needs_gradient
from backlight.engine.segment import Segment
from backlight.errors import ModelError, UncoveredOperationError
from backlight.graph.coded import Coded, vectors_of
from backlight.graph.operators_base import Ends, Operator, Passes, value_at
from backlight.graph.scores import Scores
from backlight.rules.affine_layers import bound
from backlight.rules.gates import gate_rules, read_activation

# numbers are selected, which the engine counts as structural
SELECTIONS = frozenset(
    "max_pool adaptive_max_pool fractional_max_pool maximum minimum fmax fmin max min max amax amin aminmax topk sort "
    "kthvalue median abs".split()
)


@dataclass(frozen=True, kw_only=True)
class Rescale(Operator):
    """Differences to what is there without concepts, carried back through activations by a(z) - a(z') over z - z'.

    DeepLIFT's rescale rule, as `DeepLIFT` has it from Captum, for every activation that the engine knows: ReLU6, SiLU
    and GELU too, functional, in place, or used several times. The cosine of the score is taken apart exactly (see
    `Alignment.between`), so that shares sum to S(end) - S(base). Two forward passes, as many backward a score.

    Raises:
        UncoveredOperationError: max-pooling, a product of two signals, a layer norm, a softmax: there is no rule.
    """

    source: ClassVar[str] = "Shrikumar, Greenside, Kundaje 2017, the rescale rule"
    complete: ClassVar[bool] = True

    def rules(self) -> RuleSet:
        return rescale()

    def multipliers(self, segment: Segment, coded: Coded, ends: Ends, scores: Scores, passes: Passes) -> Tensor:
        found = ends.end.new_zeros(len(scores), *ends.end.shape)
        for rows in torch.arange(len(ends.end)).split(max(1, self.batch_size // 2)):
            own, twice, count = rows.to(ends.end.device), rows.repeat(2), len(rows)
            points = value_at(coded, torch.cat([ends.end[own], ends.base[own]])).detach().requires_grad_()
            later = segment(points, twice)
            passes.forwards += len(twice)
            end, start = later.detach().split(count)
            for target in range(len(scores)):
                seed = scores.between(start, end, target, rows)
                more = target + 1 < len(scores)
                (gradient,) = torch.autograd.grad(later, points, torch.cat([seed, seed]), retain_graph=more)
                passes.backwards += len(twice)
                found[target, own] = vectors_of(gradient[:count], coded.layout)
        return found


def rescale() -> RuleSet:
    """The rules of a batch whose second half are the references of the first."""
    refused: dict[str, Rule] = dict.fromkeys(SELECTIONS, _refused)
    return RuleSet("rescale", {**refused, **gate_rules(_rescaled), "batch_norm": batch_norm})


def _rescaled(call: Call) -> Any:
    if read_activation(call) is None or (call.operation in SELECTIONS and not needs_gradient(call.input)):
        return _refused(call) if call.operation in SELECTIONS else NotImplemented
    if not needs_gradient(call.input):
        return NotImplemented
    function = bound(call)

    def vjp(z: Tensor, y: Tensor, cotangent: Tensor) -> Tensor:
        (x, reference), (after, before) = z.chunk(2), y.chunk(2)
        change = x - reference
        close = change.abs() <= _tolerance(z) * torch.maximum(x.abs(), reference.abs())
        slope = (after - before) / torch.where(close, 1, change)
        if bool(close.any()):  # the limit
            slope = torch.where(close, _slope(function, (x + reference) / 2), slope)
        return cotangent * torch.cat([slope, slope])

    return replace_adjoint(call.input, function, vjp, "zy", call.run.phase)


def _tolerance(z: Tensor) -> float:
    return 8 * torch.finfo(z.dtype).eps


def _slope(function: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    slope: Tensor = true_gradients(function, (z,), torch.ones_like(z))[0]
    return slope


def _refused(call: Call) -> Any:
    if not any(needs_gradient(value) for value in call.args):
        return NotImplemented
    raise UncoveredOperationError(
        f"the rescale rule has no answer for {call.operation!r} in layer {call.layer or '(root)'!r}: "
        "IntegratedGradients follows any network"
    )


def batch_norm(call: Call) -> Any:
    """An affine layer, unless it computes with the batch's own statistics."""
    if call.kwargs.get("training") or (len(call.args) > 5 and call.args[5] is True):
        raise ModelError(f"the BatchNorm {call.layer!r} computes with the batch's statistics: call model.eval()")
    return call.original()
