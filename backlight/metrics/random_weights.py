"""Copies of a network in which the weights of some layers are drawn anew."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy

import torch
from torch import Tensor, nn

from backlight.errors import InputError, UnknownNameError
from backlight.shapes import Float

ORDERS = ("top-down", "bottom-up", "independent")
ROOT = "(root)"


def randomised_networks(
    model: nn.Module,
    sample: Float[Tensor, "1 *shape"],
    order: str = "top-down",
    layers: int | None = None,
    seed: int = 0,
) -> Iterator[tuple[str, nn.Module]]:
    """(layer, network): a copy of the model, changed further at each step. The model itself stays as it is.

    A layer is a module with parameters of its own. It is drawn anew by its `reset_parameters`; what that leaves out
    (class tokens, layer scales, the projections of `nn.MultiheadAttention`) gets normal draws with the mean and the
    standard deviation of its entries, or where those are all equal, their absolute value. Each layer has draws of its
    own.

    Args:
        sample: one input, which shows the order in which layers are called.
        order: "top-down", from the output to the input, and "bottom-up", each step one layer more; "independent", one
            layer at a time, the others as they were (Adebayo et al. 2018, sections 4.1 and 4.2).
        layers: the number of steps, evenly chosen, the last of them complete; None: one for each layer.
        seed: of the draws, which are made on the CPU whatever the device.

    Raises:
        UnknownNameError: another order.
        InputError: a model without parameters, or no step.
    """
    if order not in ORDERS:
        raise UnknownNameError("order", order, ORDERS)
    network = deepcopy(model)
    names = layer_names(network, sample)
    network.load_state_dict(model.state_dict())  # the pass moves running means where the model is in training
    if not names or (layers is not None and layers < 1):
        raise InputError(f"needs at least one layer to randomise, got {layers} of {len(names)}")
    seeds = {name: layer_seed(seed, number) for number, name in enumerate(names)}
    names = names if order == "bottom-up" else names[::-1]
    steps = len(names) if layers is None else min(layers, len(names))
    done = 0
    for step in range(1, steps + 1):
        until = round(step * len(names) / steps)
        if order == "independent":
            network.load_state_dict(model.state_dict())
            done = until - 1
        for name in names[done:until]:
            _redraw(network.get_submodule(name), seeds[name])
        done = until
        yield names[until - 1] or ROOT, network


def layer_names(model: nn.Module, sample: Float[Tensor, "1 *shape"]) -> list[str]:
    """The modules with parameters of their own, in the order in which they are first called.

    Those that another module reads without calling them come right after it.
    """
    calls: dict[str, int] = {}
    handles = []
    for name, module in model.named_modules():

        def called(module: nn.Module, args: object, name: str = name) -> None:
            calls.setdefault(name, len(calls))

        handles.append(module.register_forward_pre_hook(called))
    try:
        with torch.no_grad():
            model(sample)
    finally:
        for handle in handles:
            handle.remove()

    def rank(name: str) -> int:
        while name and name not in calls:
            name = name.rpartition(".")[0]
        return calls.get(name, 0)

    owners = [name for name, module in model.named_modules() if any(True for _ in module.parameters(recurse=False))]
    return sorted(owners, key=rank)


def layer_seed(seed: int, number: int) -> int:
    """Of the layer that is called as this number: layers of one shape must not get the same weights.

    Nor may a layer get those that it had, in a network that was made right after `torch.manual_seed(seed)`.
    """
    return (seed + 1) * 1_000_003 + number


@torch.no_grad()
def _redraw(module: nn.Module, seed: int) -> None:
    """Draw a module's own parameters anew, and reset its own buffers, in place."""
    generator = torch.Generator().manual_seed(seed)
    fresh = _reset(module, seed)
    for name, kept in module.named_buffers(recurse=False):
        if name in fresh:
            kept.copy_(fresh[name])
    for name, kept in module.named_parameters(recurse=False):
        if not kept.is_floating_point():
            continue
        drawn = fresh.get(name)
        if drawn is None or bool(drawn.isnan().any()):
            mean, stdev = kept.double().mean().cpu(), kept.double().std(correction=0).cpu()
            drawn = torch.randn(kept.shape, generator=generator) * (stdev if stdev > 0 else mean.abs()) + mean
        kept.copy_(drawn)


def _reset(module: nn.Module, seed: int) -> dict[str, Tensor]:
    """A module's own tensors after `reset_parameters`, NaN where it draws nothing; empty where there is none."""
    if not callable(getattr(module, "reset_parameters", None)):
        return {}
    blank = deepcopy(module).cpu().float()  # the same draws in every type
    for parameter in blank.parameters(recurse=False):
        if parameter.is_floating_point():
            parameter.fill_(torch.nan)
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(seed)
        blank.reset_parameters()  # type: ignore[operator]
    return {**dict(blank.named_parameters(recurse=False)), **dict(blank.named_buffers(recurse=False))}
