"""The tables of docs/benchmarks.md, read back: a method's page shows the numbers that stand there and no others."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

PAGE = Path(__file__).resolve().parents[1] / "benchmarks.md"
NO_METHOD = ("control:", "minus ")


@dataclass(frozen=True)
class Measured:
    """One column of a table: `values` by row, as written; `rising`: whether more is better."""

    network: str
    metric: str
    rising: bool
    values: dict[str, str]

    def cell(self, row: str) -> str:
        """The value, and its place among the methods."""
        own = number(self.values[row])
        if own is None:
            return self.values[row]
        others = [number(value) for name, value in self.values.items() if not name.startswith(NO_METHOD)]
        known = [value for value in others if value is not None]
        better = sum(value > own if self.rising else value < own for value in known)
        return f"{self.values[row]} ({better + 1} of {len(known)})"


def number(text: str) -> float | None:
    """A cell as a number; None where it holds none."""
    try:
        return float(text.replace("−", "-"))
    except ValueError:
        return None


@cache
def measured() -> list[Measured]:
    """Every column of every table of methods, in the order of the page."""
    found: list[Measured] = []
    for section in re.split(r"^###? ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE):
        network = re.match(r"(\w+), means of", section)
        # the first table: others follow under the same heading
        table = re.search(r"(?:^\|.*\n)+", section, flags=re.MULTILINE)
        if network is None or table is None:
            continue
        lines = table[0].splitlines()
        head, _, *rows = [[cell.strip(" *") for cell in line.strip("|").split("|")] for line in lines]
        for place, title in enumerate(head[1:], 1):
            values = {row[0]: row[place] for row in rows if row[place] not in ("–", "")}
            found.append(Measured(network[1], title.rstrip(" ↑↓"), title.endswith("↑"), values))
    return found
