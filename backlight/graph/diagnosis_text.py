"""Diagnoses in words and tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from backlight.graph.concept_graph import RESIDUAL, ConceptGraph
from backlight.graph.diagnosis_contrast import Balance, Contrast, RouteContrast

if TYPE_CHECKING:
    from backlight.graph.diagnosis import Diagnosis

HALF = 0.5  # of the evidence: beyond it concepts are the smaller part of what is told


def text(found: Diagnosis, count: int = 3) -> str:
    """Paragraphs of plain sentences, from the side of the class that leads."""
    a, b = class_name(found.graph, found.true), class_name(found.graph, found.predicted)
    last, sides = found.balances[-1], [(found.for_predicted, b, a), (found.for_true, a, b)]
    told = made_of(last, a, b) if last.lead >= 0 else made_of(last.reversed(), b, a)
    parts = [opening(found.graph, found.true, found.predicted), told]
    for concepts, one, other in sides if last.lead >= 0 else sides[::-1]:
        parts.append(speaking(found.graph, concepts, one, other, count))
    parts.append(" ".join(_routes(found, count)))
    if found.shared:
        both = [f"{named(one)} ({one.for_predicted:+.2f}, {one.for_true:+.2f})" for one in found.shared[:count]]
        parts.append(f"Both classes build on the same concepts, logits for {b} and for {a}: {'; '.join(both)}.")
    else:
        parts.append(f"No concept of the graph speaks for both {b} and {a}.")
    parts.append(untold(found.graph, found.balances))
    return "\n\n".join(parts)


def opening(graph: ConceptGraph, true: int, predicted: int) -> str:
    """What the network takes the image for, and who leads by how much."""
    known = {one["index"]: one for one in graph.about["classes"]}
    first = max(known.values(), key=lambda one: one["logit"])  # the predicted class is always in a graph
    a, b = known[true], known[predicted]
    model, image = graph.about.get("model") or "the network", graph.about.get("image") or "the image"
    lead = b["logit"] - a["logit"]
    front, behind = (b, a) if lead >= 0 else (a, b)
    told = f"{model} takes {image} for {_chance(first)}. "
    return told + f"{front['name']} leads {_chance(behind)} by {abs(lead):.2f} logits."


def made_of(balance: Balance, a: str, b: str) -> str:
    """The parts of the lead at a layer."""
    lead = f"the lead of {b} over {a} ({balance.lead:+.2f} logits)"
    error = "" if balance.gap is None else f" (the quadrature's error in it is {abs(balance.gap):.2g})"
    return (
        f"At {balance.layer}, {lead} is made of {balance.concepts:+.2f} by the concepts of this graph "
        f"({balance.concepts_for:+.2f} for it, {balance.concepts_against:+.2f} against it), {balance.rest:+.2f} by all "
        f"other concepts together, {balance.residual:+.2f} by what no concept tells, and {balance.base:+.2f} that is "
        f"there without them{error}."
    )


def speaking(graph: ConceptGraph, concepts: Sequence[Contrast], one: str, other: str, count: int) -> str:
    """Which concepts speak for a class against another, and from where: `count` of the last layer that has any, and the
    strongest one of each before it. Every layer makes the whole lead anew, so that layers are told apart.
    """
    if not concepts:
        return f"No concept of the graph speaks for {one} against {other}."
    told: list[str] = []
    for site in reversed(graph.sites):
        own = [concept for concept in concepts if concept.layer == site][: 1 if told else count]
        told += [_parts(concept, one, other) for concept in own]
    return f"What speaks most for {one} against {other}, from the last layer to the first, is {'; '.join(told)}."


def _parts(concept: Contrast, one: str, other: str) -> str:
    where = "" if concept.region is None else f", {concept.region.place}"
    sizes = (concept.for_predicted, concept.for_true)
    first, second = sizes if concept.difference > 0 else sizes[::-1]
    return f"{named(concept)}{where} ({first:+.2f} for {one}, {second:+.2f} for {other})"


def named(one: Contrast) -> str:
    """`blocks.4/17 "tabby"`."""
    return one.node if one.label == f"concept {one.node.rsplit('/', 1)[-1]}" else f'{one.node} "{one.label}"'


def _routes(found: Diagnosis, count: int) -> Iterable[str]:
    a, b = class_name(found.graph, found.true), class_name(found.graph, found.predicted)
    sides = [(found.routes_for_predicted, b, a), (found.routes_for_true, a, b)]
    for ways, one, other in sides if found.lead >= 0 else sides[::-1]:
        if not ways:
            yield f"No route through concepts carries anything to {one} against {other}."
            continue
        first = ways[0]
        flows = (first.for_predicted, first.for_true) if ways is found.routes_for_predicted else (
            first.for_true, first.for_predicted)  # fmt: skip
        yield (
            f"The strongest route for {one} against {other} is {' -> '.join(first.nodes)} -> {one}: it carries "
            f"{flows[0]:+.3g} logits to {one} and {flows[1]:+.3g} to {other}."
        )
        more = [f"{' -> '.join(way.nodes)} ({abs(way.difference):.3g})" for way in ways[1:count]]
        if more:
            yield f"After it come {'; '.join(more)}."
        together = sum(abs(way.difference) for way in ways)
        yield f"The {len(ways)} strongest together carry {together:.3g} logits more to {one} than to {other}."


def untold(graph: ConceptGraph, balances: Sequence[Balance]) -> str:
    """How much of the evidence is the residual's, and how much the other concepts'."""
    shares = ", ".join(f"{one.untold:.0%} at {one.layer}" for one in balances)
    edges = [
        f"{graph.mass(a, b, RESIDUAL):.0%} from {a} to {'the classes' if b == 'output' else b}"
        for a, b in graph.pairs()
    ]
    told = f"Untold by any concept is, of the evidence between the two classes, {shares}; of the edges, "
    told += f"{', '.join(edges) if edges else 'none'}. "
    told += f"Concepts that are not in the graph make {balances[-1].elsewhere:.0%} of it at {balances[-1].layer}, net."
    last, worst = balances[-1], max(balances, key=lambda one: one.untold)
    if last.untold + last.elsewhere > HALF:
        told += " So less than half of it is told by the concepts that are shown: ask for more of them (top)."
    if worst.untold > HALF:
        told += f" At {worst.layer} more than half is untold: what is said of that layer is the smaller part of it."
    return told


def markdown(found: Diagnosis, count: int = 8) -> str:
    """The text, and tables of balances, concepts and routes."""
    a, b = class_name(found.graph, found.true), class_name(found.graph, found.predicted)
    title = found.graph.about.get("image") or "an image"
    lines = [f"# {escaped(title)}: {escaped(b)} or {escaped(a)}", "", escaped(found.text()), ""]
    lines += ["## What makes the lead", "", f"Logits of {escaped(b)} minus those of {escaped(a)}.", ""]
    lines += balance_table(found.balances)
    lines += ["", "## Concepts", ""]
    lines += table(
        ["concept", f"for {b}", f"for {a}", "difference", "where"],
        [
            [named(one), f"{one.for_predicted:+.3f}", f"{one.for_true:+.3f}", f"{one.difference:+.3f}", where(one)]
            for one in (*found.for_predicted[:count], *found.for_true[:count])
        ],
    )
    lines += ["", "## Routes", ""]
    lines += route_table([*found.routes_for_predicted, *found.routes_for_true], a, b)
    for index, name in ((found.predicted, b), (found.true, a)):
        lines += ["", f"The strongest routes to {escaped(name)} alone, by the product of shares:", ""]
        rows = [[" -> ".join(way.nodes[:-1]), f"{way.strength:.3g}"] for way in found.routes[index]]
        lines += table(["route", "product"], rows)
    return "\n".join(lines) + "\n"


def where(one: Contrast) -> str:
    """A concept's place in words, with its box in per cent of the image's sides."""
    if one.region is None:
        return ""
    top, left, bottom, right = (round(100 * side) for side in one.region.box)
    return f"{one.region.place} (rows {top}-{bottom} %, columns {left}-{right} %)"


def balance_table(balances: Iterable[Balance]) -> list[str]:
    return table(
        ["layer", "concepts", "other concepts", "residual", "without them", "untold"],
        [
            [one.layer, *(f"{value:+.2f}" for value in (one.concepts, one.rest, one.residual, one.base)),
             f"{one.untold:.0%}"]
            for one in balances
        ],
    )  # fmt: skip


def route_table(ways: Iterable[RouteContrast], a: str, b: str) -> list[str]:
    rows = [
        [" -> ".join(way.nodes), f"{way.for_predicted:+.3g}", f"{way.for_true:+.3g}", f"{way.difference:+.3g}"]
        for way in ways
    ]
    return table(["route", f"to {b}", f"to {a}", "difference"], rows)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A Markdown table."""
    lines = [[escaped(cell) for cell in row] for row in (head, *rows)]
    return ["| " + " | ".join(lines[0]) + " |", "|---" * len(head) + "|"] + [
        "| " + " | ".join(line) + " |" for line in lines[1:]
    ]


def escaped(words: str) -> str:
    """Names of classes and files as Markdown text, not as its marks."""
    for mark in "\\`*_[]|<>":
        words = words.replace(mark, f"\\{mark}")
    return words.replace("-\\>", "->")


def class_name(graph: ConceptGraph, index: int) -> str:
    return graph.graph.nodes[graph.class_node(index)]["label"]


def _chance(known: dict[str, object]) -> str:
    chance = known["probability"]
    return f"{known['name']} ({chance:.1%})" if isinstance(chance, float) else str(known["name"])
