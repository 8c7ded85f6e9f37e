"""Settings that no sample can do with are errors where a metric is made, and name the setting and its range."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from backlight.errors import InputError, UnknownNameError
from backlight.metrics import METRICS
from backlight.metrics.allowed import COUNT, COUNT_OR_NONE, NOT_NEGATIVE, POSITIVE, Check, each, one_of, within

WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("Infidelity", {"repeats": 0}, "repeats must be a whole number at least 1, got 0"),
    ("Infidelity", {"squares": -1}, "squares"),
    ("Infidelity", {"patches": ()}, "patches must be a sequence of at least one value"),
    ("Infidelity", {"patches": (0.5, 0.0)}, "each of patches must be above 0, got 0.0"),
    ("FaithfulnessCorrelation", {"patch": -0.25}, "patch must be above 0"),
    ("FaithfulnessCorrelation", {"runs": 1}, "runs must be a whole number at least 2"),
    ("Fidelity", {"subset": 0}, "subset must be a whole number at least 1"),
    ("FaithfulnessEstimate", {"blocks": 1}, "blocks must be a whole number at least 2"),
    ("FaithfulnessEstimate", {"step": 0}, "step must be a whole number at least 1 or None"),
    ("MonotonicityCorrelation", {"n_draws": 0}, "n_draws must be a whole number at least 1"),
    ("Insertion", {"steps": 0}, "steps"),
    ("Deletion", {"sigma": 0.0}, "sigma must be above 0"),
    ("RelevanceGain", {"patch": 0}, "patch must be above 0"),
    ("MaxSensitivity", {"draws": 0}, "draws"),
    ("MaxSensitivity", {"radius": 0.0}, "radius must be above 0"),
    ("Stability", {"stdev": float("nan")}, "stdev must be above 0, got nan"),
    ("PointingGame", {"tolerance": -1.0}, "tolerance must be at least 0"),
    ("SegmentationOverlap", {"quantile": 1.0}, r"quantile must be in [0, 1), got 1.0"),
    ("SegmentationOverlap", {"hit": 2.0}, r"hit must be in [0, 1] or None"),
    ("Sparseness", {"offset": -1e-9}, "offset must be at least 0"),
    ("CompletenessError", {"stabiliser": -1.0}, "stabiliser must be at least 0"),
    ("ParameterRandomisation", {"layers": 0}, "layers"),
    ("ComplexityRise", {"bins": 0}, "bins"),
]
MISSPELLED: list[tuple[str, dict[str, Any], str]] = [
    ("Infidelity", {"scaling": "optimum"}, "optimal"),
    ("Infidelity", {"fill": "mim"}, "min"),
    ("FaithfulnessCorrelation", {"unit": "pach"}, "patch"),
    ("MonotonicityCorrelation", {"change": "squares"}, "square"),
    ("Insertion", {"canvas": "bluur"}, "blur"),
    ("Deletion", {"normalise": "imgae"}, "image"),
    ("PointingGame", {"ties": "shared"}, "share"),
    ("AttributionLocalisation", {"region": "boxes"}, "box"),
    ("EnergyPointingGame", {"part": "positives"}, "positive"),
    ("Focus", {"unit": "features"}, "feature"),
    ("RelevanceRankAccuracy", {"part": "sign"}, "signed"),
    ("SegmentationOverlap", {"shape": "masks"}, "mask"),
    ("Sparseness", {"part": "absolut"}, "absolute"),
    ("RandomLogit", {"classes": "randon"}, "random"),
    ("ParameterRandomisation", {"order": "topdown"}, "top-down"),
    ("CompletenessError", {"error": "relativ"}, "relative"),
]


@pytest.mark.parametrize(("name", "settings", "said"), WRONG)
def test_a_setting_out_of_range_is_named_with_its_range(name: str, settings: dict[str, Any], said: str) -> None:
    for make in (METRICS[name], lambda **given: METRICS[name].preset(next(iter(METRICS[name].presets)), **given)):
        with pytest.raises(InputError) as caught:
            make(**settings)
        assert said in str(caught.value)


@pytest.mark.parametrize(("name", "settings", "close"), MISSPELLED)
def test_a_name_that_does_not_exist_lists_close_matches(name: str, settings: dict[str, Any], close: str) -> None:
    with pytest.raises(UnknownNameError, match=close):
        METRICS[name](**settings)


@pytest.mark.parametrize("name", METRICS)
def test_what_is_allowed_is_said_of_settings_that_exist_and_of_every_number_and_name(name: str) -> None:
    found = METRICS[name]()
    said, settings = set(found.allowed), found.settings()
    assert said <= set(settings)
    free = {"low", "high", "seed", "mean", "std", "baseline"}  # any number will do, or the function says what will
    checked = {key for key, value in settings.items() if not isinstance(value, bool)}
    assert checked - free <= said


@pytest.mark.parametrize(
    ("check", "right", "wrong"),
    [
        (COUNT, (1, np.int64(3)), (0, 1.0, True, None, "1")),
        (COUNT_OR_NONE, (None, 2), (0, 0.5)),
        (POSITIVE, (1e-9, 3, np.float32(2)), (0, -1, float("nan"), "1", None)),
        (NOT_NEGATIVE, (0, 0.0), (-1e-9,)),
        (within(0, 1, above=True), (1, 0.5), (0, 1.1)),
        (each(POSITIVE), ((1.0,), [2, 0.5]), ((), "12", 1.0, (1.0, 0.0))),
        (one_of(("a", "b"), others=int), ("a", 3), (None, 0.5)),
    ],
)
def test_checks(check: Check, right: tuple[Any, ...], wrong: tuple[Any, ...]) -> None:
    for value in right:
        check("x", value)
    for value in wrong:
        with pytest.raises(InputError, match="x must be"):
            check("x", value)
