"""A network at one input, linearised at one hidden site: vector-Jacobian products of the site, as many as are needed.

The forward pass is taken once. What the target's gradient is at the site, and what any cotangent at the site becomes at
the input, are backward passes through the part of the graph below and above the site.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from backlight.contributions.occasion import Passed
from backlight.engine.evaluation import Evaluator
from backlight.engine.rules import Mark
from backlight.engine.run import running
from backlight.engine.sites import FEATURES, INPUT, captured
from backlight.engine.targets import Target
from backlight.errors import InputError, SiteError
from backlight.shapes import Float


class Linearisation:
    """`x -> h -> score` at `x`, under the evaluator's rules, with the graph between x and h kept.

    `value`, `cotangent`: h and the score's cotangent at it, of the site's shape; `scores`: `[n]`. `target`: with its
    choices made here. Cost: a forward pass, and a backward pass down to h.

    Raises:
        SiteError: the site is the input, or h does not depend on it.
    """

    def __init__(self, evaluator: Evaluator, x: Tensor) -> None:
        (site,) = evaluator.sites
        if site == INPUT:
            raise SiteError("contribution maps lead from a hidden site to the input; name a layer")
        if not x.is_floating_point():
            raise InputError(f"maps are products with the input, which holds {x.dtype}: give the network embeddings")
        self.evaluator, self.site = evaluator, site
        self.x = x.detach().requires_grad_()
        self._forward()

    def _forward(self) -> None:
        evaluator, target = self.evaluator, self.evaluator.target
        hidden = () if self.site == FEATURES else (self.site,)
        settings: dict[str, Any] = {
            "strict": evaluator.strict,
            "samples": len(self.x),
            "observe": self.site == FEATURES,
        }
        with torch.enable_grad():
            with running(evaluator.model, evaluator.rules, **settings) as run:
                run.keep(self.x)
                run.marks[self.x] = Mark("input", self.x)
                with captured(evaluator.model, dict.fromkeys((*hidden, *target.sites)), run.watch) as store:
                    outputs = evaluator.model(self.x, *evaluator.arguments)
                found = run.features if self.site == FEATURES else store[self.site]
            run.check_recorded((self.site, *target.sites), "maps are of")
            scores = target(outputs, store)
        if found is None:
            raise SiteError("the model has no feature map [N, C, H, W, ...] with several positions: name a layer")
        if found.grad_fn is None:
            raise SiteError(f"site {self.site!r} does not depend on the input")
        self._value = found
        self.target: Target = target.fixed(outputs)
        evaluator.cost.forwards += len(self.x)
        self.scores, self.value = scores.detach(), found.detach()
        self.cotangent = self._backward(scores)
        evaluator.coverage.merge(run.coverage)

    def _backward(self, scores: Tensor) -> Tensor:
        if not scores.requires_grad:
            return torch.zeros_like(self.value)
        self.evaluator.cost.backwards += len(self.x)
        found = torch.autograd.grad(scores.sum(), self._value, allow_unused=True, materialize_grads=True)
        return found[0].detach()

    def pull(self, cotangent: Float[Tensor, "n *site"]) -> Float[Tensor, "n *axes"]:
        """u^T dh/dx: what a cotangent at the site becomes at the input. One backward pass."""
        self.evaluator.cost.backwards += len(self.x)
        u = cotangent.to(self._value.dtype)
        found = torch.autograd.grad(
            self._value, self.x, u, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        return found[0].detach()

    def passed(self) -> Passed:
        """What was read, as contribution algorithms take it."""
        return Passed(self.scores, {self.site: self.value}, {self.site: self.cotangent})

    def decided(self) -> Evaluator:
        """The evaluator for other inputs, with the target as it was decided here."""
        return replace(self.evaluator, target=self.target)
