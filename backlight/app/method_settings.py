"""Controls for the settings of methods, made from the registry: each setting's type, default and documentation."""

from __future__ import annotations

import inspect
import math
import re
import sys
from dataclasses import MISSING, dataclass, fields
from typing import Any

from backlight.errors import InputError
from backlight.methods import method
from backlight.rules import Relative
from backlight.rules.composites import COMPOSITES

# what a setting that is a name may be, where the method's module does not list it
CHOICES: dict[str, tuple[str, ...]] = {
    "rule": ("gausslegendre", "trapezoid", "riemann_left", "riemann_middle", "riemann_right"),
    "temperature": ("relative", "paper", "excitation", "relative:0.5", "0.3"),
    "baseline": ("zero", "mean", "blur"),
    "composite": tuple(COMPOSITES),
}
# what settings are about that many methods share, or that are typed in another way than in Python
COMMON = {
    "n_steps": "Points on the path; the cost grows with them.",
    "n_samples": "Random samples; the cost grows with them.",
    "n_weights": "Random draws of the weights; the cost grows with them.",
    "stdev": "Standard deviation of the noise, in units of the picture in [-1, 1].",
    "weight_stdev": "Standard deviation of the factors on the weights.",
    "seed": "Of the random numbers; the same seed gives the same map.",
    "baseline": "What counts as absent: zero (grey), mean, blur, or a number.",
    "rule": "How the points on the line are weighted.",
    "temperature": "How soft gates and routes are: relative, paper, excitation, relative:C, or a number.",
    "layer": "A layer by name; empty: the last feature map.",
    "relu": "Keep the positive part alone.",
    "upsample": "Enlarge the map to the picture by interpolation.",
    "grid": "Height and width of the grid of tokens, 14,14; empty: a square.",
    "channels_last": "Whether channels are the last axis of the layer.",
    "crop": "Side of the windows, as a fraction of the picture's.",
    "window": "Side of the square that is covered, in pixels.",
    "stride": "How far the square moves at a time, in pixels.",
    "patch": "Side of the squares that are switched on and off, in pixels.",
    "strict": "Refuse networks with an operation that the method has no answer for.",
}
AUTO = {"auto": None, "true": True, "false": False}
UNOFFERED = ("feature_mask",)  # tensors


@dataclass(frozen=True)
class Setting:
    """A setting of a method: which control shows it, and how the control's value becomes the setting's.

    `kind`: `switch`, `whole`, `number`, `choice` (other values may be typed), `auto` (yes, no, or by itself), `text`.
    """

    method: str
    name: str
    kind: str
    default: Any
    about: str
    choices: tuple[str, ...] = ()

    @property
    def shown(self) -> Any:
        """The default as the control shows it."""
        if self.kind == "auto":
            return "auto"
        if self.name == "baseline" and self.default is None:
            return "zero"
        return ("" if self.kind == "text" else None) if self.default is None else self.default

    def value(self, given: Any) -> Any:
        """The setting for what a control gave. Raises `InputError` for what the type does not take."""
        if self.kind == "switch":
            return bool(given)
        if self.kind == "auto":
            return AUTO.get(str(given))
        if given is None or given == "":
            return self.default
        if self.kind in ("whole", "number"):
            number = self._number(given)
            if self.kind == "number":
                return number
            if number != int(number):
                raise InputError(f"{self.name} of {self.method} is a whole number, got {given}")
            return int(number)
        return self._text(str(given).strip())

    def _text(self, text: str) -> Any:
        if self.name == "grid":
            return tuple(int(self._number(part)) for part in text.split(","))
        if self.name == "temperature" and text.startswith("relative:"):
            return Relative(self._number(text.removeprefix("relative:")))
        if self.default is None and text == "zero":
            return None
        if self.name in ("temperature", "baseline") and text not in CHOICES[self.name][:3]:
            return self._number(text)
        return text

    def _number(self, given: Any) -> float:
        try:
            number = float(given)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise InputError(f"{self.name} of {self.method} is a number, got {str(given)!r}: {self.about}")
        return number


def method_settings(name: str) -> list[Setting]:
    """The settings of a method that a user may choose, in the order of its constructor."""
    cls = method(name)
    found = []
    for one in fields(cls):
        if one.name in ("model", *UNOFFERED) or one.default is MISSING:
            continue
        kind, choices = _kind(cls, one.name, str(one.type), one.default)
        found.append(Setting(name, one.name, kind, one.default, _about(cls, one.name), choices))
    return sorted(found, key=lambda setting: setting.name == "strict")


def chosen_settings(name: str, given: dict[str, Any]) -> dict[str, Any]:
    """The settings of a method for what its controls gave, without those that are the defaults.

    Raises:
        InputError: a value of the wrong type.
    """
    known = {setting.name: setting for setting in method_settings(name)}
    values = {key: known[key].value(value) for key, value in given.items() if key in known}
    return {key: value for key, value in values.items() if value != known[key].default}


def _kind(cls: type, name: str, hint: str, default: Any) -> tuple[str, tuple[str, ...]]:
    if isinstance(default, bool):
        return "switch", ()
    if hint == "bool | None":
        return "auto", tuple(AUTO)
    if name in CHOICES:
        return "choice", CHOICES[name]
    if isinstance(default, int):
        return "whole", ()
    if isinstance(default, float) or "float" in hint or (hint == "Any" and default is None):
        return "number", ()
    if isinstance(default, str):
        return "choice", _listed(cls, default)
    return "text", ()


def _listed(cls: type, default: str) -> tuple[str, ...]:
    """The names among which a default stands, where its module has a constant that lists them."""
    for constant, value in vars(sys.modules[cls.__module__]).items():
        if constant.isupper() and isinstance(value, (tuple, dict)) and default in value:
            return tuple(value)
    return (default,)


def _about(cls: type, name: str) -> str:
    """What `COMMON` says of a setting; else the method's documentation, behind its name in backticks and a colon."""
    text = inspect.getdoc(cls) or ""
    found = re.search(rf"`{name}`(?:, `\w+`)*: (.+?)(?=[.;] `\w+`(?:, `\w+`)*:|\n\n|\Z)", text, re.DOTALL)
    if name in COMMON or found is None:
        return COMMON.get(name, "")
    words = " ".join(found[1].split()).replace("`", "").rstrip(".")
    return f"{words[:1].upper()}{words[1:]}."
