"""Backlight explains what PyTorch networks do: where evidence lies, and what to change.

import backlight
loaded = backlight.load("efficientnet_lite0")
attribution = backlight.SoftPullback(loaded.model).attribute(x, target=281)
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from backlight import torchvision_ops

torchvision_ops.install()

__version__ = "0.1.0.dev0"

# where the public names live; loaded when they are first used
_ROOMS = {
    "backlight.engine": "attribute Attribution Coverage RuleSet running captured patched Target Logit Probability "
    "LogProbability TopK Contrast Entropy Surprisal Unit At SpanLoss Point Line Noise WeightNoise Ascent",
    "backlight.contributions.contribution": "contribute Contributions",
    "backlight.contributions.control": "control ChannelEdit site_means site_values",
    "backlight.contributions.control_export": "controlled save_program",
    "backlight.contributions.control_study": "control_study",
    "backlight.contributions.decompose": "decompose Decomposed open_decomposed",
    "backlight.contributions.collector": "ContributionCollector",
    "backlight.contributions.maps": "contribution_maps ContributionMaps",
    "backlight.store": "Store extract",
    "backlight.rules": "rule_set Relative",
    "backlight.methods.token_fields": "TokenFields",
    "backlight.robustness": "manipulate Manipulation Attack",
    "backlight.evaluation": "evaluate Evaluation",
    "backlight.models": "load LoadedModel available_models",
    "backlight.models.language_models": "load_language_model LanguageModel",
    "backlight.text": "explain_text ExplainedText",
    "backlight.methods.class_model": "ClassModel ClassImage",
    "backlight.methods.weak_segmentation": "weak_segmentation Segmentation",
}
_PUBLIC = {name: room for room, names in _ROOMS.items() for name in names.split()}


def _methods() -> dict[str, str]:
    from backlight.methods import METHODS

    return METHODS


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    if not name.startswith("_") and name in _methods():
        return getattr(import_module(f"backlight.methods.{_methods()[name]}"), name)
    from backlight.errors import UnknownNameError

    raise AttributeError(str(UnknownNameError("name in backlight", name, __dir__())))


def __dir__() -> list[str]:
    return sorted([*_PUBLIC, *_methods(), "errors", "methods"])
