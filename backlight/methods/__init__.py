"""Named methods in Captum's shape: `Method(model, **settings).attribute(inputs, target=...)`.

A new method is a file in this room and a line in `METHODS`; the command line, the documentation and the conformance
suite read it from there.
"""

from __future__ import annotations

from importlib import import_module

from backlight.errors import UnknownNameError
from backlight.methods.method import Method

METHODS: dict[str, str] = {
    "Saliency": "saliency",
    "ClassSaliency": "class_saliency",
    "InputXGradient": "input_x_gradient",
    "IntegratedGradients": "integrated_gradients",
    "SmoothGrad": "smooth_grad",
    "FusionGrad": "fusion_grad",
    "GuidedBackprop": "clipped_backprop",
    "Deconvnet": "clipped_backprop",
    "GradCAM": "class_activation",
    "GradCAMPlusPlus": "class_activation",
    "XGradCAM": "class_activation",
    "LayerCAM": "class_activation",
    "GuidedGradCAM": "class_activation",
    "FullGrad": "full_grad",
    "ScoreCAM": "grad_cam_methods",
    "AblationCAM": "grad_cam_methods",
    "DeepLIFT": "captum_methods",
    "GradientSHAP": "captum_methods",
    "KernelSHAP": "captum_methods",
    "LIME": "captum_methods",
    "Occlusion": "captum_methods",
    "Pullback": "pullback",
    "SoftPullback": "pullback",
    "ExcitationPullback": "pullback",
    "SmoothPullback": "averaged_pullback",
    "FusionPullback": "averaged_pullback",
    "IntegratedPullback": "averaged_pullback",
    "SRD": "srd",
    "AttnLRP": "attn_lrp",
    "CPLRP": "attn_lrp",
    "LRP": "lrp",
    "PullbackAscent": "ascent",
    "GradientAscent": "ascent",
    "Accentuation": "perturbation",
    "Counterfactual": "perturbation",
}


def method(name: str) -> type[Method]:
    """A method's class by its name; case, hyphens and underscores do not matter.

    Raises:
        UnknownNameError: a name that is not in `METHODS`.
    """
    plain = {known.lower(): known for known in METHODS}
    key = name.replace("_", "").replace("-", "").lower()
    if key not in plain:
        raise UnknownNameError("method", name, METHODS)
    return getattr(import_module(f"backlight.methods.{METHODS[plain[key]]}"), plain[key])


__all__ = ["METHODS", "Method", "method"]
