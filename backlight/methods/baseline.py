"""What adapters of other libraries share: one sample after the other, a scored model, and nothing left behind."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from backlight.engine.attribution import Attribution
from backlight.engine.coverage import Coverage
from backlight.engine.evaluation import Cost
from backlight.engine.paths import Inputs
from backlight.engine.sites import INPUT, captured
from backlight.engine.targets import Target, as_target, output_tensor
from backlight.errors import InputError, NonFiniteError, SiteError
from backlight.methods.method import Method
from backlight.shapes import Float

PERTURBATIONS = 16  # in one forward pass, where the user does not say


class Scored(nn.Module):
    """The model as other libraries take it: from inputs to the target's scores `[m]`, which it counts.

    `row`: the explained sample, of which all inputs are versions. `limit`: the most inputs in one pass of the model;
    where they are differentiated, the pieces are computed again in the backward pass.
    """

    def __init__(self, model: nn.Module, target: Target, arguments: tuple[Any, ...], x: Tensor) -> None:
        super().__init__()
        self.training = model.training
        self.model = model
        self.target, self.arguments = target, arguments
        self.samples, self.dtype = len(x), x.dtype
        self.row: int | None = None
        self.limit: int | None = None
        self.cost = Cost()
        self.residuals: list[Tensor] = []  # of completeness, where a method has it

    def forward(self, x: Tensor) -> Float[Tensor, "m"]:
        rows = torch.arange(self.samples) if self.row is None else torch.full((len(x),), self.row)
        pieces = list(zip(x.split(self.limit or len(x)), rows.split(self.limit or len(x)), strict=True))
        if len(pieces) == 1 or not (torch.is_grad_enabled() and x.requires_grad):
            return torch.cat([self._scores(*piece) for piece in pieces])
        return torch.cat([checkpoint(self._scores, *piece, use_reentrant=False) for piece in pieces])

    def outputs(self, x: Tensor, rows: Tensor) -> Any:
        """The model's outputs."""
        self.cost.forwards += len(x)

        def follow(value: Any) -> Any:
            per_sample = isinstance(value, Tensor) and value.ndim > 0 and len(value) == self.samples
            return value[rows.to(value.device)] if per_sample else value

        return self.model(x.to(self.dtype), *map(follow, self.arguments))

    def _scores(self, x: Tensor, rows: Tensor) -> Tensor:
        target = self.target.rows(rows)
        with captured(self.model, target.sites) as hidden:
            outputs = self.outputs(x, rows)
            scores = target(outputs, hidden)
        if scores.requires_grad:
            scores.register_hook(lambda cotangent: self._count(len(cotangent)))
        return scores

    def _count(self, backwards: int) -> None:
        self.cost.backwards += backwards


@dataclass(kw_only=True)
class Baseline(Method):
    """An adapter of another library's method: its numbers, under the same `attribute` and `explain`.

    Samples are explained one by one, so that none depends on its batch mates; `internal_batch_size` bounds the number
    of perturbed versions in one pass (default: 16). `explain` gives scores and counted passes, and no coverage table.
    `strict`: refuse networks on which the library is known to be wrong.
    """

    reads_sites: ClassVar[bool] = False
    engine: ClassVar[bool] = False

    def attribute_one(self, scored: Scored, x: Float[Tensor, "1 *shape"], limit: int | None) -> Tensor:
        """The attribution of sample `scored.row`, by the library."""
        raise NotImplementedError

    def prepare(self, scored: Scored, x: Float[Tensor, "N *shape"]) -> None:
        """Check what the library would not, before any sample is explained."""

    def explain(
        self,
        inputs: Tensor | Inputs,
        target: Any = None,
        *,
        sites: str | tuple[str, ...] = INPUT,
        additional_forward_args: Any = (),
        internal_batch_size: int | None = None,
        create_graph: bool = False,
        bias: bool = False,
    ) -> Attribution:
        """The attribution with scores and cost.

        Raises:
            MissingExtraError: the library is not installed.
            InputError: several inputs, `create_graph` or `bias`, which the library does not have.
            ModelError: a network that the library is known to be wrong about.
        """
        x = self._checked(inputs, sites, create_graph or bias, internal_batch_size)
        arguments = (
            additional_forward_args if isinstance(additional_forward_args, tuple) else (additional_forward_args,)
        )
        scored = Scored(self.model, as_target(target), () if arguments == (None,) else arguments, x)
        scored.target.check(len(x))
        with unchanged(self.model):
            scored.limit = internal_batch_size
            scores = self._scores(scored, x)
            self.prepare(scored, x)
            values = []
            for row in range(len(x)):
                scored.row = row
                value = self.attribute_one(scored, x[row : row + 1].clone(), internal_batch_size)
                values.append(value.detach().to(x))
        found = torch.cat(values)
        if not torch.isfinite(found).all():
            raise NonFiniteError(f"{type(self).__name__} by its library is not finite: another target, layer or dtype")
        residual = torch.cat(scored.residuals) if scored.residuals else None
        return Attribution({INPUT: found}, Coverage(), scored.cost, scores=scores, residual=residual)

    def _checked(self, inputs: Any, sites: Any, wants_engine: bool, internal_batch_size: int | None) -> Tensor:
        name = type(self).__name__
        if isinstance(inputs, (tuple, list)) and len(inputs) == 1:
            inputs = inputs[0]
        if not isinstance(inputs, Tensor) or inputs.ndim < 2 or len(inputs) == 0 or not inputs.is_floating_point():
            raise InputError(f"{name} takes one input, a tensor [N, ...] of numbers; others: additional_forward_args")
        if sites not in (INPUT, (INPUT,)):
            raise SiteError(f"{name} explains the input; it cannot be read at {sites!r}")
        if wants_engine:
            raise InputError(f"{name} comes from another library: neither create_graph nor bias")
        if internal_batch_size is not None and internal_batch_size < 1:
            raise InputError(f"internal_batch_size must be at least 1, got {internal_batch_size}")
        return inputs.detach()

    def _scores(self, scored: Scored, x: Tensor) -> Tensor:
        """The scores at the inputs; what the target chooses there is chosen once."""
        with torch.no_grad():
            if scored.target.chooses:
                rows = torch.arange(len(x))
                parts = zip(x.split(scored.limit or len(x)), rows.split(scored.limit or len(x)), strict=True)
                outputs = torch.cat([output_tensor(scored.outputs(*part)) for part in parts])
                scored.target = scored.target.fixed(outputs)
            return scored(x).detach()


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Take back what a library does to a model and to random generators: hooks, training flags, replaced modules.

    Libraries clean up after themselves only where nothing is raised, and not always then.
    """
    kept = [(module, vars(module).copy(), _hooks(module), dict(module._modules)) for module in model.modules()]
    state = np.random.get_state()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        np.random.set_state(state)
        for module, attributes, hooks, modules in kept:
            module.training = attributes["training"]
            for key, names in hooks.items():
                table = vars(module)[key]
                for name in [name for name in table if name not in names]:
                    del table[name]
            if any(module._modules.get(name) is not child for name, child in modules.items()):
                module._modules.clear()
                module._modules.update(modules)
            for key in ("input", "output", "input_ref"):  # Captum's DeepLift
                if key not in attributes:
                    vars(module).pop(key, None)


def _hooks(module: nn.Module) -> dict[str, list[Any]]:
    return {key: list(table) for key, table in vars(module).items() if "hooks" in key and isinstance(table, dict)}
