"""Tables of a store's statistics, for readers and for programs, beside the published numbers."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from backlight.contributions.statistics import Median
from backlight.evaluation.journal import whole, write_text

if TYPE_CHECKING:
    from backlight.contributions.layer_statistics import LayerStatistics, QuantityStatistics, StoreStatistics

Widths = tuple[int, ...]
HEAD = ("site", "quantity", "channels", "statistic", "value", "low", "high", "n", "undefined", "published")

_PUBLISHED: dict[tuple[str, str], tuple[Widths, str]] = {  # widths, and how an address ends
    ("ResNet-50", "blocks"): ((256,) * 3 + (512,) * 4 + (1024,) * 6 + (2048,) * 3, ""),
    ("ViT-B", "tokens"): ((768,) * 12, ""),
    ("ViT-B", "mlp"): ((3072,) * 12, ":input"),
    ("ViT-B", "attention"): ((768,) * 12, ":input"),
}


@cache
def published() -> dict[tuple[str, str, str, str], tuple[float, ...]]:
    """The paper's curves, by network, kind of sites, quantity and statistic: a value a layer."""
    text = resources.files("backlight.contributions").joinpath("numbers", "statistics.csv").read_text(encoding="utf-8")
    found: dict[tuple[str, str, str, str], tuple[float, ...]] = {}
    for row in csv.DictReader(io.StringIO(text)):
        key = row["network"], row["sites"], row["quantity"], row["statistic"]
        found[key] = (*found.get(key, ()), float(row["value"]))
    return found


def groups(layers: Sequence[LayerStatistics]) -> list[tuple[LayerStatistics, ...]]:
    """Layers of one kind together: as many of each address up to its numbers (tokens, MLPs and heads of a ViT)."""
    found: dict[str, tuple[LayerStatistics, ...]] = {}
    for layer in layers:
        kind = re.sub(r"\d+", "#", layer.site)
        found[kind] = (*found.get(kind, ()), layer)
    lengths = {len(group) for group in found.values()}
    return list(found.values()) if len(lengths) == 1 and lengths != {1} else [tuple(layers)]


def curve(group: Sequence[LayerStatistics], quantity: str, statistic: str) -> tuple[str, tuple[float, ...]] | None:
    """(network, published values) where number, width and kind of the sites are those of a published curve."""
    widths = tuple(one.channels for layer in group for one in layer.quantities.values() if one.quantity == quantity)
    for (network, kind), (wanted, end) in _PUBLISHED.items():
        entering = {layer.site.endswith(":input") for layer in group}
        if widths == wanted and entering == {end == ":input"}:
            values = published().get((network, kind, quantity, statistic))
            return None if values is None else (f"{network}, {kind}", values)
    return None


def rows(statistics: StoreStatistics) -> Iterator[dict[str, Any]]:
    """A row a site, quantity and statistic: the table as a program reads it."""
    for group in groups(statistics.layers):
        for place, layer in enumerate(group):
            for quantity, one in layer.quantities.items():
                for name, values in _numbers(one):
                    known = curve(group, quantity, name)
                    beside = {"published": None if known is None else known[1][place]}
                    about = {"site": layer.site, "quantity": quantity, "channels": one.channels, "statistic": name}
                    yield {**dict.fromkeys(HEAD), **about, **values, **beside}
            first, names = next(iter(layer.quantities.values())), " - ".join(layer.quantities)
            for name, found in (("hoyer", layer.difference), ("gross_hoyer", layer.gross_difference)):
                if found is not None:
                    about = {"site": layer.site, "quantity": names, "channels": first.channels, "statistic": name}
                    yield {**dict.fromkeys(HEAD), **about, **_interval(found)}


def _numbers(one: QuantityStatistics) -> Iterator[tuple[str, dict[str, Any]]]:
    yield "hoyer", _interval(one.hoyer)
    yield "gross_hoyer", _interval(one.gross_hoyer)
    yield "sign_correlation", _interval(one.sign_correlation)
    if one.dimensions is not None:
        halves = one.dimensions.halves or (None, None)
        yield "dimensions", {"value": one.dimensions.components}
        yield "dimensions of half the images", {"value": halves[0]}
        yield "dimensions of the other half", {"value": halves[1]}
        yield "dimensions of permuted classes", {"value": one.dimensions.permuted}
    if one.heads is not None:
        yield "head_hoyer", _interval(one.heads.learned)
        yield "head_hoyer of random heads", _interval(one.heads.random)
        yield "head_hoyer learned - random", _interval(one.heads.difference)


def _interval(one: Median) -> dict[str, Any]:
    return {"value": one.median, "low": one.low, "high": one.high, "n": one.n, "undefined": one.undefined}


def columns(statistics: StoreStatistics, intervals: bool = True) -> tuple[list[str], list[list[str]]]:
    """A table for readers: its head, and a row a site. Medians, with their intervals; published values in brackets."""
    heads = any(one.heads for layer in statistics.layers for one in layer.quantities.values())
    signed = {
        name: any(layer.quantities[name].sign_correlation.n for layer in statistics.layers if name in layer.quantities)
        for name in statistics.quantities
    }
    head = ["site", "channels"]
    head += [f"Hoyer, {name}" for name in statistics.quantities]
    head += ["Hoyer, difference", "gross difference"] if len(statistics.quantities) > 1 else []
    head += [f"r(P, -N), {name}" for name in statistics.quantities if signed[name]]
    head += [f"PCs, {name}" for name in statistics.quantities] if statistics.classes > 2 else []
    head += [f"heads, {name}" for name in statistics.quantities] if heads else []
    table = []
    for group in groups(statistics.layers):
        for place, layer in enumerate(group):
            cells = {"site": layer.site, "channels": str(next(iter(layer.quantities.values())).channels)}
            for name, found in (("Hoyer, difference", layer.difference), ("gross difference", layer.gross_difference)):
                cells[name] = "" if found is None else _shown(found, intervals, "+")
            for name, one in layer.quantities.items():
                known = {key: curve(group, name, key) for key in ("hoyer", "sign_correlation", "dimensions")}
                beside = {key: "" if its is None else f" ({its[1][place]:.4g})" for key, its in known.items()}
                cells[f"Hoyer, {name}"] = _shown(one.hoyer, intervals) + beside["hoyer"]
                cells[f"r(P, -N), {name}"] = _shown(one.sign_correlation, intervals) + beside["sign_correlation"]
                means = one.dimensions
                cells[f"PCs, {name}"] = "" if means is None else f"{means.components}{beside['dimensions']}"
                cells[f"heads, {name}"] = _heads(one, intervals)
            table.append([cells.get(name, "") for name in head])
    return head, table


def _shown(one: Median, intervals: bool, plus: str = "") -> str:
    if one.median is None:
        return "-"
    known = intervals and one.low is not None and one.high is not None
    bounds = f" [{one.low:{plus}.3f}, {one.high:{plus}.3f}]" if known else ""
    return f"{one.median:{plus}.3f}{bounds}"


def _heads(one: QuantityStatistics, intervals: bool) -> str:
    if one.heads is None or one.heads.random.median is None:
        return ""
    return f"{_shown(one.heads.learned, intervals)}, random {one.heads.random.median:.3f} ± {one.heads.deviation:.3f}"


def notes(statistics: StoreStatistics) -> list[str]:
    """What a reader of the table must know."""
    level = f"{100 * statistics.settings['level']:g} %"
    found = [f"Medians over {statistics.samples} images, with {level} intervals over images (order statistics)."]
    if len(statistics.quantities) > 1:
        found.append("Gross: of P - N, so that what a channel says for and against adds up, and does not cancel.")
    if statistics.classes > 2:
        share = f"{100 * statistics.settings['share']:g} %"
        found.append(
            f"PCs: principal components to {share} of the variance of {statistics.classes} class means (by "
            f"{statistics.grouped_by}) of {statistics.images} images, at least {statistics.fewest} a class; at most "
            f"{statistics.classes - 1}. They rise with the number of classes, and with the noise of few images."
        )
    undefined = sum(one.hoyer.undefined for layer in statistics.layers for one in layer.quantities.values())
    if undefined:
        found.append(f"{undefined} rows are zero in all channels: they have no sparsity, and are left out.")
    names = {
        known[0]
        for group in groups(statistics.layers)
        for name in statistics.quantities
        if (known := curve(group, name, "hoyer"))
    }
    if names:
        found.append(f"In brackets: the paper's numbers, of its weights and images ({'; '.join(sorted(names))}).")
    return found


def markdown(statistics: StoreStatistics) -> str:
    """The table and its notes."""
    head, table = columns(statistics)
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}", *(f"| {' | '.join(row)} |" for row in table)]
    return "\n".join(lines) + "\n\n" + "\n".join(notes(statistics)) + "\n"


def write_tables(statistics: StoreStatistics, folder: Path) -> list[Path]:
    """`statistics.csv`, `.md`, `.json`, and `.npz`: the values by image, as `site/quantity/statistic`."""
    folder.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    writer = csv.DictWriter(text, HEAD, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows(statistics))
    record = {**statistics.record(), "store": statistics.identity}
    paths = [folder / f"statistics.{end}" for end in ("csv", "md", "json", "npz")]
    write_text(paths[0], text.getvalue())
    write_text(paths[1], markdown(statistics))
    write_text(paths[2], json.dumps(record, indent=2, allow_nan=False, default=str) + "\n")
    arrays = {
        f"{layer.site}/{name}/{key}": values
        for layer in statistics.layers
        for name, one in layer.quantities.items()
        for key, values in one.values.items()
    }
    with whole(paths[3]) as partial, partial.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
    return paths
