"""Which methods fit a network: found out by trying, once a network, those that may refuse one."""

from __future__ import annotations

from collections.abc import Callable
from weakref import WeakKeyDictionary

from torch import nn

from backlight.app.computation import Watch
from backlight.app.predictions import grey_input
from backlight.errors import BacklightError
from backlight.methods import METHODS, method
from backlight.models import LoadedModel

# methods with rules, or a library, that do not answer for every operation; one forward and backward pass each
ASKED = ("FullGrad", "GradCAM", "DeepLIFT", "Pullback", "SRD", "AttnLRP", "CPLRP", "LRP")
# methods that refuse what another one refuses
LIKE = {
    "GradCAM": ("GradCAMPlusPlus", "XGradCAM", "LayerCAM", "GuidedGradCAM", "ScoreCAM", "AblationCAM"),
    "Pullback": (
        "SoftPullback",
        "ExcitationPullback",
        "SmoothPullback",
        "FusionPullback",
        "IntegratedPullback",
    ),
}
Refusals = dict[str, str]
_KNOWN: WeakKeyDictionary[nn.Module, Refusals] = WeakKeyDictionary()  # facts about networks, not anybody's results


def offered_methods() -> list[str]:
    """The methods of the registry that explain; those that move the picture belong to another tab."""
    return [name for name in METHODS if not method(name).moves_input]


def refusals(loaded: LoadedModel, watch: Watch, told: Callable[[BaseException], str] = str) -> Refusals:
    """The methods that refuse a network, and why: tried on a grey picture, the first time the network is asked about.

    AttnLRP and CP-LRP, which are other names for input times gradient where there is no attention, are left to networks
    with attention: those that SRD, made for convolutional ones, refuses.
    """
    found = _KNOWN.get(loaded.model)
    if found is not None:
        return found
    found = {}
    for name in ASKED:
        watch.say(f"does {name} fit?")
        try:
            method(name)(watch.front(loaded)).explain(grey_input(loaded), 0)
        except BacklightError as error:
            found |= dict.fromkeys((name, *LIKE.get(name, ())), told(error))
    if "SRD" not in found:
        found |= dict.fromkeys(("AttnLRP", "CPLRP"), "made for transformers")
    _KNOWN[loaded.model] = found
    return found
