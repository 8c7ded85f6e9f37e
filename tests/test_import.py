"""Importing the package is cheap, and loads no optional package."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OPTIONAL = [
    "torchvision",
    "timm",
    "transformers",
    "captum",
    "matplotlib",
    "typer",
    "gradio",
    "rich",
    "PIL",
    "jaxtyping",
]
BUDGET = 0.3  # seconds beside `import torch`; the tests allow as much again for busy machines
SLACK = 0.3

PROGRAM = """
import json, sys, time
import torch
start = time.perf_counter()
import backlight
taken = time.perf_counter() - start
print(json.dumps([taken, sorted({name.split(".")[0] for name in sys.modules})]))
"""


def imported(program: str = PROGRAM) -> tuple[float, list[str]]:
    output = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout
    taken, modules = json.loads(output)
    return taken, modules


def test_importing_adds_little_to_torch() -> None:
    taken = statistics.median(imported()[0] for _ in range(3))
    assert taken < BUDGET + SLACK


def test_importing_loads_no_optional_package() -> None:
    _, modules = imported()
    assert "torch" in modules
    assert "backlight" in modules
    by_torch = imported(PROGRAM.replace("import backlight\n", ""))[1]
    assert set(OPTIONAL) & (set(modules) - set(by_torch)) == set()


def test_methods_need_no_optional_package() -> None:
    program = PROGRAM.replace("import backlight\n", "import backlight; backlight.SoftPullback; backlight.attribute\n")
    assert set(OPTIONAL) - {"jaxtyping"} & set(imported(program)[1]) - set(imported()[1]) == set()
