"""What results made of numbers show in a notebook."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from backlight.viz.report_markup import Markup, escape, join, number, table, tag

if TYPE_CHECKING:
    from backlight.concepts.bank import Bank
    from backlight.concepts.concepts import Concepts
    from backlight.contributions.contribution import Contributions
    from backlight.contributions.control_curves import ControlCurves
    from backlight.contributions.control_study import ControlStudy
    from backlight.contributions.decomposed import Decomposed
    from backlight.decompositions import Decomposition
    from backlight.engine.coverage import Coverage
    from backlight.evaluation import Evaluation
    from backlight.models import LoadedModel
    from backlight.text import ExplainedText

FEW = 10  # rows


def coverage(found: Coverage) -> Markup:
    """Operations, rules, calls; what no rule answers for is bold."""
    missing = set(found.uncovered)
    rows = [
        (row.operation, tag("b", row.rule) if row in missing else row.rule, str(row.calls), str(len(row.layers)))
        for row in found
    ]
    return table(("operation", "rule", "calls", "layers"), rows)


def loaded_model(found: LoadedModel) -> Markup:
    """What it is, what it takes and gives."""
    from backlight.viz.report_model import parameter_counts

    counts, pre = parameter_counts(found.model), found.preprocessing
    outputs = f"{len(found.classes)} classes" if len(found.classes) else f"each a {found.classes.unit}"
    size = f"{pre.size[0]} × {pre.size[1]}, mean {_few(pre.mean)}, std {_few(pre.std)}"
    return pairs(
        {
            "name": found.name, "class": type(found.model).__name__, "weights": found.source,
            "parameters": f"{counts['parameters']:,} ({', '.join(counts['types'])})", "input": size,
            "outputs": outputs, "layers": f"{len(found.layers)}, from {found.layers[0]} to {found.layers[-1]}"
            if found.layers else "0",
        }
    )  # fmt: skip


def contributions(found: Contributions) -> Markup:
    """By site: what all units contribute together, and the strongest channels, at the first sample."""
    rows = []
    for site, value in found.values.items():
        one = value[0].double()
        channels = one.flatten(1).sum(1) if one.ndim > 1 else one
        best = channels.abs().argsort(descending=True)[:5].tolist()
        strongest = ", ".join(f"{place}: {number(float(channels[place]))}" for place in best)
        residual = found.residual.get(site)
        missed = "–" if residual is None else number(float(residual[0]), 2)
        rows.append((site, str(list(value.shape)), number(float(one.sum()), 4), missed, strongest))
    heads = ("site", "shape", "sum", "residual", "first axis: strongest")
    scores = f"score {number(float(found.scores[0]), 4)}"
    if found.baseline_scores is not None:
        scores += f", at the baseline {number(float(found.baseline_scores[0]), 4)}"
    said = f"{scores}; {found.cost.forwards} forward and {found.cost.backwards} backward passes"
    return join([table(heads, rows), tag("p", f"{said}; the first of {len(found.scores)} samples.")])


def decomposition(found: Decomposition) -> Markup:
    """A dictionary: its kind, settings, and modes where it is fitted."""
    modes = " × ".join(map(str, found.modes.shape)) if found.state else "not fitted"
    told = {"kind": type(found).__name__, "formula": found.formula, "source": found.source, "modes × channels": modes}
    return pairs({**told, **{name: _word(value) for name, value in found.settings().items()}})


def decomposed(found: Decomposed) -> Markup:
    """The dictionary, its rows, and how well it tells them."""
    return _fitted(found.decomposition, found.site, found.loadings.shape, found.alive, found.report, found.folder)


def concepts(found: Concepts) -> Markup:
    """The dictionary, its codes, and how well they tell the bank's vectors."""
    own = _fitted(
        found.dictionary, found.site, found.codes.shape, found.statistics["alive"], found.report, found.folder
    )
    return join([own, pairs({"coder": found.coder, "network": found.model_name})])


def _fitted(one: Decomposition, site: str, shape: Any, alive: Any, report: Mapping[str, Any], folder: Any) -> Markup:
    modes = " × ".join(map(str, one.modes.shape))
    told: dict[str, Any] = {
        "site": site, "kind": type(one).__name__, "modes × channels": modes,
        "rows": f"{shape[0]:,}", "on somewhere": f"{int(alive.sum())} of {len(alive)} modes", "folder": str(folder),
    }  # fmt: skip
    heads, rows = scores_of(report)
    return join([pairs(told), table(heads, rows) if rows else ""])


def scores_of(report: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """The scores of a report by the rows they are of: numbers that stand in nested tables of the same names."""
    groups = {
        name: {key: value for key, value in one.items() if isinstance(value, (int, float))}
        for name, one in report.items()
        if isinstance(one, Mapping)
    }
    groups = {name: one for name, one in groups.items() if one}
    names = list(dict.fromkeys(key for one in groups.values() for key in one))
    return ["scores of", *names], [
        [name, *(number(float(one[key]), 4) if key in one else "–" for key in names)] for name, one in groups.items()
    ]


def bank(found: Bank) -> Markup:
    """Images, and vectors by site."""
    rows = [(site, f"{found.rows(site).shape[0]:,}", str(found.rows(site).shape[1])) for site in found.sites]
    told = {"network": found.model_name, "images": f"{len(found):,}", "folder": str(found.folder)}
    drawn = table(("site", "vectors", "channels"), rows)
    return join([pairs({**told, **{name: _word(value) for name, value in found.settings.items()}}), drawn])


def control_study(found: ControlStudy) -> Markup:
    """What would be measured."""
    design = found.design
    return pairs(
        {
            "controlled": _some([str(one.name) if hasattr(one, "name") else str(one) for one in design.concepts]),
            "directions": _some([one.name for one in design.directions]),
            "places": _some([" + ".join(sites) for sites in design.places]), "actions": ", ".join(design.actions),
            "fractions": _few(design.grid), "trials": str(len(design.trials)), "split": found.split.how,
            "fill": found.fill, "seed": str(found.seed),
        }
    )  # fmt: skip


def control_curves(found: ControlCurves) -> Markup:
    """Mean top-1 accuracies at the middle of the grid, by direction, place and action: target and off-target."""
    middle = min(range(len(found.grid)), key=lambda place: abs(found.grid[place] - 0.1))
    before = found.before[:, :, 0].mean(0)
    rows = [
        (direction, place, action, *(number(float(found.after[:, side, p, d, a, middle, 0].mean())) for side in (0, 1)))
        for d, direction in enumerate(found.directions)
        for p, place in enumerate(found.places)
        for a, action in enumerate(found.actions)
    ]
    share = f"{100 * found.grid[middle]:g} % of channels"
    said = f"{len(found.concepts)} trials; before: target {number(before[0])}, off-target {number(before[1])} (top-1)."
    heads = ("direction", "place", "action", f"target, {share}", "off-target")
    return join([tag("p", said), table(heads, rows[: 3 * FEW]), _left(len(rows), 3 * FEW)])


def evaluation(found: Evaluation) -> Markup:
    """Means with their intervals, and the footnotes."""
    from backlight.evaluation.tables import means, title

    grid = means(found)

    def cell(one: Any) -> Markup:
        text = tag("b", one.text) if one.best else escape(one.text)
        return join([text, tag("sup", one.note)], "") if one.note else text

    drawn = table([cell(one) for one in grid.heads], [[cell(one) for one in row] for row in grid.rows])
    notes = [tag("p", tag("sup", place), " ", note.text) for place, note in enumerate(found.footnotes, 1)]
    return join([tag("p", title(found)), tag("div", drawn, style="overflow-x:auto"), *notes])


def explained_text(found: ExplainedText) -> Markup:
    """The tokens coloured by their relevance, and what the model says next."""
    from backlight.viz.text_figures import token_colours, token_style, visible

    spans = []
    values = found.relevance.tolist()
    for token, value, colour in zip(found.tokens, values, token_colours(found.relevance), strict=True):
        style = f"{token_style(colour)};padding:.1em 0"
        spans.append(tag("span", visible(token), style=style, title=number(value, 4)))
    likeliest = table(("next", "probability"), [(visible(one), number(share, 3)) for one, share in found.predicted])
    missed = "" if found.residual is None else f", completeness residual {number(found.residual, 2)}"
    said = f"{found.asked}, {found.method}: score {number(found.score, 4)}{missed}"
    text = tag("p", *spans, style="line-height:1.9;white-space:pre-wrap")
    return join([tag("p", said), text, likeliest])


def pairs(told: Mapping[str, Any]) -> Markup:
    """Names and values."""
    return table(("", ""), [(name, value) for name, value in told.items() if value not in ("", None)])


def _word(value: Any) -> str:
    return value if isinstance(value, str) else repr(value)


def _few(values: Any) -> str:
    return ", ".join(f"{value:.3g}" for value in np.asarray(values).tolist())


def _some(names: list[str]) -> str:
    return ", ".join(names[:FEW]) + (f", and {len(names) - FEW} more" if len(names) > FEW else "")


def _left(count: int, shown: int) -> Markup:
    return tag("p", f"{shown} of {count} rows.") if count > shown else Markup("")
