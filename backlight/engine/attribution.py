"""attribute(): target, rules, path, site and readout, composed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from backlight.displayed import Displayed
from backlight.engine.coverage import Coverage
from backlight.engine.evaluation import Cost, Evaluator, halved_on_lack_of_memory, input_sites, resolve_sites
from backlight.engine.paths import Ascent, Inputs, Line, Noise, Parameters, Point, Step, WeightNoise
from backlight.engine.readouts import Readout, as_readout
from backlight.engine.rules import GRADIENT, RuleSet
from backlight.engine.sites import INPUT
from backlight.engine.targets import as_target
from backlight.errors import InputError, NonFiniteError, SiteError
from backlight.shapes import Float

Path = Point | Line | Noise | WeightNoise | Ascent


@dataclass(repr=False)
class Attribution(Displayed):
    """What `attribute` returns.

    `values`: `{site: Tensor}`, of the site's shape unless the readout reduces it. `scores`: `[N]`, the target at the
    input (None where the path does not visit it). `bias`: `[N]`, the share of the biases, where asked for. `residual`:
    `[N]`, the score (minus the baseline's, on a line) less what attribution and bias sum to; None where they are not
    meant to sum to it (whether they do is a method's claim, `Method.completeness`). `points`: the inputs that an ascent
    visited, start and end included.
    """

    values: dict[str, Tensor]
    coverage: Coverage
    cost: Cost
    scores: Float[Tensor, "N"] | None = None
    bias: Float[Tensor, "N"] | None = None
    residual: Float[Tensor, "N"] | None = None
    points: list[Inputs] = field(default_factory=list)

    @property
    def value(self) -> Tensor:
        """The attribution at the only site.

        Raises:
            SiteError: there are several.
        """
        if len(self.values) != 1:
            raise SiteError(f"several sites: choose values[...] of {', '.join(self.values)}")
        return next(iter(self.values.values()))


def attribute(
    model: nn.Module,
    inputs: Tensor | Inputs,
    target: Any = None,
    *,
    rules: RuleSet = GRADIENT,
    path: Path | None = None,
    sites: str | tuple[str, ...] | list[str] = INPUT,
    readout: str | Readout = "cotangent",
    bias: bool = False,
    strict: bool = True,
    create_graph: bool = False,
    internal_batch_size: int | None = None,
    additional_forward_args: Any = (),
) -> Attribution:
    """Explain a model's score: which target, under which rules, along which path, read where and how.

    Args:
        inputs: a tensor `[N, ...]`, or a tuple of them.
        target: an index, a list or tensor of `[N]` indices, a tuple (outputs of higher rank), a `Target`, a callable
            `outputs -> [N]`, or None: the largest logit at the input.
        path: `Point()` by default.
        sites: `input`, or names of modules (see `backlight.engine.sites`).
        readout: a name of `READOUTS`, or a function.
        bias: count the share of the biases (Semantic Pullbacks, appendix D); costs single-sample batches.
        strict: raise where no rule answers for an operation; otherwise let the gradient through and list it.
        create_graph: keep the graph, so that the attribution can be differentiated in `inputs`.
        internal_batch_size: the most samples in one pass (default: N). Halved where memory does not suffice.

    Raises:
        BacklightError: inputs, targets, sites or operations that do not fit; the message says which.
    """
    inputs = checked_inputs(inputs)
    path = path or Point()
    count = len(inputs[0])
    names = resolve_sites(sites, inputs)
    arguments = additional_forward_args if isinstance(additional_forward_args, tuple) else (additional_forward_args,)
    evaluator = Evaluator(
        model, as_target(target), rules, names, count, strict, create_graph, () if arguments == (None,) else arguments
    )
    evaluator.target.check(count)
    _check_differences(path, names, inputs, as_readout(readout))
    walk = _Walk(evaluator, inputs, 1 if bias else pass_limit(internal_batch_size, count), as_readout(readout), bias)
    if evaluator.target.chooses and not isinstance(path, Point):
        walk.fix_target()
    result = walk.ascend(path) if isinstance(path, Ascent) else walk.average(path)
    if not create_graph:
        result.values = {site: value.detach() for site, value in result.values.items()}
    for site, value in result.values.items():
        if not torch.isfinite(value).all():
            raise NonFiniteError(f"the attribution at {site!r} is not finite ({value.dtype}); try bfloat16 or float32")
    return result


def _check_differences(path: Path, sites: tuple[str, ...], inputs: Inputs, readout: Readout) -> None:
    """On a line in the input, hidden units do not move on a line: their differences change from point to point."""
    hidden = [site for site in sites if site not in input_sites(inputs)]
    if isinstance(path, Line) and readout is as_readout("difference") and hidden:
        raise SiteError(
            f"the readout 'difference' along a line is of the input, not of {', '.join(hidden)}: "
            "backlight.contribute(model, inputs, sites, ...) integrates hidden units along the path they take"
        )


def checked_inputs(inputs: Tensor | Inputs) -> Inputs:
    """The inputs as a tuple of tensors `[N, ...]` of one N >= 1; InputError where they are none."""
    inputs = (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)
    for x in inputs:
        if not isinstance(x, Tensor) or x.ndim == 0 or len(x) == 0 or len(x) != len(inputs[0]):
            given = list(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise InputError(f"inputs are tensors [N, ...] of the same N >= 1, got {given}")
    if not inputs:
        raise InputError("no inputs")
    return inputs


def pass_limit(internal_batch_size: int | None, count: int) -> int:
    """The most samples in one pass; InputError where it is none."""
    if internal_batch_size is not None and internal_batch_size < 1:
        raise InputError(f"internal_batch_size must be at least 1, got {internal_batch_size}")
    return internal_batch_size or count


@dataclass
class _Walk:
    """An evaluator on its way along a path."""

    evaluator: Evaluator
    inputs: Inputs
    limit: int
    readout: Readout
    bias: bool

    @property
    def count(self) -> int:
        return len(self.inputs[0])

    @property
    def dtype(self) -> torch.dtype:
        """Of the inputs; where they are integers, of the parameters."""
        candidates = (*self.inputs, *self.evaluator.model.parameters())
        return next((x.dtype for x in candidates if x.is_floating_point()), torch.get_default_dtype())

    def pieces(self, n: int, evaluate: Any) -> None:
        for start in range(0, n, self.limit):
            halved_on_lack_of_memory(evaluate, slice(start, min(n, start + self.limit)))

    def fix_target(self) -> None:
        """Decide at the input what the target chooses there (its top classes)."""
        outputs: list[Tensor] = []
        rows = torch.arange(self.count)
        self.pieces(
            self.count,
            lambda piece: outputs.append(self.evaluator.outputs(tuple(x[piece] for x in self.inputs), rows[piece])),
        )
        self.evaluator.target = self.evaluator.target.fixed(torch.cat(outputs))

    def scores_at(self, inputs: Inputs) -> Tensor:
        scores: list[Tensor] = []
        rows = torch.arange(self.count)
        self.pieces(
            self.count, lambda piece: scores.append(self.evaluator.scores(tuple(x[piece] for x in inputs), rows[piece]))
        )
        return torch.cat(scores)

    def average(self, path: Point | Line | Noise | WeightNoise) -> Attribution:
        """The weighted sum of the readout over the path's points."""
        starts = path.baselines(self.inputs) if isinstance(path, Line) else tuple(map(torch.zeros_like, self.inputs))
        differences = dict(
            zip(input_sites(self.inputs), (x - s for x, s in zip(self.inputs, starts, strict=True)), strict=True)
        )
        totals: dict[str, list[Tensor | None]] = {site: [None] * self.count for site in self.evaluator.sites}
        scores: list[Tensor | None] = [None] * self.count
        shares: list[Tensor | None] = [None] * self.count
        for inputs, rows, weights, parameters in _merged(path.steps(self.inputs, self.evaluator.model), self):

            def evaluate(piece: slice, batch: Any = (inputs, rows, weights, parameters)) -> None:
                inputs, rows, weights, parameters = batch
                one = (
                    torch.ones((), dtype=self.dtype, device=inputs[0].device, requires_grad=True) if self.bias else None
                )
                found = self.evaluator.evaluate(tuple(x[piece] for x in inputs), rows[piece], parameters, one)
                for site in self.evaluator.sites:
                    difference = differences[site][rows[piece]] if site in differences else found.values[site]
                    read = self.readout(found.values[site], found.cotangents[site], difference)
                    _add(totals[site], rows[piece], read, weights[piece])
                _add(scores, rows[piece], found.scores, weights[piece])
                if found.one is not None:
                    _add(shares, rows[piece], found.one.reshape(1), weights[piece])

            self.pieces(len(rows), evaluate)
        values = {site: _stacked(parts).to(self.dtype) for site, parts in totals.items()}
        result = Attribution(values, self.evaluator.coverage, self.evaluator.cost)
        if self.bias:
            result.bias = _stacked(shares).detach()
        if isinstance(path, Point):
            result.scores = _stacked(scores).detach()
        self._residual(result, path, starts)
        return result

    def _residual(self, result: Attribution, path: Path, starts: Inputs) -> None:
        """Completeness: on a line, the difference to the baseline; with biases, the whole score."""
        names = input_sites(self.inputs)
        if set(result.values) != set(names):
            return
        if isinstance(path, Line):
            result.scores = self.scores_at(self.inputs)
            total = sum(value.flatten(1).sum(1) for value in result.values.values())
            if self.readout is as_readout("difference"):
                result.residual = (result.scores - self.scores_at(starts) - total).detach()
        elif isinstance(path, Point) and result.bias is not None and result.scores is not None:
            share = sum(
                (value if self.readout is as_readout("value") else value * x).flatten(1).sum(1)
                for value, x in zip(result.values.values(), self.inputs, strict=True)
            )
            if self.readout in (as_readout("value"), as_readout("cotangent")):
                result.residual = (result.scores - share - result.bias).detach()

    def ascend(self, path: Ascent) -> Attribution:
        """The displacement of the input after following the explanation."""
        names = input_sites(self.inputs)
        if set(self.evaluator.sites) != set(names):
            raise SiteError("an ascent moves the input: its only site is 'input'")
        rows = torch.arange(self.count)
        first: list[Tensor] = []

        def direction(at: Inputs) -> Inputs:
            found: list[tuple[Tensor, ...]] = []

            def evaluate(piece: slice) -> None:
                here = self.evaluator.evaluate(tuple(x[piece] for x in at), rows[piece])
                found.append(tuple(here.cotangents[name] for name in names))
                if len(points) == 1:
                    first.append(here.scores.detach())

            self.pieces(self.count, evaluate)
            return tuple(torch.cat(parts) for parts in zip(*found, strict=True))

        points = [self.inputs]
        for point in path.climb(self.inputs, direction):
            points.append(point)
        displacement = {name: end - x for name, end, x in zip(names, points[-1], self.inputs, strict=True)}
        return Attribution(
            displacement, self.evaluator.coverage, self.evaluator.cost, scores=torch.cat(first), points=points
        )


def _add(totals: list[Tensor | None], rows: Tensor, values: Tensor, weights: Tensor) -> None:
    """Add weighted values to their samples' totals, sample by sample, so that the order never depends on batches."""
    for row, value, weight in zip(rows.tolist(), values, weights.tolist(), strict=True):
        term = value.to(torch.promote_types(value.dtype, torch.float32))
        term = term if weight == 1 else term * weight
        present = totals[row]
        totals[row] = term if present is None else present + term


def _stacked(parts: list[Tensor | None]) -> Tensor:
    return torch.stack([part for part in parts if part is not None])


def _merged(steps: Iterator[Step], walk: _Walk) -> Iterator[tuple[Inputs, Tensor, Tensor, Parameters | None]]:
    """(inputs, rows, weights, parameters) of as many whole points as the batch limit allows, with equal parameters."""
    group: list[Step] = []

    def merged() -> tuple[Inputs, Tensor, Tensor, Parameters | None]:
        rows = torch.arange(walk.count).repeat(len(group))
        weights = torch.tensor([step.weight for step in group], dtype=torch.float64).repeat_interleave(walk.count)
        inputs = (
            group[0].inputs
            if len(group) == 1
            else tuple(torch.cat(parts) for parts in zip(*(step.inputs for step in group), strict=True))
        )
        return inputs, rows, weights, group[0].parameters

    for step in steps:
        full = (len(group) + 1) * walk.count > walk.limit
        if group and (full or step.parameters is not group[0].parameters):
            yield merged()
            group = []
        group.append(step)
    if group:
        yield merged()
