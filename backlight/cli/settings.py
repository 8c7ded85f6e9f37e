"""From what is typed to methods with their settings: `--method A,B --set n_steps=20 --set A.seed=1`."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from types import UnionType
from typing import Any, get_args, get_origin

from torch import nn

from backlight.errors import BacklightError, InputError, UnknownNameError
from backlight.methods import Method, method
from backlight.rules import Relative

_KINDS = {bool: "true or false", int: "a whole number", float: "a finite number", str: "a name", type(None): "null"}


def methods_with_settings(
    names: Iterable[str], given: Iterable[str], model: nn.Module, temperature: str | None = None
) -> dict[str, Method]:
    """The methods by name, each with the settings that it has; a setting that none of them has is an error.

    Raises:
        UnknownNameError: an unknown method or setting, with close matches.
        InputError: a setting that is not NAME=VALUE, or a value of the wrong type.
    """
    classes = {found.__name__: found for found in map(method, split(names))}
    if not classes:
        raise InputError("no method: give --method NAME")
    pairs = [parse_setting(one) for one in given]
    if temperature is not None:
        pairs.append(("temperature", temperature))
    chosen: dict[str, dict[str, Any]] = {name: {} for name in classes}
    for key, text in pairs:
        owner, _, name = key.rpartition(".")
        owner = method(owner).__name__ if owner else ""
        takers = [known for known, cls in classes.items() if owner in ("", known) and name in cls.settings()]
        if not takers:
            choices = {setting for cls in classes.values() for setting in cls.settings()}
            raise UnknownNameError(f"setting of {owner or ', '.join(classes)}", name, sorted(choices))
        for known in takers:
            chosen[known][name] = parse_value(name, text, classes[known].settings()[name])
    return {name: _build(cls, model, chosen[name]) for name, cls in classes.items()}


def _build(cls: type[Method], model: nn.Module, settings: Mapping[str, Any]) -> Method:
    """A method whose wrong values are said now, once, and not again for each picture."""
    try:
        built = cls(model, **settings)
        built.rules()
        built.path()
    except (TypeError, ValueError) as error:
        if isinstance(error, BacklightError):
            raise
        raise InputError(f"the settings of {cls.__name__} do not fit: {error}") from None
    return built


def split(names: Iterable[str]) -> list[str]:
    """Repeated options and comma lists as one list, each name once."""
    parts = (part.strip() for name in names for part in name.split(","))
    return list(dict.fromkeys(part for part in parts if part))


def parse_setting(text: str) -> tuple[str, str]:
    """(name, value) of `name=value`. Raises `InputError` for anything else."""
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise InputError(f"a setting is written NAME=VALUE, got {text!r}")
    return name.strip(), value.strip()


def parse_value(name: str, text: str, default: Any) -> Any:
    """A value of the default's type: JSON (a list is a tuple), else the text itself; `relative:0.5` is Relative(0.5).

    Raises:
        InputError: a number or truth value is expected and something else is given.
    """
    try:
        value = json.loads(text, parse_constant=_no_number)
    except ValueError:
        value = {"True": True, "False": False, "None": None}.get(text, text)
    if isinstance(value, list):
        value = tuple(value)
    if name == "temperature" and isinstance(value, str) and value.startswith("relative:"):
        return Relative(_number(name, value.removeprefix("relative:")))
    if isinstance(default, bool) and not isinstance(value, bool):
        raise InputError(f"{name} is true or false, got {text!r}")
    whole = isinstance(default, int) and not isinstance(default, bool)
    if whole and type(value) is not int:
        raise InputError(f"{name} is a whole number, got {text!r}")
    if isinstance(default, float) and value is not None:
        return _number(name, text)
    return float(value) if type(value) is int and not whole else value  # radius, baseline, temperature


def parse_typed(name: str, text: str, hint: Any) -> Any:
    """A value of an annotated type: one of a union, None where it may be, `16,8` for a tuple of numbers.

    Raises:
        InputError: a value of none of the types.
    """
    kinds = {get_origin(kind) or kind for kind in (get_args(hint) if isinstance(hint, UnionType) else (hint,))}
    if tuple in kinds:
        return tuple(_number(name, part) for part in text.strip("[]() ").split(",") if part.strip())
    try:
        value = json.loads(text, parse_constant=_no_number)
    except ValueError:
        value = {"True": True, "False": False, "None": None}.get(text, text)
    if type(value) in kinds or (value is None and type(None) in kinds):
        return value
    if type(value) is int and float in kinds:
        return float(value)
    said = " or ".join(words for kind, words in _KINDS.items() if kind in kinds)
    raise InputError(f"{name} is {said or 'of another type'}, got {text!r}")


def _number(name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InputError(f"{name} is a finite number, got {text!r}")
    return value


def _no_number(text: str) -> None:
    raise ValueError(text)


def plain_settings(one: Method) -> dict[str, Any]:
    """A method's settings as JSON can hold them."""
    return {name: _plain(getattr(one, name)) for name in one.settings()}


def plain_defaults(cls: type[Method]) -> dict[str, Any]:
    """A method's settings and their defaults as JSON can hold them."""
    return {name: _plain(default) for name, default in cls.settings().items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(entry) for entry in value]
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)
