"""What a method of the registry cannot keep of the conformance suite, with the reason: expected failures, strict."""

from __future__ import annotations

# (method, test function, pattern of the test's other parameters, reason)
CANNOT: list[tuple[str, str, str, str]] = []
