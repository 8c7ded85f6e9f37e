"""Input gradients of hidden units: what the direction x does to each unit, times what the unit does to the target."""

from __future__ import annotations

import torch
from torch import Tensor

from backlight.contributions.directional import directional_derivative
from backlight.contributions.occasion import Occasion, is_plain, wide
from backlight.engine.evaluation import input_sites
from backlight.engine.paths import Inputs
from backlight.engine.rules import Mark
from backlight.engine.run import running
from backlight.engine.sites import FEATURES, captured
from backlight.errors import SiteError


def input_gradients(occasion: Occasion) -> dict[str, Tensor]:
    """g_j * sum_k (dh_j / dx_k) v_k by site, v the input less its baseline, if it has one (CODEC, equation 8).

    With the plain gradient: one pass in forward mode for all sites, beside the pass at the input. Under other rules:
    the derivative of u -> <u^T dh/dx, v> at u = g, dh/dx the rules'; two backward passes a site. The units of a layer
    that everything passes through then sum to input times the rules' cotangent, in either case.
    """
    inputs, starts = occasion.inputs, occasion.starts
    direction = inputs if starts is None else tuple(x - b for x, b in zip(inputs, starts, strict=True))
    if FEATURES in occasion.sites:
        raise SiteError(f"InputGrad needs the name of a layer in place of {FEATURES}")
    evaluator = occasion.evaluator
    if is_plain(evaluator):
        changes = directional_derivative(
            evaluator.model, inputs, direction, occasion.sites, additional_forward_args=evaluator.arguments
        )
        evaluator.cost.forwards += evaluator.samples
    else:
        changes = _under_rules(occasion, direction)
    return {site: wide(change) * occasion.here.gradients[site] for site, change in changes.items()}


def _under_rules(occasion: Occasion, direction: Inputs) -> dict[str, Tensor]:
    evaluator, names = occasion.evaluator, input_sites(occasion.inputs)
    leaves = tuple(x.detach().requires_grad_() for x in occasion.inputs)
    values: dict[str, Tensor] = dict(zip(names, leaves, strict=True))
    hidden = [site for site in occasion.sites if site not in names]
    settings = {"strict": evaluator.strict, "samples": evaluator.samples, "differentiable": True}
    with torch.enable_grad():
        with running(evaluator.model, evaluator.rules, **settings) as run:
            for leaf in leaves:
                run.keep(leaf)
                run.marks[leaf] = Mark("input", leaf)
            with captured(evaluator.model, hidden, run.watch) as store:
                evaluator.model(*leaves, *evaluator.arguments)
            values |= store
        evaluator.cost.forwards += evaluator.samples
        changes = {}
        for site in occasion.sites:
            changes[site] = _change(values[site], leaves, direction, occasion.here.gradients[site])
            evaluator.cost.backwards += 2 * evaluator.samples
    run.phase.explaining = False
    return changes


def _change(value: Tensor, leaves: Inputs, direction: Inputs, gradient: Tensor) -> Tensor:
    """The derivative in u, at u = gradient, of <what u pulls back to the leaves, direction>."""
    u = gradient.detach().clone().requires_grad_()
    pulled = torch.autograd.grad(value, leaves, u, create_graph=True, allow_unused=True)
    found = [(p, v.to(p)) for p, v in zip(pulled, direction, strict=True) if p is not None and p.requires_grad]
    if not found:
        return torch.zeros_like(u)
    products, weights = zip(*found, strict=True)
    return torch.autograd.grad(products, u, weights, allow_unused=True, materialize_grads=True)[0].detach()
