"""The protocols are the papers': every setting that they or their code state, by value."""

from __future__ import annotations

import pytest

from backlight.benchmarks import protocols
from backlight.benchmarks.protocols import (
    ABLATIONS,
    ACTIVATIONS,
    FOCUS,
    LOCAL,
    OBJECTS,
    PULLBACKS,
    REFINEMENT,
    STAGE,
    Protocol,
)  # fmt: skip
from backlight.benchmarks.published import TABLES, published
from backlight.errors import UnknownNameError
from backlight.methods import method
from backlight.metrics import metric

EVERY = [PULLBACKS, FOCUS, LOCAL, REFINEMENT, ACTIVATIONS, *ABLATIONS]


def settings(protocol: Protocol, name: str, quick: bool = False) -> dict:
    """All settings of a row, defaults too."""
    row = protocol.rows[name]
    return {**method(row.method).settings(), **row.settings, **((row.quick or {}) if quick else {})}


def column(protocol: Protocol, name: str, quick: bool = False) -> dict:
    """All settings of a column."""
    one = protocol.columns[name]
    return metric(one.metric).preset(one.preset, **one.settings, **((one.quick or {}) if quick else {})).settings()


@pytest.mark.parametrize("protocol", EVERY, ids=lambda protocol: protocol.name)
def test_settings_are_settings(protocol: Protocol) -> None:
    assert protocol.baseline in protocol.rows
    assert protocol.table in TABLES
    for row in protocol.rows.values():
        known = method(row.method).settings()
        assert set(row.settings) <= set(known)
        assert set(row.quick or {}) <= set(known)
    for quick in (False, True):
        for name in protocol.columns:
            assert column(protocol, name, quick)


@pytest.mark.parametrize("protocol", EVERY, ids=lambda protocol: protocol.name)
def test_published_rows_are_all_found(protocol: Protocol) -> None:
    """No row's published name is misspelled, and no published method has no row."""
    theirs = {one.row for one in published(protocol.table)} - {"the network"}
    ours = {row.published for row in protocol.rows.values() if row.published is not None}
    assert ours <= theirs
    if protocol not in ABLATIONS:
        assert ours == theirs
    assert {one.column for one in published(protocol.table)} - {"accuracy"} <= set(protocol.columns)


def test_ablations_together_have_every_published_row() -> None:
    ours = {row.published for protocol in ABLATIONS for row in protocol.rows.values()}
    assert {one.row for one in published("ablations")} <= ours


def test_baselines_of_semantic_pullbacks() -> None:
    for name in ("SmoothGrad", "SmoothPullback"):
        found = settings(PULLBACKS, name)
        assert (found["n_samples"], found["stdev"]) == (50, 0.15)
    for name in ("FusionGrad", "FusionPullback"):
        found = settings(PULLBACKS, name)
        assert (found["n_weights"], found["n_samples"], found["weight_stdev"], found["stdev"]) == (10, 10, 0.1, 0.15)
    found = settings(PULLBACKS, "IntegratedGradients")
    assert (found["n_steps"], found["rule"], found["baseline"]) == (10, "trapezoid", None)
    found = settings(PULLBACKS, "GradientSHAP")
    assert (found["n_samples"], found["stdev"], found["baseline"]) == (5, 0.0, None)
    for name in ("PullbackAscent", "GradientAscent"):
        found = settings(PULLBACKS, name)
        assert (found["n_steps"], found["step"], found["normalise"], found["project"]) == (5, 20.0, True, "never")
    for name in ("SoftPullback", "PullbackAscent", "SmoothPullback", "FusionPullback"):
        assert settings(PULLBACKS, name)["temperature"] == "paper"
        assert settings(PULLBACKS, f"{name} (relative)")["temperature"] == "relative"
    assert PULLBACKS.rows["Gradient"].method == "Saliency"
    assert PULLBACKS.rows["GuidedGradCAM"].layers["resnet50"] == "layer4.2.conv3"
    assert PULLBACKS.numbers[0] == 1000
    assert FOCUS.numbers[0] == 500


def test_metrics_of_semantic_pullbacks() -> None:
    found = column(PULLBACKS, "Infidelity")
    assert found["patches"] == (1 / 2, 1 / 4)
    assert (found["repeats"], found["cumulative"], found["scaling"]) == (5, True, "optimal")
    assert (found["low"], found["high"]) == (-1, 1)
    found = column(PULLBACKS, "FaithfulnessCorrelation")
    assert (found["unit"], found["patch"], found["fill"], found["absolute"]) == ("patch", 1 / 4, 0.0, True)
    assert (column(PULLBACKS, "FaithfulnessEstimate")["blocks"], column(PULLBACKS, "FaithfulnessEstimate")["fill"]) == (
        48,
        0.0,
    )
    found = column(PULLBACKS, "MonotonicityCorrelation")
    assert (found["blocks"], found["n_draws"], found["low"], found["high"]) == (48, 10, -1, 1)
    found = column(PULLBACKS, "MaxSensitivity")
    assert (found["draws"], found["radius"]) == (10, 0.02)
    first = list(PULLBACKS.columns)[:6]
    assert first == [
        "Infidelity", "FaithfulnessCorrelation", "MonotonicityCorrelation", "FaithfulnessEstimate", "MaxSensitivity",
        "RandomLogit",
    ]  # fmt: skip


def test_metrics_of_ierf() -> None:
    assert column(LOCAL, "PointingGame")["tolerance"] == 15
    found = column(LOCAL, "AttributionLocalisation")
    assert found["part"] == "positive"
    found = column(LOCAL, "Fidelity")
    assert (found["unit"], found["subset"], found["fill"], found["absolute"]) == ("position", 200, 0.0, False)
    found = column(LOCAL, "Stability")
    assert (found["stdev"], found["draws"]) == (0.1, 200)
    assert LOCAL.columns["PointingGame"].samples == OBJECTS
    assert LOCAL.numbers[0] == 752


def test_methods_of_ierf() -> None:
    assert settings(LOCAL, "LRP z+")["composite"] == "zplus"
    assert settings(LOCAL, "LayerCAM (high)")["layer"] == STAGE
    assert [settings(LOCAL, f"SRD ({place})")["resolution"] for place in ("low", "high", "input")] == [
        "low",
        "high",
        "input",
    ]
    assert {settings(LOCAL, f"SRD ({place})")["head"] for place in ("low", "high", "input")} == {"clamped"}
    assert [row.settings["head"] for row in REFINEMENT.rows.values()] == ["raw", "mean", "clamped"]


def test_ablations_change_one_setting() -> None:
    soft, ascent = ABLATIONS
    assert settings(soft, "SoftPullback (tau relu 0.3)")["temperature"] == {"relu": 0.3}
    assert [name for name in ascent.rows if "n_steps" in name] == [
        f"PullbackAscent (n_steps {count})" for count in (1, 2, 3, 10)
    ]
    assert [ascent.rows[f"PullbackAscent (step {size})"].settings["step"] for size in (5, 10, 40)] == [5, 10, 40]
    assert settings(ascent, "PullbackAscent (step 5)")["n_steps"] == 5
    assert settings(ascent, "PullbackAscent (n_steps 10)")["step"] == 20.0
    assert list(soft.columns) == ["Infidelity", "FaithfulnessCorrelation", "FaithfulnessEstimate", "RandomLogit"]


def test_quick_replaces_settings_and_nothing_else() -> None:
    assert settings(PULLBACKS, "SmoothGrad", quick=True)["n_samples"] == 4
    assert settings(PULLBACKS, "SmoothGrad", quick=True)["stdev"] == 0.15
    assert column(PULLBACKS, "MaxSensitivity", quick=True)["draws"] == 1
    assert column(PULLBACKS, "FaithfulnessEstimate", quick=True)["blocks"] == 12
    assert [name for name, row in LOCAL.rows.items() if row.quick is None] == ["ScoreCAM", "AblationCAM"]


@pytest.mark.parametrize(
    ("table", "network", "row", "name", "mean", "std"),
    [
        ("pullbacks", "ResNet50", "SoftPullback", "Infidelity", 5.989, 5.67),
        ("pullbacks", "ResNet50", "InputXGradient", "Infidelity", 73.188, 62.6),  # printed as DeepLift
        ("pullbacks", "VGG11-BN", "GradientAscent", "RandomLogit", 6.65e-4, 0.07),
        ("pullbacks", "PVT-v2-B1", "PullbackAscent", "Infidelity", 1.634, 1.03),
        ("pullbacks", "VGG11-BN", "GuidedGradCAM", "MonotonicityCorrelation", 0.529, 0.41),
        ("pullbacks", "PVT-v2-B1", "SmoothGrad", "MonotonicityCorrelation", 0.28, 0.38),
        ("ablations", "ResNet50", "SoftPullback (tau relu 0.3)", "Infidelity", 26.662, 35.97),
        ("ablations", "PVT-v2-B1", "PullbackAscent (n_steps 10)", "Infidelity", 1.571, 1.14),
        ("focus", "ResNet50", "SoftPullback", "Focus", 0.7483, 0.1344),
        ("focus", "PVT-v2-B1", "PullbackAscent", "Focus", 0.5531, 0.0948),
        ("timing", "VGG11-BN", "FusionGrad", "seconds", 7.383, None),
        ("local", "ResNet50", "SRD (high)", "AttributionLocalisation", 0.579, None),
        ("local", "VGG16", "ScoreCAM", "AttributionLocalisation", 0.582, None),
        ("refinement", "VGG16", "SRD (clamped)", "Sparseness", 0.788, None),
        ("activations", "ResNet50 with Swish", "SRD", "Fidelity", 0.194, None),
        ("activations", "ResNet50 with Tanh", "the network", "accuracy", 0.685, None),
    ],
)
def test_published_numbers(table: str, network: str, row: str, name: str, mean: float, std: float | None) -> None:
    (found,) = [one for one in published(table) if (one.network, one.row, one.column) == (network, row, name)]
    assert (found.mean, found.std) == (mean, std)


def test_published_numbers_are_complete() -> None:
    """12 methods on two networks and 11 on PVT, six metrics; 17 methods, five metrics, two networks; each once."""
    counts = {table: len(published(table)) for table in TABLES}
    assert counts["pullbacks"] == (12 + 12 + 11) * 6
    assert counts["local"] == 17 * 5 * 2
    assert counts["refinement"] == 3 * 5 * 2
    assert counts["timing"] == 12 + 12 + 11
    assert counts["activations"] == 11 * 6 + 1 + 6
    for table in TABLES:
        keys = [(one.network, one.row, one.column) for one in published(table)]
        assert len(set(keys)) == len(keys)
    assert all(one.source for table in TABLES for one in published(table))


def test_unknown_tables_are_named() -> None:
    with pytest.raises(UnknownNameError, match="pullbacks"):
        published("pullback")


def test_the_stage_is_no_layer_name() -> None:
    assert "/" in protocols.STAGE
