"""The protocols of the papers as data: methods and metrics with their settings, exact and quick.

`quick` replaces settings where a small machine shall do; None leaves the row or column out. What is not said here is
the method's or the metric's own default.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

Settings = Mapping[str, Any]

STAGE = "stage/8"  # a layer: the last one whose output has an eighth of the input's sides
PICTURES, OBJECTS, MOSAICS = "pictures", "objects", "mosaics"


@dataclass(frozen=True)
class Row:
    """A method with its settings.

    `published`: the row of the paper's table that it repeats; None: none does. `magnitude`: its absolute value is
    measured. `layers`: its layer in networks whose name has this part.
    """

    method: str
    settings: Settings = field(default_factory=dict)
    quick: Settings | None = field(default_factory=dict)
    published: str | None = None
    magnitude: bool = False
    layers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Column:
    """A metric in the settings of a preset, some of them replaced.

    `samples`: what it is measured on: `pictures`; `objects`, pictures whose object is known; `mosaics`. `repeats`: it
    passes through the network anew for every method; `--quick` takes fewer samples for those.
    """

    metric: str
    preset: str
    settings: Settings = field(default_factory=dict)
    quick: Settings | None = field(default_factory=dict)
    samples: str = PICTURES
    repeats: bool = False


@dataclass(frozen=True)
class Protocol:
    """A table: rows, columns, the row that the others are compared with, and how many samples.

    `table`: its published numbers. `numbers`: (exact, quick) numbers of samples. `show`: what stands beside a mean,
    `wins` (the share of samples where the method is better than the baseline) or `differences` from it. `own`: each
    network has one of the paper's to be compared with, whose name ends in its own.
    """

    name: str
    title: str
    table: str
    rows: Mapping[str, Row]
    columns: Mapping[str, Column]
    baseline: str
    numbers: tuple[int, int]
    show: str = "wins"
    controls: bool = True
    own: bool = False
    notes: tuple[str, ...] = ()


# Semantic Pullbacks, Tables 2, 5 and 6: baselines as its code runs them, pictures and steps in [-1, 1]. The layers of
# GuidedGradCAM are those of the code; elsewhere it is the last feature map.
_CODE_LAYERS = {"resnet50": "layer4.2.conv3", "vgg11_bn": "avgpool"}
_FEW, _FEW_FUSED = {"n_samples": 4}, {"n_weights": 2, "n_samples": 2}
_NOISE, _FUSED = (
    {"n_samples": 50, "stdev": 0.15},
    {"n_weights": 10, "n_samples": 10, "weight_stdev": 0.1, "stdev": 0.15},
)
_ASCENT = {"n_steps": 5, "step": 20.0}
_PAPER, _RELATIVE = {"temperature": "paper"}, {"temperature": "relative"}

PULLBACK_ROWS: dict[str, Row] = {
    "SoftPullback": Row("SoftPullback", _PAPER, published="SoftPullback"),
    "SoftPullback (relative)": Row("SoftPullback", _RELATIVE),
    "PullbackAscent": Row("PullbackAscent", {**_PAPER, **_ASCENT}, published="PullbackAscent"),
    "PullbackAscent (relative)": Row("PullbackAscent", {**_RELATIVE, **_ASCENT}),
    "SmoothPullback": Row("SmoothPullback", {**_PAPER, **_NOISE}, _FEW, "SmoothPullback"),
    "SmoothPullback (relative)": Row("SmoothPullback", {**_RELATIVE, **_NOISE}, None),
    "FusionPullback": Row("FusionPullback", {**_PAPER, **_FUSED}, _FEW_FUSED, "FusionPullback"),
    "FusionPullback (relative)": Row("FusionPullback", {**_RELATIVE, **_FUSED}, None),
    "Gradient": Row("Saliency", published="Gradient"),
    "GradientAscent": Row("GradientAscent", _ASCENT, published="GradientAscent"),
    "SmoothGrad": Row("SmoothGrad", _NOISE, _FEW, "SmoothGrad"),
    "FusionGrad": Row("FusionGrad", _FUSED, _FEW_FUSED, "FusionGrad"),
    "GradientSHAP": Row("GradientSHAP", {"n_samples": 5, "stdev": 0.0}, {"n_samples": 3}, "GradientSHAP"),
    "IntegratedGradients": Row(
        "IntegratedGradients", {"n_steps": 10, "rule": "trapezoid"}, {"n_steps": 5}, "IntegratedGradients"
    ),
    "InputXGradient": Row("InputXGradient", published="InputXGradient"),
    "DeepLIFT": Row("DeepLIFT"),
    "GuidedGradCAM": Row("GuidedGradCAM", published="GuidedGradCAM", layers=_CODE_LAYERS),
}
_DEEPLIFT = (
    "The paper's row DeepLift is gradient x input, by its code, and stands beside InputXGradient; DeepLIFT is true.",
    "Where a row does not say `relative`, temperatures are the paper's, absolute; relative ones are the default here.",
)
_BLOCKS, _ONE_DRAW = {"blocks": 12}, {"blocks": 12, "n_draws": 1}

# in the order in which the paper prints them; then versions that see the sign
PULLBACK_COLUMNS: dict[str, Column] = {
    "Infidelity": Column("Infidelity", "pullbacks", quick={"repeats": 2}),
    "FaithfulnessCorrelation": Column("FaithfulnessCorrelation", "pullbacks"),
    "MonotonicityCorrelation": Column("MonotonicityCorrelation", "pullbacks", quick=_ONE_DRAW, repeats=True),
    "FaithfulnessEstimate": Column("FaithfulnessEstimate", "pullbacks", quick=_BLOCKS, repeats=True),
    "MaxSensitivity": Column("MaxSensitivity", "pullbacks", quick={"draws": 1}, repeats=True),
    "RandomLogit": Column("RandomLogit", "pullbacks", repeats=True),
    "Infidelity (signed)": Column("Infidelity", "signed", quick={"repeats": 2}),
    "FaithfulnessCorrelation (signed)": Column("FaithfulnessCorrelation", "signed"),
    "FaithfulnessCorrelation (first order)": Column("FaithfulnessCorrelation", "first-order"),
    "MonotonicityCorrelation (signed)": Column("MonotonicityCorrelation", "signed", quick=None, repeats=True),
    "FaithfulnessEstimate (signed)": Column("FaithfulnessEstimate", "signed", quick=None, repeats=True),
}

PULLBACKS = Protocol(
    "pullbacks",
    "Semantic Pullbacks, Tables 2 (PVT-v2-B1), 5 (ResNet50) and 6 (VGG11-BN)",
    "pullbacks",
    PULLBACK_ROWS,
    PULLBACK_COLUMNS,
    "Gradient",
    (1000, 200),
    notes=_DEEPLIFT,
)

FOCUS = Protocol(
    "focus",
    "Semantic Pullbacks, Focus on mosaics",
    "focus",
    PULLBACK_ROWS,
    {"Focus": Column("Focus", "pullbacks", samples=MOSAICS)},
    "Gradient",
    (500, 200),
    notes=(*_DEEPLIFT, "Focus is the share of positive x phi on the target's two tiles of four: 0.5 is chance."),
)


def _ablated(method: str, parameter: str, values: tuple[float, ...], default: float) -> dict[str, Row]:
    """A row for each value but the default's."""
    found = {}
    for value in values:
        if value == default:
            continue
        label = f"{method} ({parameter} {value:g})"
        settings: dict[str, Any] = dict(_ASCENT) if method == "PullbackAscent" else {}
        if parameter.startswith("tau "):
            settings["temperature"] = {parameter.removeprefix("tau "): value}
        else:
            settings |= {**_PAPER, parameter: int(value) if parameter == "n_steps" else value}
        found[label] = Row(method, settings, published=label)
    return found


TEMPERATURES: dict[str, tuple[tuple[float, ...], float]] = {
    "tau relu": ((0.3, 0.4, 0.5, 0.6, 1.0), 0.6),
    "tau max_pool": ((0.01, 0.3, 0.5), 0.3),
    "tau gelu": ((0.5, 1.0, 2.0), 1.0),
    "tau attention": ((0.5, 1.0, 5.0), 1.0),
}
STEPS: dict[str, tuple[tuple[float, ...], float]] = {
    "n_steps": ((1, 2, 3, 5, 10), 5),
    "step": ((5.0, 10.0, 20.0, 40.0), 20.0),
}


def _ablation(method: str, changed: Mapping[str, tuple[tuple[float, ...], float]]) -> Protocol:
    own: Settings = _ASCENT if method == "PullbackAscent" else {}
    rows = {f"{method} (default)": Row(method, {**own, **_PAPER}, published=f"{method} (default)")}
    for parameter, (values, default) in changed.items():
        rows |= _ablated(method, parameter, values, default)
    rows[f"{method} (relative)"] = Row(method, {**own, **_RELATIVE})
    names = ("Infidelity", "FaithfulnessCorrelation", "FaithfulnessEstimate", "RandomLogit")
    return Protocol(
        f"ablations-{method}",
        f"Semantic Pullbacks, ablations of {method}: one setting at a time",
        "ablations",
        rows,
        {name: replace(PULLBACK_COLUMNS[name], repeats=False) for name in names},
        f"{method} (default)",
        (500, 50),
        show="differences",
        notes=("Settings that change no map, as those of operations that a network does not have, are left out.",),
    )


ABLATIONS = (_ablation("SoftPullback", TEMPERATURES), _ablation("PullbackAscent", {**TEMPERATURES, **STEPS}))

# The iERF paper says nothing of these methods' settings: Captum's and the libraries' defaults.
LOCAL_ROWS: dict[str, Row] = {
    "Saliency": Row("Saliency", published="Saliency", magnitude=True),
    "GuidedBackprop": Row("GuidedBackprop", published="GuidedBackprop"),
    "InputXGradient": Row("InputXGradient", published="InputXGradient"),
    "IntegratedGradients": Row(
        "IntegratedGradients", {"n_steps": 50, "rule": "gausslegendre"}, {"n_steps": 5}, "IntegratedGradients"
    ),
    "LRP z+": Row("LRP", {"composite": "zplus"}, published="LRP z+"),
    "SmoothGrad": Row("SmoothGrad", _NOISE, _FEW, "SmoothGrad"),
    "FullGrad": Row("FullGrad", published="FullGrad"),
    "GradCAM": Row("GradCAM", published="GradCAM"),
    "GradCAMPlusPlus": Row("GradCAMPlusPlus", published="GradCAMPlusPlus"),
    "ScoreCAM": Row("ScoreCAM", quick=None, published="ScoreCAM"),
    "AblationCAM": Row("AblationCAM", quick=None, published="AblationCAM"),
    "XGradCAM": Row("XGradCAM", published="XGradCAM"),
    "LayerCAM (low)": Row("LayerCAM", published="LayerCAM (low)"),
    "LayerCAM (high)": Row("LayerCAM", {"layer": STAGE}, published="LayerCAM (high)"),
    "SRD (low)": Row("SRD", {"resolution": "low"}, published="SRD (low)"),
    "SRD (high)": Row("SRD", {"resolution": "high"}, published="SRD (high)"),
    "SRD (input)": Row("SRD", {"resolution": "input"}, published="SRD (input)"),
}
LOCAL_COLUMNS: dict[str, Column] = {
    "PointingGame": Column("PointingGame", "ierf", samples=OBJECTS),
    "AttributionLocalisation": Column("AttributionLocalisation", "ierf", samples=OBJECTS),
    "Sparseness": Column("Sparseness", "ierf"),
    "Fidelity": Column("Fidelity", "ierf", quick={"runs": 30}),
    "Stability": Column("Stability", "ierf", quick={"draws": 2}, repeats=True),
}
_OBJECTS = (
    "Where no picture has a mask, PointingGame and AttributionLocalisation are measured on pairs of pictures side by "
    "side, the half of the explained class being its mask; the paper has ImageNet-S50, whose 752 pictures have masks.",
)
_SALIENCY = ("Saliency is the absolute gradient, as in Captum.",)
LOCAL = Protocol(
    "local",
    "iERF, Table I",
    "local",
    LOCAL_ROWS,
    LOCAL_COLUMNS,
    "Saliency",
    (752, 200),
    notes=(*_OBJECTS, *_SALIENCY),
)
REFINEMENT = Protocol(
    "refinement",
    "iERF, Table IV: the head of SRD",
    "refinement",
    {
        f"SRD ({head})": Row("SRD", {"head": head, "resolution": "input"}, published=f"SRD ({head})")
        for head in ("raw", "mean", "clamped")
    },
    LOCAL_COLUMNS,
    "SRD (raw)",
    (752, 200),
    notes=_OBJECTS,
)

# iERF, Table II: one resolution of each
ACTIVATION_NAMES = ("ReLU", "ELU", "LeakyReLU", "Swish", "GELU", "Tanh")
_TABLE_II = (
    "GuidedBackprop", "InputXGradient", "IntegratedGradients", "SmoothGrad", "FullGrad", "GradCAM", "ScoreCAM",
    "AblationCAM", "XGradCAM",
)  # fmt: skip
ACTIVATIONS = Protocol(
    "activations",
    "iERF, Table II: six activations",
    "activations",
    {name: replace(LOCAL_ROWS[name], quick=LOCAL_ROWS[name].quick or {}) for name in _TABLE_II}
    | {"LRP z+": LOCAL_ROWS["LRP z+"]}
    | {"LayerCAM": Row("LayerCAM", published="LayerCAM"), "SRD": Row("SRD", published="SRD")},
    {"Fidelity": LOCAL_COLUMNS["Fidelity"]},
    "InputXGradient",
    (1000, 200),
    own=True,
    notes=("Ours are small ResNets, trained here on CIFAR-10 pictures; the paper's are ResNet50s on CIFAR-100.",),
)

# Semantic Pullbacks, Table 3: (batch, repeats), exact and quick; methods keep their exact settings
TIMING_ROWS = {name: row for name, row in PULLBACK_ROWS.items() if name != "DeepLIFT"}
TIMING_SIZES = ((20, 5), (2, 3))

# iERF, Figure 4: (pairs, sides, steps), exact and quick; the paper's VGG16 and its 100 pairs
MANIPULATION_ROWS: dict[str, Row] = {
    "Saliency": Row("Saliency"),
    "InputXGradient": Row("InputXGradient"),
    "GuidedBackprop": Row("GuidedBackprop"),
    "IntegratedGradients": Row("IntegratedGradients", {"n_steps": 30}, {"n_steps": 4}),
    "LRP z+": Row("LRP", {"composite": "zplus"}),
    "SRD": Row("SRD"),
    "Pullback": Row("Pullback"),
    "SoftPullback": Row("SoftPullback"),
}
MANIPULATION_SIZES = ((100, 224, 1500), (2, 96, 60))
