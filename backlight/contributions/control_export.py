"""Controlled networks to keep: a copy with the edit in it, a program that runs without Backlight, folded weights."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from functools import wraps
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from backlight.contributions.control import ChannelEdit, constant_parts
from backlight.engine.sites import Site, first_replaced
from backlight.errors import InputError, ModelError, SiteError, UnknownNameError

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def controlled(model: nn.Module, edits: Mapping[str, ChannelEdit], inputs: Tensor) -> nn.Module:
    """A copy of a network in which the channels are removed for good; the original stays as it is.

    The edited modules of the copy have classes of their own, made from theirs, whose `forward` contains the edit: there
    are no hooks, and parameters and buffers have their names, so that `state_dict`s go both ways. A resampled
    activation is the same one for all samples. `save_program` writes what runs elsewhere.

    `inputs`: an example, which tells what is at the sites. Cost: one forward pass.

    Raises:
        UnknownNameError: a site that is no module of the model.
        InputError: channels or values that do not fit the site.
        SiteError: a site without channels, or that the example does not come to.
    """
    parts = constant_parts(model, edits, inputs)
    twin = copy.deepcopy(model)
    modules = dict(twin.named_modules())
    counts: list[list[int]] = []
    for address, (removed, filling) in parts.items():
        counts.append([0])
        site = Site.parse(address)
        _extend(modules[site.layer], address, site, removed, filling, counts[-1])
    if any(Site.parse(address).call is not None for address in edits):
        _count_anew(twin, counts)
    return twin


def _extend(module: nn.Module, address: str, site: Site, removed: Tensor, filling: Tensor, count: list[int]) -> None:
    """Give the module a class whose `forward` edits its input or output."""
    base = type(module)
    number = sum(name.startswith("_control_calls") for name in vars(module))
    calls, mask, fill = (f"_control_{what}_{number}" for what in ("calls", "removed", "filling"))
    setattr(module, calls, count)
    module.register_buffer(mask, removed, persistent=False)
    module.register_buffer(fill, filling.clone(), persistent=False)

    @wraps(base.forward)  # whose parameters torch.export asks for
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        def edit(value: Tensor) -> Tensor:
            return torch.where(getattr(self, mask), getattr(self, fill).to(value.dtype), value)

        counted = getattr(self, calls)
        here = site.call in (None, counted[0])
        counted[0] += 1
        if here and site.side == "input":
            if any(isinstance(value, Tensor) for value in args):
                args = first_replaced(args, edit, address)
            else:
                kwargs = first_replaced(kwargs, edit, address)
        output = base.forward(self, *args, **kwargs)
        return first_replaced(output, edit, address) if here and site.side == "output" else output

    module.__class__ = type(f"Controlled{base.__name__.removeprefix('Controlled')}", (base,), {"forward": forward})


def _count_anew(model: nn.Module, counts: list[list[int]]) -> None:
    """Give the network a class that counts the calls of its modules from 0 in each forward pass."""
    base = type(model)
    model._control_counts = counts  # type: ignore[assignment]

    @wraps(base.forward)  # whose parameters torch.export asks for
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        for count in self._control_counts:
            count[0] = 0
        return base.forward(self, *args, **kwargs)

    model.__class__ = type(f"Controlled{base.__name__.removeprefix('Controlled')}", (base,), {"forward": forward})


def save_program(
    model: nn.Module,
    edits: Mapping[str, ChannelEdit],
    inputs: Tensor,
    path: str | os.PathLike[str],
    any_batch_size: bool = True,
) -> Path:
    """Write the controlled network as a program of `torch.export` (`.pt2`); it needs PyTorch to run, and nothing else:
    `torch.export.load(path).module()(inputs)`.

    `inputs`: an example, `[N, ...]`. The program is in the network's present mode, takes inputs of this type and size,
    in batches of any size, or of this one.

    Raises:
        InputError: a path that is no `.pt2`, or cannot be written.
        ModelError: a network that cannot be exported; the message says why.
    """
    from torch.export import Dim, export, save

    target = Path(path)
    if target.suffix != ".pt2":
        raise InputError(f"a program is written to a file that ends in .pt2, got {str(path)!r}")
    twin = controlled(model, edits, inputs)
    example = inputs if len(inputs) > 1 or not any_batch_size else torch.cat((inputs, inputs))
    shapes = ({0: Dim.DYNAMIC},) if any_batch_size else None
    try:
        with torch.no_grad():
            program = export(twin, (example,), dynamic_shapes=shapes, strict=False)
    except Exception as error:  # tracing runs the user's code, which may raise anything
        hint = "; any_batch_size=False fixes the size of batches" if any_batch_size else ""
        raise ModelError(f"{type(model).__name__} cannot be exported: {str(error).splitlines()[0]}{hint}") from error
    partial = target.with_name(f".{target.stem}.partial.pt2")
    try:
        save(program, partial)
        os.replace(partial, target)
    except OSError as error:
        raise InputError(f"cannot write to {str(path)!r}: {error.strerror}") from None
    finally:
        partial.unlink(missing_ok=True)
    return target


def folded(model: nn.Module, edits: Mapping[str, ChannelEdit]) -> nn.Module:
    """A copy of a network, of the same classes, whose weights alone remove the channels.

    Where a site is the output of a convolution, linear layer or batch normalisation: zeroed rows of its weight, and
    the fill as its bias. Where it is the input of a linear layer or convolution: zeroed columns, and, for a linear
    layer, what the fill gave as its bias. A fill that needs a bias where there is none makes one, which is then in the
    `state_dict` too. Rows are exact, columns up to rounding.

    Raises:
        UnknownNameError: a site that is no module of the model.
        SiteError: a site whose edit is no change of weights: use `controlled`.
    """
    twin = copy.deepcopy(model)
    modules = dict(twin.named_modules())
    for address, edit in edits.items():
        site = Site.parse(address)
        if site.layer not in modules:
            raise UnknownNameError("layer", site.layer, [name for name in modules if name])
        module = modules[site.layer]
        why = _unfoldable(module, site, edit)
        if why:
            raise SiteError(f"the edit of {address!r} cannot be folded into weights: {why}; controlled() can do it")
        with torch.no_grad():
            _fold_output(module, edit) if site.side == "output" else _fold_input(module, edit)
    return twin


def _unfoldable(module: nn.Module, site: Site, edit: ChannelEdit) -> str:
    """Why an edit is no change of weights; "" where it is."""
    kinds = (nn.Linear, *_CONVOLUTIONS) + (_NORMS if site.side == "output" else ())
    if type(module).forward not in [kind.forward for kind in kinds] or module._parameters.get("weight") is None:
        return f"a {type(module).__name__} has no weights of its own for the channels of its {site.side}"
    if site.call is not None:
        return "weights are the same at every call"
    if not edit.class_token:
        return "weights are the same at every position"
    if edit.fill == "resample" or (edit.values is not None and edit.values.ndim != 1):
        return "a bias is one number a channel"
    if site.side == "input" and not isinstance(module, nn.Linear):
        if edit.fill == "mean":
            return "the padding of a convolution is zero, not the mean"
        if module.groups != 1:
            return "a convolution in groups has no weights from every channel"
    return ""


def _fold_output(module: Any, edit: ChannelEdit) -> None:
    weight = module.weight.clone()
    removed = edit.removed(len(weight)).to(weight.device)
    bias = torch.zeros(len(weight)).to(weight) if module.bias is None else module.bias.clone()
    fill = torch.zeros_like(bias) if edit.values is None else edit.values.to(bias)
    weight[removed] = 0
    module.weight = nn.Parameter(weight, module.weight.requires_grad)  # its own: tied weights elsewhere stay
    if module.bias is not None or bool(fill[removed].any()):
        module.bias = nn.Parameter(torch.where(removed, fill, bias), module.weight.requires_grad)


def _fold_input(module: Any, edit: ChannelEdit) -> None:
    weight = module.weight.clone()
    removed = edit.removed(weight.shape[1]).to(weight.device)
    if edit.values is not None:
        given = (weight[:, removed].double() @ edit.values.to(weight.device).double()[removed]).to(weight)
        bias = given if module.bias is None else module.bias + given
        module.bias = nn.Parameter(bias, module.weight.requires_grad)
    weight[:, removed] = 0
    module.weight = nn.Parameter(weight, module.weight.requires_grad)
