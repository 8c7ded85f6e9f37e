"""The Python of the guides runs, and their links lead somewhere."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

import backlight
from backlight.errors import BacklightError

DOCS = Path(__file__).resolve().parents[1] / "docs"
sys.path.insert(0, str(DOCS / "site"))

from generated import addresses  # noqa: E402 - pages that are made when the site is built


@pytest.mark.parametrize(
    "name",
    [
        "app.md",
        "attn-lrp.md",
        "cafe-insertion.md",
        "engine.md",
        "language-models.md",
        "lrp.md",
        "models.md",
        "rules.md",
        "cafe.md",
        "class-activation.md",
        "concept-graphs.md",
        "concept-graph-diagnosis.md",
        "icat.md",
        "control.md",
        "baselines.md",
        "simonyan.md",
        "robustness.md",
        "srd.md",
        "evaluation.md",
        "metrics.md",
        "contribution-maps.md",
        "contributions.md",
        "contribution-statistics.md",
        "modes.md",
        "decomposition.md",
        "extraction.md",
        "concepts.md",
        "concept-codes.md",
        "concept-graph-page.md",
        "reports.md",
        "notebooks.md",
        "retina.md",
        "sparse-autoencoders.md",
    ],
)
def test_python_blocks_run(name: str) -> None:
    try:
        backlight.load("efficientnet_lite0")
    except BacklightError as error:
        pytest.skip(str(error))
    text = (DOCS / name).read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    assert blocks
    space: dict[str, object] = {}
    for block in blocks:  # one after another, as they are read
        exec(block, space)


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        if "://" not in link:
            assert (page.parent / link).exists() or link in addresses(), link


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.name)
def test_tests_that_are_named_exist(page: Path) -> None:
    tests = DOCS.parent / "tests"
    known = {name for file in tests.rglob("test_*.py") for name in re.findall(r"def (test_\w+)", file.read_text())}
    for name in re.findall(r"::(test_\w+)", page.read_text(encoding="utf-8")):
        assert name in known, name
