"""contribute(): what the units at hidden sites contribute to a target, at all sites in one pass a point."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from backlight.contributions.algorithms import Algorithm, as_algorithm
from backlight.contributions.occasion import Occasion, is_plain
from backlight.displayed import Displayed
from backlight.engine.attribution import checked_inputs, pass_limit
from backlight.engine.coverage import Coverage
from backlight.engine.evaluation import (
    Cost,
    Evaluator,
    check_evaluation_mode,
    halved_on_lack_of_memory,
    resolve_sites,
)
from backlight.engine.paths import Inputs, Line
from backlight.engine.rules import GRADIENT, RuleSet
from backlight.engine.targets import as_target
from backlight.errors import NonFiniteError
from backlight.shapes import Float


@dataclass(repr=False)
class Contributions(Displayed):
    """What `contribute` returns, nothing of it attached to a graph.

    `values`, `activations`, `gradients`: `{site: [N, *site shape]}`, the contributions and what was read at the input;
    contributions of a network in half precision are float32. `outputs`: `[N, K]`, the model's, None where a callable
    target reads something else. `scores`: `[N]`, the target at the input. `baseline_scores`: `[N]`, at the baseline;
    None where the algorithm does not visit it. `residual`: `{site: [N]}`, score less baseline score less the sum of
    the contributions; empty for algorithms and rules that are not complete.
    """

    values: dict[str, Tensor]
    activations: dict[str, Tensor]
    gradients: dict[str, Tensor]
    outputs: Tensor | None
    scores: Float[Tensor, "N"]
    baseline_scores: Float[Tensor, "N"] | None
    residual: dict[str, Float[Tensor, "N"]]
    coverage: Coverage
    cost: Cost


def contribute(
    model: nn.Module,
    inputs: Tensor | Inputs,
    sites: str | Sequence[str],
    target: Any = None,
    *,
    algorithm: str | Algorithm = "HiddenIntegratedGradients",
    rules: RuleSet = GRADIENT,
    baseline: Any = None,
    internal_batch_size: int | None = None,
    additional_forward_args: Any = (),
    strict: bool = True,
) -> Contributions:
    """Contributions of hidden units to a target (CODEC, section 10.7).

    Args:
        inputs: a tensor `[N, ...]`, or a tuple of them.
        sites: names of modules (see `backlight.engine.sites`), one or several; all are read in the same passes.
        target: an index, `[N]` indices, a `Target`, a callable `outputs -> [N]`; None: the largest logit, whose class
            is decided at the input (`Logit(floating=True)`: anew at each point).
        algorithm: a name or an instance of `ALGORITHMS`.
        rules: how cotangents travel back; those of the plain gradient by default.
        baseline: see `backlight.engine.paths.baseline_like`; one for each input if a tuple. None: zero where the
            algorithm follows a path; none at all for ActGrad, ActNormGrad and InputGrad.
        internal_batch_size: the most samples in one pass (default: N). Halved where memory does not suffice.
        additional_forward_args: further arguments of the model; tensors with one entry a sample follow the samples.
        strict: raise where no rule answers for an operation; otherwise let the gradient through and list it.

    Raises:
        BacklightError: inputs, targets, sites or operations that do not fit; the message says which.
    """
    algorithm, inputs = as_algorithm(algorithm), checked_inputs(inputs)
    check_evaluation_mode(model)
    count = len(inputs[0])
    names = resolve_sites(sites if isinstance(sites, str) else tuple(sites), inputs)
    arguments = additional_forward_args if isinstance(additional_forward_args, tuple) else (additional_forward_args,)
    evaluator = Evaluator(
        model, as_target(target), rules, names, count, strict, arguments=() if arguments == (None,) else arguments
    )
    evaluator.target.check(count)
    inputs = tuple(x.detach() for x in inputs)
    starts = None if baseline is None else Line(baseline=baseline).baselines(inputs)
    parts: list[_Part] = []

    def run(piece: slice) -> None:
        rows = torch.arange(piece.start, piece.stop)
        from_here = None if starts is None else tuple(b[piece] for b in starts)
        occasion = Occasion.of(evaluator.part(rows), tuple(x[piece] for x in inputs), from_here)
        parts.append(_Part.of(algorithm, occasion))

    limit = pass_limit(internal_batch_size, count)
    for start in range(0, count, limit):
        halved_on_lack_of_memory(run, slice(start, min(count, start + limit)))
    result = _joined(parts, evaluator)
    for site, value in result.values.items():
        if not torch.isfinite(value).all():
            raise NonFiniteError(f"contributions at {site!r} are not finite ({value.dtype}); try bfloat16 or float32")
    return result


@dataclass
class _Part:
    """The contributions of some of the samples."""

    values: dict[str, Tensor]
    activations: dict[str, Tensor]
    gradients: dict[str, Tensor]
    scores: Tensor
    outputs: Tensor | None
    baseline_scores: Tensor | None
    residual: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, algorithm: Algorithm, occasion: Occasion) -> _Part:
        values, before = algorithm.contributions(occasion)
        here = occasion.here
        part = cls(values, here.activations, here.gradients, here.scores, here.outputs, before)
        if algorithm.complete and is_plain(occasion.evaluator) and before is not None:
            part.residual = {site: here.scores - before - _sums(value) for site, value in values.items()}
        return part


def _sums(values: Tensor) -> Tensor:
    """The sum of each sample, in double precision where the device has it."""
    flat = values.flatten(1)
    return flat.sum(1) if flat.device.type == "mps" else flat.sum(1, dtype=torch.float64)


def _joined(parts: list[_Part], evaluator: Evaluator) -> Contributions:
    def joined(name: str) -> Any:
        found = [getattr(part, name) for part in parts]
        if len(found) == 1 or found[0] is None:
            return found[0]
        if isinstance(found[0], dict):  # emptied on the way, so that no more than one site is there twice
            return {site: torch.cat([part.pop(site) for part in found]) for site in tuple(found[0])}
        return torch.cat(found)

    names = ("values", "activations", "gradients", "outputs", "scores", "baseline_scores", "residual")
    return Contributions(**{name: joined(name) for name in names}, coverage=evaluator.coverage, cost=evaluator.cost)
