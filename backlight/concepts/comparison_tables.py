"""Tables of a comparison of dictionaries, with the paper's numbers beside."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from backlight.decompositions.folder import write_json
from backlight.evaluation.journal import write_text

COMPARISON, MARKDOWN, CSV = "comparison.json", "comparison.md", "comparison.csv"


@dataclass(frozen=True)
class Compared:
    """A dictionary of a layer, coded by a coder. `fitted`, `held_out`: rows; all numbers are of those held out.

    `relative`: mean of |x - x_hat| / |x|; above 1 is worse than to say 0; None where all rows are 0. `ratio`:
    1 - l0 / modes. `alive`: modes that are on in a row. `seconds`: of the fit, by the clock.
    """

    site: str
    extractor: str
    coder: str
    channels: int
    modes: int
    fitted: int
    held_out: int
    relative: float | None
    ratio: float
    l0: float
    r2: float | None
    alive: int
    seconds: float | None

    @property
    def share(self) -> float:
        """K / N: modes for each row that was fitted. Towards 1, a dictionary of centroids is a table of its rows."""
        return self.modes / self.fitted


@dataclass(frozen=True)
class Comparison:
    """What `compare` found: `rows`, by site, extractor and coder; `identity`, the settings; `folder`."""

    rows: tuple[Compared, ...]
    identity: dict[str, Any]
    folder: Path

    def best(self, site: str, coder: str) -> Compared:
        """The dictionary of the least relative error at a site, under a coder."""
        own = [one for one in self.rows if (one.site, one.coder) == (site, coder) and one.relative is not None]
        return min(own, key=lambda one: one.relative or 0.0)


@cache
def published() -> dict[tuple[str, str], tuple[float, float]]:
    """Table III: (Rel-l2, l0 ratio) by extractor and block of ResNet-50, as "1.1"; its SAE is `ReLUSAE`."""
    text = resources.files("backlight.concepts").joinpath("numbers", "extractors.csv").read_text(encoding="utf-8")
    rows = csv.DictReader(io.StringIO(text))
    return {(row["extractor"], row["layer"]): (float(row["relative"]), float(row["ratio"])) for row in rows}


def published_beside(one: Compared) -> tuple[float, float] | None:
    """The paper's numbers for a site named as ResNet's blocks are, "layer1.1", with its 8 concepts a channel.

    Its centroids and atoms are coded by the LASSO, its SAEs by their encoders; other coders have no number beside.
    """
    block = re.fullmatch(r"layer([1-4]\.\d+)", one.site)
    extractor = one.extractor.partition(":")[0]
    coder = "own encoder" if extractor == "ReLUSAE" else "Lasso"
    if block is None or one.coder != coder or one.modes != 8 * one.channels:
        return None
    return published().get((extractor, block[1]))


def markdown(found: Comparison) -> str:
    """The comparison as a table, and Table III of the paper under it."""
    coders = "; ".join(f"{name} {settings}" for name, settings in found.identity["coders"].items())
    lines = [
        f"Held out: {found.identity['held_out']:g} of the rows (seed {found.identity['seed']}). Coders: {coders}.",
        "",
        "| layer | extractor | coder | K | K/N | Rel-l2 ↓ | l0 ratio ↑ | on a row | alive | R2 | paper: Rel-l2 | l0 |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for one in found.rows:
        beside = published_beside(one) or (None, None)
        cells = [f"`{one.site}`", one.extractor, one.coder, str(one.modes), f"{one.share:.3f}"]
        cells += [_number(one.relative, 3), f"{one.ratio:.4f}", f"{one.l0:.1f}", str(one.alive), _number(one.r2, 3)]
        lines.append("| " + " | ".join([*cells, *(_number(value, 4) for value in beside)]) + " |")
    return "\n".join([*lines, "", *_table_iii(), ""])


def _table_iii() -> Iterator[str]:
    layers = sorted({layer for _, layer in published()})
    yield "The paper's Table III: ResNet-50, 8 concepts a channel, 50,000 vectors; which it measures on is not said."
    yield ""
    yield "| extractor | metric | " + " | ".join(layers) + " |"
    yield "|---|---|" + "---|" * len(layers)
    for extractor in dict.fromkeys(name for name, _ in published()):
        for place, metric in enumerate(("Rel-l2 ↓", "l0 ratio ↑")):
            values = (published().get((extractor, layer)) for layer in layers)
            cells = ("–" if value is None else f"{value[place]:.4f}" for value in values)
            yield f"| {extractor} | {metric} | " + " | ".join(cells) + " |"


def write_tables(found: Comparison) -> None:
    """`comparison.md`, `comparison.csv` and `comparison.json`."""
    write_text(found.folder / MARKDOWN, markdown(found))
    text = io.StringIO()
    names = [one.name for one in fields(Compared)]
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*names, "share", "paper_relative", "paper_ratio"])
    for one in found.rows:
        values = ["" if getattr(one, name) is None else getattr(one, name) for name in names]
        writer.writerow([*values, one.share, *(published_beside(one) or ("", ""))])
    write_text(found.folder / CSV, text.getvalue())
    rows = [asdict(one) for one in found.rows]
    write_json(found.folder / COMPARISON, {"rows": rows, "identity": found.identity})


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"
