"""Diagnoses of a change in words and tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backlight.graph.concept_graph import ConceptGraph
from backlight.graph.diagnosis_text import HALF, class_name, escaped, opening, table

if TYPE_CHECKING:
    from backlight.graph.diagnosis_change import ChangeDiagnosis, ConceptChange


def change_text(found: ChangeDiagnosis, count: int = 3) -> str:
    """Paragraphs of plain sentences."""
    a, b = class_name(found.before, found.true), class_name(found.before, found.predicted)
    opened = [opening(graph, found.true, found.predicted) for graph in (found.before, found.after)]
    lead = found.lead
    parts = [
        f"{opened[0]} {opened[1]} The lead of {b} over {a} went from {lead.first:+.2f} to {lead.second:+.2f} logits, "
        f"by {lead.difference:+.2f}."
    ]
    parts.append(_spread(found))
    told = [_told(one) for one in found.concepts[:count]]
    if told:
        parts.append(f"What changed its part in this lead the most is {'; then '.join(told)}.")
    for one in found.routes[:1]:
        parts.append(
            f"The route that changed the most is {' -> '.join(one.nodes)}: it carried {one.before.difference:+.3g} "
            f"logits to the lead of {b} before, and {one.after.difference:+.3g} after."
        )
    parts.append(_untold(found))
    return "\n\n".join(parts)


def _spread(found: ChangeDiagnosis) -> str:
    """How the change grows through the network."""
    steps = ", ".join(f"{one.moved:.0%} at {one.layer}" for one in found.layers)
    sizes = ", ".join(f"{one.residual:.2f} at {one.layer}" for one in found.layers)
    return (
        f"The codes of the graph's concepts moved, by their own size, {steps}. The size of what no concept tells is "
        f"that of before times {sizes}."
    )


def _told(one: ConceptChange) -> str:
    name = one.node if one.label.startswith("concept ") else f'{one.node} "{one.label}"'
    where = "" if one.region is None else f", whose code changed {one.region.place}"
    lead, on = one.lead, one.activation
    return (
        f"{name}{where}: {lead.first:+.2f} before, {lead.second:+.2f} after, with a mean code of {on.first:.3g} and "
        f"{on.second:.3g}"
    )


def _untold(found: ChangeDiagnosis) -> str:
    """How much of the change of the lead concepts, others and the residual make, by layer."""
    shares, worst = [], 0.0
    for one in found.layers:
        concepts, rest, residual = changes(found, one.layer)
        whole = abs(concepts) + abs(rest) + abs(residual)
        part = abs(residual) / whole if whole else 0.0
        worst = max(worst, part)
        parts = f"{concepts:+.2f}, {rest:+.2f} and {residual:+.2f} at {one.layer}"
        shares.append(f"{parts} (the residual is {part:.0%} of their sizes)")
    told = f"Of the change of the lead, concepts, other concepts and what no concept tells make {'; '.join(shares)}."
    if worst > HALF:
        told += " Where that is more than half, what is said of the layer is the smaller part of what happened."
    return told


def changes(found: ChangeDiagnosis, layer: str) -> tuple[float, float, float]:
    """What concepts, rest and residual of a layer make of the change of the lead."""
    one = next(one for one in found.layers if one.layer == layer)
    return (
        one.after.concepts - one.before.concepts,
        one.after.rest - one.before.rest,
        one.after.residual - one.before.residual,
    )


def change_markdown(found: ChangeDiagnosis, count: int = 8) -> str:
    """The text, and tables of layers, concepts and routes."""
    a, b = class_name(found.before, found.true), class_name(found.before, found.predicted)
    lines = [f"# {escaped(_image(found.before))} and {escaped(_image(found.after))}: from {escaped(a)} to {escaped(b)}"]
    lines += ["", escaped(found.text()), "", "## Layers", "", f"Parts of the change of the lead of {escaped(b)}.", ""]
    rows = []
    for one in found.layers:
        parts = [f"{value:+.2f}" for value in changes(found, one.layer)]
        rows.append([one.layer, f"{one.moved:.1%}", f"{one.residual:.3f}", *parts])
    lines += table(["layer", "codes moved", "residual after / before", "concepts", "other concepts", "residual"], rows)
    lines += ["", "## Concepts", ""]
    told = []
    for concept in found.concepts[: 2 * count]:
        lead, on = concept.lead, concept.activation
        values = [f"{value:+.3f}" for value in (lead.first or 0.0, lead.second or 0.0, lead.difference)]
        values += [f"{value or 0.0:.3g}" for value in (on.first, on.second)]
        where = "" if concept.region is None else concept.region.place
        told.append([concept.node, concept.label, *values, where])
    lines += table(
        ["concept", "name", "lead before", "after", "difference", "mean code before", "after", "changed where"], told
    )
    lines += ["", "## Routes", ""]
    rows = [
        [" -> ".join(way.nodes), *(f"{v:+.3g}" for v in (way.before.difference, way.after.difference, way.difference))]
        for way in found.routes
    ]
    lines += table(["route", "lead before", "after", "difference"], rows)
    return "\n".join(lines) + "\n"


def _image(graph: ConceptGraph) -> str:
    return graph.about.get("image") or "an image"
