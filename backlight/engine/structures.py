"""Tensors within tuples, lists, dictionaries and named tuples, as calls and modules take and give them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor


def tensors_of(value: Any) -> Iterator[Tensor]:
    """The tensors of a structure, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors_of(item)
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from tensors_of(item)


def mapped(value: Any, kinds: type | tuple[type, ...], change: Callable[[Any], Any]) -> Any:
    """The same structure, with what is of these kinds changed."""
    if isinstance(value, kinds):
        return change(value)
    if isinstance(value, Mapping) and (type(value) is dict or hasattr(value, "to_tuple")):  # Hugging Face's outputs
        items = {key: mapped(item, kinds, change) for key, item in value.items()}
        return items if type(value) is dict else type(value)(**items)
    if type(value) in (tuple, list):
        return type(value)(mapped(item, kinds, change) for item in value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(mapped(item, kinds, change) for item in value))
    if type(value).__module__ == "torch.return_types":
        return type(value)([mapped(item, kinds, change) for item in value])
    return value
