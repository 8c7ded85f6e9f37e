"""The coverage table: which operation was answered by which rule, how often, and in which layers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from backlight.displayed import Displayed


@dataclass(frozen=True)
class CoverageRow:
    """`calls` differentiated calls of an operation that got the same answer.

    `rule` is a rule's label; `exact` where autograd's product is the adjoint (affine and structural operations);
    `gradient` where the plain gradient is what was asked for; `gradient (no rule)` where it was only let through.
    """

    operation: str
    rule: str
    calls: int
    layers: tuple[str, ...]


class Coverage(Displayed):
    """Counts calls by operation and rule; iterates over its rows, most calls first."""

    def __init__(self) -> None:
        self._calls: dict[tuple[str, str], int] = {}
        self._layers: dict[tuple[str, str], dict[str, None]] = {}

    def add(self, operation: str, rule: str, layer: str, calls: int = 1) -> None:
        """Count `calls` calls."""
        key = (operation, rule)
        self._calls[key] = self._calls.get(key, 0) + calls
        self._layers.setdefault(key, {})[layer] = None

    def merge(self, other: Coverage) -> None:
        """Add another table's counts to this one's."""
        for row in other:
            for layer in row.layers[1:]:
                self.add(row.operation, row.rule, layer, 0)
            self.add(row.operation, row.rule, row.layers[0], row.calls)

    def __iter__(self) -> Iterator[CoverageRow]:
        for key, calls in sorted(self._calls.items(), key=lambda item: (-item[1], item[0])):
            yield CoverageRow(*key, calls, tuple(self._layers[key]))

    def calls(self, operation: str | None = None, rule: str | None = None) -> int:
        """How many calls an operation had, or a rule answered."""
        return sum(row.calls for row in self if operation in (None, row.operation) and rule in (None, row.rule))

    @property
    def uncovered(self) -> tuple[CoverageRow, ...]:
        """The rows whose operations no rule answers for."""
        return tuple(row for row in self if row.rule == "gradient (no rule)")

    def __repr__(self) -> str:
        return f"Coverage({len(self._calls)} operations and rules, {sum(self._calls.values())} calls)"

    def __str__(self) -> str:
        rows = [("operation", "rule", "calls"), *((row.operation, row.rule, str(row.calls)) for row in self)]
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        return "\n".join(f"{a:<{widths[0]}}  {b:<{widths[1]}}  {c:>{widths[2]}}" for a, b, c in rows)
