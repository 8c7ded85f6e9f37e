"""The first of many threads imports timm; the others wait for the whole of it."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import sys
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

from backlight.app.messages import told
from backlight.data import ClassNames

assert "timm" not in sys.modules
start = Barrier(6)

@told
def first(number):
    if number % 2:
        import timm.models
        return len(timm.list_models())
    return len(ClassNames.imagenet())

def asked(number):
    start.wait()
    return first(number)

with ThreadPoolExecutor(6) as pool:
    found = list(pool.map(asked, range(6)))
assert found[0] == 1000 and min(found) == 1000, found
"""


def test_threads_that_need_timm_at_once_find_all_of_it() -> None:
    pytest.importorskip("gradio")
    pytest.importorskip("timm")
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
