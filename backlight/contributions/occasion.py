"""The occasion of a contribution: some samples, a target whose class is decided, and passes at points around them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from backlight.engine.evaluation import Evaluator, input_sites
from backlight.engine.paths import Inputs
from backlight.engine.rules import GRADIENT
from backlight.engine.sites import FEATURES, captured, patched
from backlight.engine.targets import output_tensor
from backlight.errors import InputError, SiteError, TargetError
from backlight.shapes import Float


@dataclass(frozen=True)
class Passed:
    """A forward and backward pass: scores `[n]`, and by site the activations and their cotangents, detached."""

    scores: Float[Tensor, "n"]
    activations: dict[str, Tensor]
    gradients: dict[str, Tensor]
    outputs: Tensor | None = None


@dataclass(frozen=True)
class Occasion:
    """Samples `inputs` and their baselines `starts` (None: none was given), with the pass at the input, `here`."""

    evaluator: Evaluator
    inputs: Inputs
    starts: Inputs | None
    here: Passed

    @classmethod
    def of(cls, evaluator: Evaluator, inputs: Inputs, starts: Inputs | None) -> Occasion:
        """Pass at the input once; what the target chooses (its top classes) is decided there, for good."""
        here, raw = _pass(evaluator, inputs)
        return cls(replace(evaluator, target=evaluator.target.fixed(raw)), inputs, starts, here)

    @property
    def sites(self) -> tuple[str, ...]:
        return self.evaluator.sites

    @property
    def baseline(self) -> Inputs:
        """The baselines; zero where none was given."""
        return self.starts or tuple(map(torch.zeros_like, self.inputs))

    def at(self, inputs: Inputs) -> Passed:
        """One forward and one backward pass at other inputs, for all sites."""
        return _pass(self.evaluator, inputs)[0]

    def moved(self, inputs: Inputs) -> Occasion:
        """The same occasion at other inputs: the target stays as it was decided."""
        return replace(self, inputs=inputs, here=self.at(inputs))

    def patched_at(self, site: str, value: Tensor) -> Passed:
        """One forward and one backward pass with the tensor at a site replaced, read at that site only."""
        evaluator = replace(self.evaluator, sites=(site,))
        names = input_sites(self.inputs)
        if site in names:
            inputs = tuple(value if name == site else x for name, x in zip(names, self.inputs, strict=True))
            return _pass(evaluator, inputs)[0]
        if site == FEATURES:
            raise SiteError(f"{FEATURES} cannot be replaced on a path in hidden space: name the layer")
        with patched(evaluator.model, {site: value}):
            return _pass(evaluator, self.inputs)[0]

    def activations_at(self, inputs: Inputs) -> tuple[Tensor, dict[str, Tensor]]:
        """(scores, activations by site) of one forward pass at other inputs."""
        if FEATURES in self.sites:  # only a differentiated run sees it
            found = self.at(inputs)
            return found.scores, found.activations
        evaluator, names = self.evaluator, input_sites(inputs)
        hidden = [site for site in self.sites if site not in names]
        rows = torch.arange(evaluator.samples)
        with torch.no_grad(), captured(evaluator.model, dict.fromkeys((*hidden, *evaluator.target.sites))) as store:
            scores = evaluator.target(evaluator.model(*inputs, *evaluator.arguments), store)
        evaluator.cost.forwards += len(rows)
        values = {**dict(zip(names, inputs, strict=True)), **store}
        return scores, {site: values[site] for site in self.sites}

    def check_continuous(self, algorithm: str) -> None:
        """Raise InputError where an input is integer, which no path and no noise can pass through."""
        for name, x in zip(input_sites(self.inputs), self.inputs, strict=True):
            if not x.is_floating_point():
                raise InputError(
                    f"{algorithm} moves through the inputs, and {name} holds {x.dtype}: give the network embeddings, "
                    "or use HiddenIntegratedGradients(path='hidden') or ActGrad"
                )


def _pass(evaluator: Evaluator, inputs: Inputs) -> tuple[Passed, Any]:
    found = evaluator.evaluate(inputs, torch.arange(evaluator.samples))
    try:
        outputs: Tensor | None = output_tensor(found.outputs).detach()
    except TargetError:  # a callable target may read what holds no such tensor
        outputs = None
    values, cotangents = ({s: t.detach() for s, t in part.items()} for part in (found.values, found.cotangents))
    return Passed(found.scores.detach(), values, cotangents, outputs), found.outputs


def is_plain(evaluator: Evaluator) -> bool:
    """Whether cotangents are autograd's own, on which completeness rests."""
    return evaluator.rules == GRADIENT


def wide(x: Tensor) -> Tensor:
    """x in single precision at least: products of halves under- and overflow."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
