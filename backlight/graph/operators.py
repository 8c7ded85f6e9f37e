"""Attribution operators by name: what makes an edge of a concept graph.

A new operator is a class in a file `operators_*.py` and one line here.
"""

from __future__ import annotations

from collections.abc import Callable

from backlight.errors import UnknownNameError
from backlight.graph.operators_base import Ends, Operator, Passes, Shares
from backlight.graph.operators_captum import DeepLIFT, GradientSHAP, KernelSHAP
from backlight.graph.operators_controls import Ablation, Activation, Random
from backlight.graph.operators_gradient import GradientTimesInput, IntegratedGradients
from backlight.graph.operators_rescale import Rescale
from backlight.graph.operators_rules import LRP, AttnLRP, LRPEpsilon, RuleTimesInput, SoftPullback
from backlight.graph.operators_srd import SRD

__all__ = [
    "LRP",
    "OPERATORS",
    "SRD",
    "Ablation",
    "Activation",
    "AttnLRP",
    "DeepLIFT",
    "Ends",
    "GradientSHAP",
    "GradientTimesInput",
    "IntegratedGradients",
    "KernelSHAP",
    "LRPEpsilon",
    "Operator",
    "Passes",
    "Random",
    "Rescale",
    "RuleTimesInput",
    "Shares",
    "SoftPullback",
    "operator",
]

OPERATORS: dict[str, Callable[[], Operator]] = {
    "IntegratedGradients": IntegratedGradients,
    "GradientTimesInput": GradientTimesInput,
    "DeepLIFT": DeepLIFT,
    "Rescale": Rescale,
    "GradientSHAP": GradientSHAP,
    "KernelSHAP": KernelSHAP,
    "LRP": LRP,
    "LRPEpsilon": LRPEpsilon,
    "AttnLRP": AttnLRP,
    "SRD": SRD,
    "SoftPullback": SoftPullback,
    "Ablation": Ablation,
    "Activation": Activation,
    "Random": Random,
}


def operator(name: str | Operator) -> Operator:
    """An operator by its name.

    Raises:
        UnknownNameError: none of that name.
    """
    if isinstance(name, Operator):
        return name
    if name not in OPERATORS:
        raise UnknownNameError("attribution operator", name, OPERATORS)
    return OPERATORS[name]()
