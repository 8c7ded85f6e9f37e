"""Metrics of explanations: pure functions on tensors, and thin classes that hold their settings.

    from backlight.metrics import Case, Infidelity, infidelity
    case = Case(model, x, target, {"gradient": Saliency(model), "soft": SoftPullback(model)})
    Infidelity()(case)                                   # [2, N]
    infidelity(model, x, attributions, target, seed=1)   # [N]

A new metric is a file in this room and a line in `METRICS`; the command line, the documentation and the conformance
suite read it from there.
"""

from __future__ import annotations

from backlight.errors import UnknownNameError
from backlight.metrics.attribution_localisation import (
    AttributionLocalisation,
    EnergyPointingGame,
    attribution_localisation,
    energy_pointing_game,
)
from backlight.metrics.case import Case
from backlight.metrics.completeness_error import CompletenessError, completeness_error
from backlight.metrics.complexity_rise import ComplexityRise, complexity_rise
from backlight.metrics.explainers import Explainer, as_explainer
from backlight.metrics.faithfulness_correlation import FaithfulnessCorrelation, Fidelity, faithfulness_correlation
from backlight.metrics.faithfulness_estimate import FaithfulnessEstimate, faithfulness_estimate
from backlight.metrics.focus import Focus, focus
from backlight.metrics.infidelity import Infidelity, infidelity
from backlight.metrics.insertion_deletion import (
    Curve,
    Deletion,
    Insertion,
    RelevanceGain,
    auc,
    deletion_curve,
    insertion_curve,
    relevance_gain,
)
from backlight.metrics.max_sensitivity import MaxSensitivity, max_sensitivity
from backlight.metrics.metric import Metric
from backlight.metrics.monotonicity_correlation import MonotonicityCorrelation, monotonicity_correlation
from backlight.metrics.parameter_randomisation import (
    ParameterRandomisation,
    RandomisationCurve,
    parameter_randomisation,
    randomisation_curve,
)
from backlight.metrics.pointing_game import PointingGame, pointing_game
from backlight.metrics.quantus_adapter import explain_func
from backlight.metrics.random_logit import RandomLogit, random_logit
from backlight.metrics.relevance_rank_accuracy import RelevanceRankAccuracy, relevance_rank_accuracy
from backlight.metrics.segmentation_overlap import SegmentationOverlap, segmentation_overlap
from backlight.metrics.sparseness import Sparseness, sparseness
from backlight.metrics.stability import Stability, stability

METRICS: dict[str, type[Metric]] = {
    found.__name__: found
    for found in (
        Infidelity,
        FaithfulnessCorrelation,
        Fidelity,
        FaithfulnessEstimate,
        MonotonicityCorrelation,
        Insertion,
        Deletion,
        RelevanceGain,
        MaxSensitivity,
        Stability,
        PointingGame,
        AttributionLocalisation,
        EnergyPointingGame,
        RelevanceRankAccuracy,
        SegmentationOverlap,
        Focus,
        Sparseness,
        RandomLogit,
        CompletenessError,
        ParameterRandomisation,
        ComplexityRise,
    )
}


def metric(name: str) -> type[Metric]:
    """A metric's class by its name; case, hyphens and underscores do not matter.

    Raises:
        UnknownNameError: a name that is not in `METRICS`.
    """
    plain = {known.lower(): known for known in METRICS}
    key = name.replace("_", "").replace("-", "").lower()
    if key not in plain:
        raise UnknownNameError("metric", name, METRICS)
    return METRICS[plain[key]]


__all__ = [
    "METRICS",
    "AttributionLocalisation",
    "Case",
    "CompletenessError",
    "ComplexityRise",
    "Curve",
    "Deletion",
    "EnergyPointingGame",
    "Explainer",
    "FaithfulnessCorrelation",
    "FaithfulnessEstimate",
    "Fidelity",
    "Focus",
    "Infidelity",
    "Insertion",
    "MaxSensitivity",
    "Metric",
    "MonotonicityCorrelation",
    "ParameterRandomisation",
    "PointingGame",
    "RandomLogit",
    "RandomisationCurve",
    "RelevanceGain",
    "RelevanceRankAccuracy",
    "SegmentationOverlap",
    "Sparseness",
    "Stability",
    "as_explainer",
    "attribution_localisation",
    "auc",
    "completeness_error",
    "complexity_rise",
    "deletion_curve",
    "energy_pointing_game",
    "explain_func",
    "faithfulness_correlation",
    "faithfulness_estimate",
    "focus",
    "infidelity",
    "insertion_curve",
    "max_sensitivity",
    "metric",
    "monotonicity_correlation",
    "parameter_randomisation",
    "pointing_game",
    "random_logit",
    "randomisation_curve",
    "relevance_gain",
    "relevance_rank_accuracy",
    "segmentation_overlap",
    "sparseness",
    "stability",
]
