"""Shared by all tests: shapes are checked at run time, seeds are fixed, tests for a GPU are skipped without one."""

from __future__ import annotations

import gc
from pathlib import Path

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
