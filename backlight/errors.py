"""The exceptions of Backlight. Each message says what was given, what was expected, and the nearest valid choice."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class BacklightError(Exception):
    """Base of every error that Backlight raises on purpose."""


class UnknownNameError(BacklightError, KeyError):
    """A name that is not in its list.

    Cause: a misspelled method, model, layer, class or operation. Fix: one of the close matches in the message.
    """

    def __init__(self, kind: str, given: object, choices: Iterable[str], hint: str = "") -> None:
        self.kind, self.given = kind, given
        names = [str(name) for name in choices]
        by_lower = {name.lower(): name for name in reversed(names)}
        close = difflib.get_close_matches(str(given).lower(), by_lower, n=4, cutoff=0.5)
        if close:
            near = "close matches: " + ", ".join(by_lower[key] for key in close)
        elif names:
            near = "choices: " + ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
        else:
            near = "there is none to choose from"
        self.message = f"unknown {kind} {str(given)!r}; {near}" + (f" ({hint})" if hint else "")
        super().__init__(self.message)

    def __str__(self) -> str:
        return self.message


class MissingExtraError(BacklightError, ImportError):
    """An optional package is not installed. Fix: the `pip install` line in the message."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"this needs the package {package!r}: pip install 'backlight[{extra}]'")


class ImageError(BacklightError, ValueError):
    """A file that cannot be read as an image. Fix: give a readable PNG, JPEG, WebP, TIFF, ... file."""


class ModelError(BacklightError, ValueError):
    """A model or checkpoint that cannot be used as asked: weights that do not fit, scripted or compiled modules."""


class TargetError(BacklightError, ValueError):
    """A target that does not fit the model's output. Fix: see `backlight.engine.targets`."""


class SiteError(BacklightError, ValueError):
    """A site that gave no tensor, or several. Fix: `backlight layers MODEL` lists the names."""


class InputError(BacklightError, ValueError):
    """Inputs, baselines or settings of the wrong type, shape or range."""


class UncoveredOperationError(BacklightError, NotImplementedError):
    """A rule set met an operation that it neither answers for nor leaves to autograd knowingly.

    Fix: `strict=False` lets the plain gradient through and lists the operation in the coverage table; an override for
    the layer, or a rule of your own, answers for it.
    """


class DifferentiabilityError(BacklightError, ValueError):
    """An explanation that cannot be differentiated in the input, or whose derivative is zero wherever it exists.

    Fix: another method; smoothed activations (`beta`) where a network of ReLUs makes the map piecewise constant.
    """


class NonFiniteError(BacklightError, ArithmeticError):
    """An attribution has NaN or infinite entries. Fix: bfloat16 or float32 in place of float16, or another target."""


class BacklightWarning(UserWarning):
    """Something the user may want to know; never the only sign of a wrong result."""
