"""The addresses of layers: the dotted names that PyTorch gives to submodules."""

from __future__ import annotations

from fnmatch import fnmatchcase

from torch import nn

from backlight.errors import UnknownNameError


def layer_names(model: nn.Module) -> tuple[str, ...]:
    """The dotted names of all submodules, in module order; a module that is used under two names comes once."""
    return tuple(name for name, _ in model.named_modules() if name)


def resolve_layer(model: nn.Module, name: str) -> nn.Module:
    """The submodule called `name`.

    Raises:
        UnknownNameError: there is none; close matches are listed.
    """
    found = dict(model.named_modules(remove_duplicate=False)).get(name) if name else None
    if found is None:
        raise UnknownNameError("layer", name, layer_names(model))
    return found


def find_layers(model: nn.Module, pattern: str) -> tuple[str, ...]:
    """The names that match a shell pattern: `layer4.*.relu`, `blocks.1?`, `*conv*`; `*` crosses dots.

    Raises:
        UnknownNameError: nothing matches.
    """
    names = layer_names(model)
    found = tuple(name for name in names if fnmatchcase(name, pattern))
    if not found:
        raise UnknownNameError("layer", pattern, names)
    return found
