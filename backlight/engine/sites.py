"""Sites: where in a network something is read or replaced.

An address is `input` (what the model is given), or the dotted name of a module, whose output is meant: `layer4.1`.
`layer4.1:input` is that module's input. A module that runs several times needs the number of the call: `relu#2`.
A module that gives a tuple is read at its first tensor. `@features` is the last feature map, whatever module it comes
from: the result `[N, C, H, W, ...]` of the last activation, sum or concatenation with more than one position.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from backlight.engine.adjoint import alias
from backlight.errors import SiteError, UnknownNameError

INPUT = "input"
FEATURES = "@features"


@dataclass(frozen=True)
class Site:
    """A module's output or input, at one of its calls (None: it must be called once)."""

    layer: str
    side: str = "output"
    call: int | None = None

    @classmethod
    def parse(cls, address: str) -> Site:
        """`layer4.1`, `layer4.1:input`, `relu#2`, `relu#2:input`."""
        name, _, side = address.partition(":")
        name, _, call = name.partition("#")
        if side not in ("", "input", "output") or (call and not call.isdigit()):
            raise SiteError(f"a site is written NAME, NAME:input or NAME#CALL, not {address!r}")
        return cls(name, side or "output", int(call) if call else None)


Edit = Callable[[Tensor], Tensor]


@contextmanager
def edited(model: nn.Module, edits: Mapping[str, Edit]) -> Iterator[dict[str, list[int]]]:
    """Pass the tensors at the sites through functions while the context lasts; hooks are gone after it.

    Yields the number of calls seen so far at each site, as `{address: [calls]}`.

    Raises:
        UnknownNameError: a site that is no module of the model.
        SiteError: a site without a tensor.
    """
    modules = dict(model.named_modules())
    counts: dict[str, list[int]] = {address: [0] for address in edits}
    with ExitStack() as stack:
        for address, edit in edits.items():
            site = Site.parse(address)
            if site.layer not in modules:
                raise UnknownNameError("layer", site.layer, [name for name in modules if name])
            hook = _hook(address, site, edit, counts[address])
            module = modules[site.layer]
            register = module.register_forward_hook if site.side == "output" else module.register_forward_pre_hook
            stack.callback(register(hook, with_kwargs=True).remove)
        yield counts


def _hook(address: str, site: Site, edit: Edit, count: list[int]) -> Callable[..., Any]:
    def wanted() -> bool:
        count[0] += 1
        return site.call is None or site.call == count[0] - 1

    def on_output(module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        return first_replaced(output, edit, address) if wanted() else None

    def on_input(module: nn.Module, args: Any, kwargs: Any) -> Any:
        if not wanted():
            return None
        if any(isinstance(value, Tensor) for value in args):
            return first_replaced(args, edit, address), kwargs
        return args, first_replaced(kwargs, edit, address)

    return on_output if site.side == "output" else on_input


def first_replaced(value: Any, edit: Edit, address: str) -> Any:
    """The value with its first tensor passed through `edit`. Raises `SiteError` where there is none."""
    if isinstance(value, Tensor):
        return edit(value)
    if isinstance(value, Mapping):
        items = value.items()
        for key, item in items:
            if isinstance(item, Tensor):
                copy = type(value)(**value) if not isinstance(value, dict) or type(value) is not dict else dict(value)
                copy[key] = edit(item)  # type: ignore[index]
                return copy
    if isinstance(value, (tuple, list)):
        for position, item in enumerate(value):
            if isinstance(item, Tensor):
                parts = [*value[:position], edit(item), *value[position + 1 :]]
                return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    raise SiteError(f"site {address!r} has no tensor (it gives {type(value).__name__})")


@contextmanager
def captured(
    model: nn.Module, sites: Iterable[str], watch: Callable[[str, Tensor], None] | None = None
) -> Iterator[dict]:
    """Collect the tensors at hidden sites, as `{address: Tensor}`, filled by each forward pass.

    A tensor that needs no gradient yet starts a graph of its own there, so that gradients can be read at it. The model
    goes on with a copy, so that what it writes in place (an in-place ReLU) is not seen in what was collected. `watch`
    (`Run.watch`) is called with every address and collected tensor, and sees to that in place of the copy.

    Raises:
        SiteError: at the end of the context, a site that no forward pass reached, or reached several times.
    """
    store: dict[str, Tensor] = {}

    def keep(address: str) -> Edit:
        def edit(value: Tensor) -> Tensor:
            if not value.is_floating_point():
                raise SiteError(f"site {address!r} holds {value.dtype}, which has no gradients")
            recorded = torch.is_grad_enabled()
            if recorded:
                value = alias(value) if value.requires_grad else value.detach().requires_grad_()
            elif watch is not None:  # in a checkpointed module: its graph is made later
                value = value.detach().requires_grad_()
            store[address] = value
            if watch is None:
                return value.clone()
            watch(address, value)
            return value if recorded else value.detach().clone()

        return edit

    with edited(model, {address: keep(address) for address in sites}) as counts:
        yield store
        for address, (calls,) in counts.items():
            if address not in store:
                raise SiteError(f"site {address!r} was not reached: {calls} calls of its module in the forward pass")
            if calls > 1 and Site.parse(address).call is None:
                raise SiteError(f"site {address!r} was reached {calls} times: say which with {address + '#0'!r}")


@contextmanager
def patched(model: nn.Module, values: Mapping[str, Tensor | Edit]) -> Iterator[None]:
    """Replace the tensors at sites by other tensors, or by a function of what is there, while the context lasts."""

    def edit(value: Tensor | Edit) -> Edit:
        return (lambda _: value) if isinstance(value, Tensor) else value

    with edited(model, {address: edit(value) for address, value in values.items()}):
        yield
