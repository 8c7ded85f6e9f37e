"""Tables and figures of an insertion benchmark: areas by layer with intervals, differences, wins, controls.

A latent is the unit: the areas of its images are averaged first, and latents are resampled, because images of one
latent are alike. (The images that two latents share are not accounted for.) Wins are counted over pairs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from backlight.benchmarks.cafe_attributors import Entrant, is_control
from backlight.benchmarks.cafe_pairs import Choice
from backlight.benchmarks.report import Report, Table
from backlight.errors import MissingExtraError
from backlight.evaluation.journal import Failure, whole, write_text
from backlight.evaluation.statistics import Paired, Summary, paired, summaries
from backlight.evaluation.tables import csv_text
from backlight.shapes import Float

if TYPE_CHECKING:
    from backlight.benchmarks.cafe import CafeOptions
    from backlight.concepts.insertion_latents import InsertionTest

ALL = "all layers"
PAPER = (
    "The paper (iERF, Figure 7) shows a figure without numbers, of CLIP ViT-L/14: AttnLRP has the steepest curves and "
    "the highest area, and integrated gradients come close; KernelSHAP, the gradient and the ranking by activation are "
    "below. It says neither canvas, unit, steps, normalisation nor how many latents and images."
)


@dataclass(frozen=True)
class Layer:
    """A layer's choice of pairs, the rows of its journals, and what failed."""

    site: str
    choice: Choice
    rows: Sequence[Mapping[str, Any]]
    failures: Sequence[Failure] = ()

    def areas(self, orders: Sequence[str], column: str) -> Float[np.ndarray, "pairs M"]:
        """The areas of each pair by each order, NaN where there is none."""
        return self._table(orders, [column])[:, :, 0]

    def curves(self, orders: Sequence[str], columns: Sequence[str]) -> Float[np.ndarray, "M T"]:
        """The mean curve of each order, a latent's images averaged first."""
        found = by_latent(self._table(orders, columns).reshape(len(self.choice.pairs), -1), self.latents)
        return _nanmean(found, 0).reshape(len(orders), -1)

    @property
    def latents(self) -> list[int]:
        """The latent of each pair."""
        return [pair.latent for pair in self.choice.pairs]

    def _table(self, orders: Sequence[str], columns: Sequence[str]) -> Float[np.ndarray, "pairs M T"]:
        places = {pair.name: place for place, pair in enumerate(self.choice.pairs)}
        numbers = {name: number for number, name in enumerate(orders)}
        found = np.full((len(places), len(orders), len(columns)), np.nan)
        for row in self.rows:
            if row["method"] in numbers:
                found[places[row["sample"]], numbers[row["method"]]] = [row[column] for column in columns]
        return found


def by_latent(values: Float[np.ndarray, "pairs M"], latents: Sequence[int]) -> Float[np.ndarray, "latents M"]:
    """The mean over the pairs of each latent; what is undefined drops out."""
    groups = np.asarray(latents)
    return np.stack([_nanmean(values[groups == latent], 0) for latent in dict.fromkeys(latents)])


@dataclass(frozen=True)
class Standing:
    """An order's area on some layers: `area` over latents, `against` the reference, `pairs` that have a value."""

    area: Summary
    against: Paired
    wins: float
    pairs: int


def standings(
    layers: Sequence[Layer], orders: Sequence[str], column: str, reference: str, seed: int = 0
) -> dict[str, Standing]:
    """Of all orders, over the layers together; differences are taken pair by pair, then over latents."""
    pairs = np.concatenate([layer.areas(orders, column) for layer in layers])
    means = np.concatenate([by_latent(layer.areas(orders, column), layer.latents) for layer in layers])
    place = list(orders).index(reference)
    areas = summaries(means, seed=seed)
    shared = [layer.areas(orders, column) for layer in layers]  # pair by pair: an order may lack some of them
    differences = np.concatenate(
        [by_latent(one - one[:, [place]], layer.latents) for one, layer in zip(shared, layers, strict=True)]
    )
    against = paired(differences, np.zeros(len(differences)), True, seed=seed)
    wins = paired(pairs, pairs[:, place], True, resamples=1)
    counts = (~np.isnan(pairs)).sum(0)
    return {
        name: Standing(areas[number], against[number], wins[number].wins, int(counts[number]))
        for number, name in enumerate(orders)
    }


def cafe_report(
    name: str, layers: Sequence[Layer], runs: Sequence[Entrant], options: CafeOptions, run: Mapping[str, Any]
) -> Report:
    """The tables of all tests."""
    orders = [order for one in runs for order in one.orders if _known(layers, order)]
    reference = options.reference if options.reference in orders else orders[0]
    tables, records = [], []
    for test in options.tests:
        made, lines = _table(layers, orders, test, reference)
        tables.append(made)
        records += lines
    return Report(
        f"CAFE: insertion of patches, {name}", [*_said(layers, runs, orders, options), PAPER], tables, records, run
    )


def _known(layers: Sequence[Layer], order: str) -> bool:
    return any(row["method"] == order for layer in layers for row in layer.rows)


def _table(
    layers: Sequence[Layer], orders: Sequence[str], test: InsertionTest, reference: str
) -> tuple[Table, list[dict[str, Any]]]:
    groups = {layer.site: [layer] for layer in layers} | ({ALL: list(layers)} if len(layers) > 1 else {})
    found = {place: standings(group, orders, test.name, reference) for place, group in groups.items()}
    best = {place: _best(one, test.delete) for place, one in found.items()}
    last = list(groups)[-1]
    rows = []
    for order in orders:
        cells = [_cell(found[place][order].area, order == best[place]) for place in groups]
        one = found[last][order]
        rows.append([order, *cells, _difference(one, order == reference), str(one.pairs)])
    heads = ["order", *groups, f"minus {reference}, wins", "pairs"]
    direction = "lower is better" if test.delete else "higher is better"
    title = f"{test.name}: area under the normalised curve, {direction}"
    breaks = [row for row in range(1, len(orders)) if is_control(orders[row]) != is_control(orders[row - 1])]
    records = [
        {
            "source": "measured", "test": test.name, "layer": place, "order": order, "control": is_control(order),
            "pairs": one.pairs, **{f"area_{key}": value for key, value in asdict(one.area).items()},
            "reference": reference, "difference": one.against.mean, "difference_low": one.against.low,
            "difference_high": one.against.high, "wins": one.wins,
        }
        for place, table in found.items() for order, one in table.items()
    ]  # fmt: skip
    return Table(title, heads, rows, _notes(found, orders, test.delete), breaks), records


def _best(found: Mapping[str, Standing], delete: bool) -> str:
    """The best of the orders that have all pairs: means over other pairs are of other difficulty."""
    most = max((one.pairs for one in found.values()), default=0)
    means = {name: one.area.mean for name, one in found.items() if not is_control(name) and 0 < one.pairs == most}
    choose = min if delete else max
    return choose(means, key=means.__getitem__) if means else ""


def _cell(one: Summary, best: bool) -> str:
    if not one.n:
        return "–"
    text = f"{one.mean:.3f}" + ("" if np.isnan(one.low) else f" [{one.low:.3f}, {one.high:.3f}]")
    return f"**{text}**" if best else text


def _difference(one: Standing, itself: bool) -> str:
    if itself or not one.against.n:
        return "–"
    interval = "" if np.isnan(one.against.low) else f" [{one.against.low:+.3f}, {one.against.high:+.3f}]"
    return f"{one.against.mean:+.3f}{interval}, {100 * one.wins:.0f} %"


def _notes(found: Mapping[str, Mapping[str, Standing]], orders: Sequence[str], delete: bool) -> list[str]:
    """Where a control's mean is better than that of an attributor with as many pairs."""
    notes = []
    for place, table in found.items():
        for control in filter(is_control, orders):
            sign = -1 if delete else 1
            below = [
                name
                for name in orders
                if not is_control(name)
                and table[name].pairs == table[control].pairs
                and sign * (table[control].area.mean - table[name].area.mean) > 0
            ]
            if below:
                notes.append(f"{place}: {control} is ranked above {', '.join(below)}.")
    return notes


def _said(layers: Sequence[Layer], runs: Sequence[Entrant], orders: Sequence[str], options: CafeOptions) -> list[str]:
    rule = options.rule
    said = [
        "Patches are put onto a canvas, highest score first; z of the latent, at the token where it is largest on the "
        "whole image, is divided by its value there; mean area under that curve, with 95 % bootstrap intervals over "
        "latents (a latent's images are averaged first). In brackets of the last columns, and the share of pairs where "
        f"the order is better than {options.reference}'s.",
        f"Latents: on at {rule.least:g} to {rule.most:g} of the patch tokens, drawn with seed {rule.seed}; of each the "
        f"{rule.images} images where it is largest. Passes of the curves in {options.precision}.",
    ]
    for layer in layers:
        latents = len(dict.fromkeys(layer.latents))
        done = {row["sample"] for row in layer.rows}
        said.append(
            f"{layer.site}: {latents} of {layer.choice.admitted} admitted latents, {len(done)} pairs, from "
            f"{layer.choice.images} images; grid {layer.choice.layout.height} x {layer.choice.layout.width}."
        )
        dropped = {row["sample"] for row in layer.rows if np.isfinite(row["score"]) and row["score"] <= 1e-6}
        if dropped:
            said.append(f"{layer.site}: {len(dropped)} pairs are dropped: z is not above 0 on the whole image.")
    why = {one.method: one.reason for layer in layers for one in layer.failures}
    for name, reason in why.items():
        count = sum(one.method == name for layer in layers for one in layer.failures)
        said.append(f"{name} has no value at {count} pairs: {reason}.")
    missing = [order for one in runs for order in one.orders if order not in orders]
    if missing:
        said.append(f"Left out, without a value: {', '.join(missing)}.")
    return said


def write_curves(name: str, layers: Sequence[Layer], runs: Sequence[Entrant], options: CafeOptions) -> None:
    """`curves.csv`, and a figure a test where matplotlib is installed."""
    from backlight.concepts.insertion import budgets_of
    from backlight.viz.insertion import insertion_figure

    orders = [order for one in runs for order in one.orders if _known(layers, order)]
    lines: list[list[Any]] = []
    for test in options.tests:
        panels = {}
        for layer in layers:
            count = layer.choice.layout.count
            budgets = budgets_of(test.steps, count).tolist()
            found = layer.curves(orders, [f"{test.name} @{budget}" for budget in budgets])
            shares = [budget / count for budget in budgets]
            panels[layer.site] = (shares, dict(zip(orders, found, strict=True)))
            lines += [
                [test.name, layer.site, order, budget, value]
                for order, curve in zip(orders, found, strict=True)
                for budget, value in zip(budgets, curve, strict=True)
            ]
        try:
            figure = insertion_figure(panels, [one for one in orders if is_control(one)], f"{name} · {test.name}")
        except MissingExtraError as error:
            options.told(f"no figure: {error}")
            continue
        from backlight.benchmarks.study import slug
        from backlight.viz import save_figure

        with whole(options.out / f"curves-{slug(test.name)}.png") as partial:
            save_figure(figure, partial, "png")
    write_text(options.out / "curves.csv", csv_text(["test", "layer", "order", "budget", "value"], lines))


def _nanmean(values: np.ndarray, axis: int) -> np.ndarray:
    there = ~np.isnan(values)
    counts = there.sum(axis)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(counts > 0, np.where(there, values, 0).sum(axis) / counts, np.nan)
