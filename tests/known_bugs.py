"""Tests that show a bug of the package: pattern of the test's name -> what is wrong.

They are expected to fail, strictly: whoever mends the bug deletes its line here.
"""

from __future__ import annotations

KNOWN_BUGS: dict[str, str] = {}
