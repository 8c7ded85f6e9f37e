"""What the settings of metrics may be, said where a metric is made and not again at each sample."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from numbers import Integral, Real
from typing import Any

from backlight.errors import InputError, UnknownNameError

Check = Callable[[str, Any], None]


def within(
    low: float,
    high: float = math.inf,
    *,
    above: bool = False,
    below: bool = False,
    whole: bool = False,
    none: bool = False,
) -> Check:
    """Numbers from `low` to `high`. `above`, `below`: without that bound itself. `none`: or None."""
    if math.isinf(high):
        said = f"{'above' if above else 'at least'} {low:g}"
    else:
        said = f"in {'(' if above else '['}{low:g}, {high:g}{')' if below else ']'}"
    said = f"{'a whole number ' * whole}{said}{' or None' * none}"

    def check(name: str, value: Any) -> None:
        if value is None and none:
            return
        number = isinstance(value, Integral if whole else Real) and not isinstance(value, bool)
        if not number or not low <= value <= high or (above and value == low) or (below and value == high):
            raise InputError(f"{name} must be {said}, got {value!r}")

    return check


def each(check: Check) -> Check:
    """A sequence, not empty, of what a check allows."""

    def checked(name: str, values: Any) -> None:
        if isinstance(values, str) or not isinstance(values, Collection) or not len(values):
            raise InputError(f"{name} must be a sequence of at least one value, got {values!r}")
        for value in values:
            check(f"each of {name}", value)

    return checked


def one_of(choices: Collection[str], what: str = "", others: type | tuple[type, ...] = ()) -> Check:
    """A name among `choices`, or a value of the `others`' types; `what`: the names are of, by default the setting."""

    def check(name: str, value: Any) -> None:
        if isinstance(value, str) and value not in choices:
            raise UnknownNameError(what or name, value, choices)
        if not isinstance(value, (str, *(others if isinstance(others, tuple) else (others,)))):
            raise InputError(f"{name} must be one of {', '.join(choices)}, got {value!r}")

    return check


COUNT, PAIR, COUNT_OR_NONE = within(1, whole=True), within(2, whole=True), within(1, whole=True, none=True)
POSITIVE, NOT_NEGATIVE = within(0, above=True), within(0)
