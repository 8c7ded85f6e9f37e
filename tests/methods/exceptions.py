"""What a method of the registry cannot keep of the conformance suite, with the reason: expected failures, strict."""

from __future__ import annotations

# (method, test function, pattern of the test's other parameters, reason)
CANNOT: list[tuple[str, str, str, str]] = [
    *(
        (name, "test_the_spelling_of_a_network_does_not_matter", pattern, reason)
        for name, reason in {
            "DeepLIFT": "Captum hooks modules that are called once: functions get the gradient, or raise where strict",
            "ScoreCAM": "pytorch-grad-cam hooks modules: a function's result is none, so another map is the last",
            "AblationCAM": "pytorch-grad-cam hooks modules: a function's result is none, so another map is the last",
        }.items()
        for pattern in ("[!m]*", "maximum*")
    ),
    (
        "DeepLIFT",
        "test_autocast_runs_and_points_the_same_way",
        "*",
        "Captum's hooks give a gradient of another type than autocast's",
    ),
]
