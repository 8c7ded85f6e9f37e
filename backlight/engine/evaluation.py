"""Scores and cotangents of one model, in batches that fit into memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from backlight.engine.adjoint import alias
from backlight.engine.coverage import Coverage
from backlight.engine.paths import Inputs, Parameters
from backlight.engine.rules import Mark, RuleSet
from backlight.engine.run import running
from backlight.engine.sites import FEATURES, INPUT, captured
from backlight.engine.targets import Target, output_tensor
from backlight.errors import InputError, ModelError, SiteError
from backlight.shapes import Float

_NOT_OURS = {
    "torch.utils.checkpoint": "the model checkpoints activations, which are computed again without rules: switch that "
    "off, for example by set_grad_checkpointing(False); backlight.engine.checkpointed(model, layers) keeps them",
    "modified by an inplace operation": "the model writes, through another view of the same memory, to what an "
    "explanation needs: make that write out of place",
}
_NO_MEMORY = ("out of memory", "not enough memory", "can't allocate memory")


@dataclass
class Cost:
    """Forward and backward passes, counted in samples."""

    forwards: int = 0
    backwards: int = 0


@dataclass
class Evaluation:
    """Scores `[n]`, values and cotangents by site, and the cotangent of the augmented coordinate (appendix D).

    `outputs`: what the model gave, whatever that is.
    """

    scores: Float[Tensor, "n"]
    values: dict[str, Tensor]
    cotangents: dict[str, Tensor]
    one: Tensor | None = None
    outputs: Any = None


@dataclass
class Evaluator:
    """One model, target and rule set. `arguments`: further arguments of the model, after the inputs."""

    model: nn.Module
    target: Target
    rules: RuleSet
    sites: tuple[str, ...]
    samples: int
    strict: bool = True
    create_graph: bool = False
    arguments: tuple[Any, ...] = ()
    coverage: Coverage = field(default_factory=Coverage)
    cost: Cost = field(default_factory=Cost)

    def scores(self, inputs: Inputs, rows: Tensor) -> Float[Tensor, "n"]:
        """The target's scores, without gradients."""
        self.cost.forwards += len(rows)
        target = self.target.rows(rows)
        with torch.no_grad(), captured(self.model, target.sites) as hidden:
            outputs = self.model(*inputs, *self._arguments(rows))
            return target(outputs, hidden)

    def outputs(self, inputs: Inputs, rows: Tensor) -> Tensor:
        """The model's output tensor, without gradients."""
        self.cost.forwards += len(rows)
        with torch.no_grad():
            return output_tensor(self.model(*inputs, *self._arguments(rows)))

    def evaluate(
        self, inputs: Inputs, rows: Tensor, parameters: Parameters | None = None, one: Tensor | None = None
    ) -> Evaluation:
        """One forward and one backward pass. `rows`: of which explained sample each input is a version."""
        names = input_sites(inputs)
        hidden = [site for site in self.sites if site not in (*names, FEATURES)]
        target = self.target.rows(rows)
        leaves = dict(
            zip(names, (self._leaf(x, name, one) for x, name in zip(inputs, names, strict=True)), strict=True)
        )
        settings: dict[str, Any] = {"strict": self.strict, "parameters": parameters, "one": one, "samples": len(rows)}
        settings["observe"] = FEATURES in self.sites
        with torch.enable_grad():
            with running(self.model, self.rules, differentiable=self.create_graph, **settings) as run:
                for leaf in leaves.values():
                    run.keep(leaf)
                    run.marks[leaf] = Mark("input", leaf)
                with captured(self.model, dict.fromkeys((*hidden, *target.sites)), run.watch) as store:
                    outputs = self.model(*leaves.values(), *self._arguments(rows))
                if settings["observe"]:
                    store[FEATURES] = _features(run.features)
            run.check_recorded(target.sites, "the target reads")
            scores = target(outputs, store)
            values = {site: leaves[site] if site in leaves else store[site] for site in self.sites}
            cotangents = self._cotangents(scores, [*values.values(), *([] if one is None else [one])])
        run.phase.explaining = False
        self.coverage.merge(run.coverage)
        self.cost.forwards += len(rows)
        self.cost.backwards += len(rows)
        pairs = dict(zip(values, cotangents, strict=False))
        return Evaluation(scores, values, pairs, None if one is None else cotangents[-1], outputs)

    def part(self, rows: Tensor) -> Evaluator:
        """The same evaluator of these samples only; costs and coverage are counted together."""
        return replace(self, target=self.target.rows(rows), samples=len(rows), arguments=self._arguments(rows))

    def _leaf(self, x: Tensor, name: str, one: Tensor | None) -> Tensor:
        if not x.is_floating_point():
            return x
        if self.create_graph and x.requires_grad:
            return alias(x)
        return x.detach().requires_grad_(name in self.sites or FEATURES in self.sites or one is not None)

    def _cotangents(self, scores: Tensor, tensors: list[Tensor]) -> tuple[Tensor, ...]:
        if not scores.requires_grad:  # a score that does not depend on any site
            return tuple(torch.zeros_like(tensor) for tensor in tensors)
        try:
            return torch.autograd.grad(
                scores.sum(), tensors, create_graph=self.create_graph, allow_unused=True, materialize_grads=True
            )
        except RuntimeError as error:
            known = next((cause for words, cause in _NOT_OURS.items() if words in str(error)), None)
            if known is None:
                raise
            raise ModelError(known) from error

    def _arguments(self, rows: Tensor) -> tuple[Any, ...]:
        """Tensors with one entry a sample follow the samples."""

        def follow(value: Any) -> Any:
            per_sample = isinstance(value, Tensor) and value.ndim > 0 and len(value) == self.samples
            return value[rows.to(value.device)] if per_sample else value

        return tuple(follow(value) for value in self.arguments)


def _features(found: Tensor | None) -> Tensor:
    if found is None:
        raise SiteError("the model has no feature map [N, C, H, W, ...] with several positions: name a layer")
    return found


def input_sites(inputs: Inputs) -> tuple[str, ...]:
    """The addresses of a model's inputs: `input`, or `input#0`, `input#1`, ... where there are several."""
    return (INPUT,) if len(inputs) == 1 else tuple(f"{INPUT}#{position}" for position in range(len(inputs)))


def resolve_sites(sites: str | tuple[str, ...] | list[str], inputs: Inputs) -> tuple[str, ...]:
    """The addresses that are meant: `input` stands for every input.

    Raises:
        SiteError: no site; an input that is not there.
        InputError: an input of integers, which has no gradient.
    """
    names = input_sites(inputs)
    chosen: list[str] = []
    for site in (sites,) if isinstance(sites, str) else sites:
        if site == INPUT:
            chosen += names
        elif site.startswith(f"{INPUT}#") and site not in names:
            raise SiteError(f"there is no {site!r}: the inputs are {', '.join(names)}")
        else:
            chosen.append(site)
    if not chosen:
        raise SiteError("no site to read")
    for name, x in zip(names, inputs, strict=True):
        if name in chosen and not x.is_floating_point():
            raise InputError(f"{name} holds {x.dtype}: choose the embedding layer's output as the site")
    return tuple(dict.fromkeys(chosen))


def check_evaluation_mode(model: nn.Module) -> None:
    """Raise `ModelError` where a module in training mode would draw at random, or write statistics to the model."""
    for name, module in model.named_modules():
        writes = isinstance(module, nn.modules.batchnorm._NormBase) and module.track_running_stats
        draws = isinstance(module, (nn.modules.dropout._DropoutNd, nn.RReLU)) and getattr(module, "p", 1) > 0
        if module.training and (writes or draws):
            where = name or "the model"
            raise ModelError(f"{where} ({type(module).__name__}) is in training mode: call model.eval() first")


def halved_on_lack_of_memory(evaluate: Callable[[slice], None], piece: slice) -> None:
    """Call `evaluate` on a slice; where memory does not suffice, on its halves, down to single samples."""
    try:
        evaluate(piece)
        return
    except RuntimeError as error:  # torch.OutOfMemoryError is one
        size = piece.stop - piece.start
        if size <= 1 or not any(words in str(error).lower() for words in _NO_MEMORY):
            raise
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    middle = piece.start + size // 2
    halved_on_lack_of_memory(evaluate, slice(piece.start, middle))
    halved_on_lack_of_memory(evaluate, slice(middle, piece.stop))
