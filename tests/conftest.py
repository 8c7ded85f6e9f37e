"""Shared by all tests: shapes are checked at run time, seeds are fixed, tests for a GPU are skipped without one."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from shape_checks import install

ROOT = Path(__file__).resolve().parents[1]


def _modules_with_shapes() -> list[str]:
    """The modules of the package that annotate shapes; the others are left to the type checker."""
    files = [file for file in (ROOT / "backlight").rglob("*.py") if "backlight.shapes import" in file.read_text()]
    return [".".join(file.relative_to(ROOT).with_suffix("").parts) for file in files]


install(_modules_with_shapes())  # before the package is imported

import torch  # noqa: E402

torch.set_num_threads(1)  # the tensors are small: more threads wait for each other
DATA = ROOT.parent / "shared" / "data"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `gpu` are skipped where there is no CUDA device."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


def pytest_collection_finish() -> None:
    """What is imported stays: collections of garbage, which some tests ask for, need not look through it again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of test pictures and weights, beside the repository; tests that need it are skipped without it."""
    if not DATA.is_dir():
        pytest.skip(f"no test data at {DATA}")
    return DATA


CHROMIUM = ("/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome")


def _missing(why: str) -> Any:
    """No browser is a reason to skip, unless the tests were told that there must be one."""
    if os.environ.get("BACKLIGHT_BROWSER") == "required":
        pytest.fail(f"BACKLIGHT_BROWSER=required, but {why}")
    pytest.skip(why)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """A headless Chromium, driven by Playwright, of which a process has one at a time."""
    try:
        from playwright.sync_api import sync_playwright
    except ModuleNotFoundError:
        _missing("playwright is not installed")
    path = next((path for path in CHROMIUM if Path(path).exists()), None)
    if path is None:
        _missing("there is no Chromium")
    with sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        yield chromium
        chromium.close()
