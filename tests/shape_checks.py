"""The checker of shapes and types that the import hook of `conftest.py` puts on the functions of the package."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from beartype import beartype
from beartype.roar import BeartypeDecorHintPep673Exception, BeartypeDecorHintPep3119Exception

F = TypeVar("F", bound=Callable)


def checked(function: F) -> F:
    """The function with its annotations checked; as it is where one is a protocol or `Self`, which cannot be checked.

    Functions inside functions are left alone: their shapes are those of the function that made them.
    """
    if "<locals>" in function.__qualname__:
        return function
    try:
        return beartype(function)
    except (BeartypeDecorHintPep3119Exception, BeartypeDecorHintPep673Exception):
        return function
