"""The papers' numbers, one table a file: by network, row and column, with the table that they come from."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache
from importlib import resources

from backlight.errors import UnknownNameError

TABLES = ("pullbacks", "ablations", "focus", "timing", "local", "refinement", "activations")


@dataclass(frozen=True)
class Published:
    """A number of a paper. `std`: over `count` samples; None where the paper does not say.

    Rows and columns have the names of the methods and metrics here: what Semantic Pullbacks prints as "DeepLift" is
    gradient x input, by its code, and stands under `InputXGradient`.
    """

    source: str
    network: str
    row: str
    column: str
    mean: float
    std: float | None
    count: int | None


@cache
def published(table: str) -> tuple[Published, ...]:
    """The numbers of one of `TABLES`, in the paper's order.

    Raises:
        UnknownNameError: another name.
    """
    if table not in TABLES:
        raise UnknownNameError("table of published numbers", table, TABLES)
    text = (resources.files(__package__) / "numbers" / f"{table}.csv").read_text(encoding="utf-8")
    return tuple(
        Published(
            row["source"], row["network"], row["row"], row["column"], float(row["mean"]),
            float(row["std"]) if row["std"] else None, int(row["count"]) if row["count"] else None,
        )
        for row in csv.DictReader(text.splitlines())
    )  # fmt: skip
