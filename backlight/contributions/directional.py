"""Directional derivatives: how hidden units change along a direction in the input, dh/dx · v.

Forward-mode differentiation carries the direction through the network beside the values. Where an operation has no
formula for that, the product is transposed: the vector-Jacobian product of h is linear in its cotangent u, and its
derivative in u along v is what is asked for (Townsend 2017, "A new trick for calculating Jacobian vector products").
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from backlight.engine.evaluation import check_evaluation_mode, input_sites
from backlight.engine.paths import Inputs
from backlight.engine.rules import GRADIENT
from backlight.engine.run import running
from backlight.engine.sites import Edit, Site, captured, edited
from backlight.errors import InputError, SiteError, UnknownNameError

MODES = ("auto", "forward", "double_backward")


def directional_derivative(
    model: nn.Module,
    inputs: Tensor | Inputs,
    direction: Tensor | Inputs,
    sites: str | Sequence[str],
    *,
    mode: str = "auto",
    additional_forward_args: tuple[Any, ...] = (),
) -> dict[str, Tensor]:
    """dh/dx · v at the input, of the site's shape `[N, ...]`, for every site, all in one pass.

    Parts of the model that run without gradients (`torch.no_grad`, `detach`) carry no direction either.

    Args:
        direction: v, of the inputs' shapes; zeros at inputs of integers.
        mode: "forward": one forward pass, about twice as dear as a plain one; "double_backward": one forward pass and
            two backward passes; "auto": the second where the first has no formula for an operation.

    Raises:
        UnknownNameError: another mode, or a site that is no module.
        SiteError: a site that the forward pass does not reach, or reaches several times.
        InputError: directions of other shapes, or none along floating-point inputs.
        NotImplementedError: mode="forward", and an operation without a formula.
    """
    if mode not in MODES:
        raise UnknownNameError("mode of differentiation", mode, MODES)
    check_evaluation_mode(model)
    inputs = (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)
    directions = (direction,) if isinstance(direction, Tensor) else tuple(direction)
    if [x.shape for x in inputs] != [v.shape for v in directions]:
        shapes = [list(v.shape) for v in directions]
        raise InputError(f"expected directions of the inputs' shapes {[list(x.shape) for x in inputs]}, got {shapes}")
    if not any(x.is_floating_point() for x in inputs):
        raise InputError("no direction along inputs of integers")
    names = (sites,) if isinstance(sites, str) else tuple(dict.fromkeys(sites))
    at_input = dict(zip(input_sites(inputs), directions, strict=True))
    hidden = tuple(name for name in names if name not in at_input)
    found: dict[str, Tensor] = {}
    if hidden:
        found = _derivatives(model, inputs, directions, hidden, mode, additional_forward_args)
    return {name: found[name] if name in found else at_input[name] for name in names}


def _derivatives(
    model: nn.Module, inputs: Inputs, directions: Inputs, sites: tuple[str, ...], mode: str, arguments: tuple[Any, ...]
) -> dict[str, Tensor]:
    if mode != "double_backward":
        try:
            return _forward(model, inputs, directions, sites, arguments)
        except (NotImplementedError, RuntimeError) as error:
            lacking = isinstance(error, NotImplementedError) or "forward" in str(error).lower()
            if mode == "forward" or not lacking:
                raise
    return _double_backward(model, inputs, directions, sites, arguments)


class _WithoutGradients(TorchFunctionMode):
    """Forward mode does not know `torch.no_grad`: what a model computes in it is detached, as in the backward pass."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        return result if torch.is_grad_enabled() else _detached(result)


def _detached(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach()
    return type(value)(map(_detached, value)) if type(value) in (tuple, list) else value


def _forward(
    model: nn.Module, inputs: Inputs, directions: Inputs, sites: tuple[str, ...], arguments: tuple[Any, ...]
) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}

    def keep(address: str) -> Edit:
        def edit(value: Tensor) -> Tensor:
            if not value.is_floating_point():
                raise SiteError(f"site {address!r} holds {value.dtype}, which has no gradients")
            tangent = forward_ad.unpack_dual(value).tangent
            found[address] = torch.zeros_like(value) if tangent is None else tangent.detach().clone()
            return value

        return edit

    with torch.enable_grad(), forward_ad.dual_level(), sdpa_kernel(SDPBackend.MATH), running(model, GRADIENT):
        duals = tuple(
            forward_ad.make_dual(x.detach().clone(), v.detach().to(x).clone()) if x.is_floating_point() else x
            for x, v in zip(inputs, directions, strict=True)
        )
        with edited(model, {site: keep(site) for site in sites}) as counts, _WithoutGradients():
            model(*duals, *arguments)
    for site, (calls,) in counts.items():
        if site not in found:
            raise SiteError(f"site {site!r} was not reached: {calls} calls of its module in the forward pass")
        if calls > 1 and Site.parse(site).call is None:
            raise SiteError(f"site {site!r} was reached {calls} times: say which with {site + '#0'!r}")
    return found


def _double_backward(
    model: nn.Module, inputs: Inputs, directions: Inputs, sites: tuple[str, ...], arguments: tuple[Any, ...]
) -> dict[str, Tensor]:
    leaves = tuple(x.detach().requires_grad_() if x.is_floating_point() else x for x in inputs)
    with torch.enable_grad():
        with running(model, GRADIENT, differentiable=True, samples=len(inputs[0])) as run:
            for leaf in leaves:
                run.keep(leaf)
            with captured(model, sites, run.watch) as values:
                model(*leaves, *arguments)
        along = [(x, v) for x, v in zip(leaves, directions, strict=True) if x.requires_grad]
        found = transposed([values[site] for site in sites], [x for x, _ in along], [v.to(x) for x, v in along])
    return dict(zip(sites, found, strict=True))


def transposed(values: Sequence[Tensor], leaves: Sequence[Tensor], directions: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """(dh/dx · v) of values h in the graph of leaves x: the derivative of u -> <u^T dh/dx, v>, two backward passes.

    Under a rule set, the transpose of the rules' pullback, where that is linear in the cotangent. The graph is kept.
    """
    cotangents = [torch.zeros_like(h).requires_grad_() for h in values]
    pulled = torch.autograd.grad(values, leaves, cotangents, create_graph=True, allow_unused=True)
    along = [(p, v) for p, v in zip(pulled, directions, strict=True) if p is not None and p.requires_grad]
    if not along:
        return tuple(torch.zeros_like(h) for h in values)
    products, weights = zip(*along, strict=True)
    found = torch.autograd.grad(products, cotangents, weights, allow_unused=True, materialize_grads=True)
    return tuple(value.detach() for value in found)
