"""ConceptGraph: concepts of several layers and what they do for each other and for the classes, kept as JSON."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backlight.displayed import Displayed
from backlight.errors import InputError, MissingExtraError, UnknownNameError
from backlight.evaluation.journal import write_text

if TYPE_CHECKING:
    import networkx as nx

    from backlight.graph.difference import GraphDifference
    from backlight.graph.routes import Route

FORMAT = 1
OUTPUT = "output"
CONCEPT, RESIDUAL, REST, CLASS = KINDS = ("concept", "residual", "rest", "class")


def node_id(layer: str, name: object) -> str:
    """`blocks.2/17`, `blocks.2/residual`, `output/281`."""
    return f"{layer}/{name}"


def empty_graph() -> nx.DiGraph:
    """A directed graph of networkx. Raises `MissingExtraError` without it."""
    try:
        import networkx
    except ModuleNotFoundError:
        raise MissingExtraError("networkx", "graph") from None
    return networkx.DiGraph()


@dataclass(eq=False, repr=False)
class ConceptGraph(Displayed):
    """A layered graph of concepts (iERF paper, section VI).

    `graph`: a `networkx.DiGraph`, whose nodes go by ids such as "blocks.2/17" and hold what the JSON says of them
    (layer, kind, concept, label, tags, importance, activation, shared, map, field, exemplars), and whose edges hold
    `weight`, the signed ICAT, and `share`, the weight by the sum of |weights| from that layer into the target.

    Attributes:
        about: the model, the image, the classes, the attribution and its settings, versions.
        layers: in the network's order, {"site", "atoms", "grid", "relative_error"}; the classes last.
        completeness: an edge set each, {"source", "target", "targets", "reached", "base", "gap"}.
    """

    graph: nx.DiGraph = field(default_factory=empty_graph)
    about: dict[str, Any] = field(default_factory=dict)
    layers: list[dict[str, Any]] = field(default_factory=list)
    completeness: list[dict[str, Any]] = field(default_factory=list)

    @property
    def sites(self) -> list[str]:
        """The layers' addresses; "output" is that of the classes."""
        return [layer["site"] for layer in self.layers]

    @property
    def classes(self) -> list[int]:
        """The classes whose nodes are there."""
        return [self.graph.nodes[node]["class"] for node in self.of_layer(OUTPUT)]

    def of_layer(self, site: str, kinds: Iterable[str] = KINDS) -> list[str]:
        """The ids of a layer's nodes, in the order in which they were put in."""
        kept = set(kinds)
        return [node for node, held in self.graph.nodes(data=True) if held["layer"] == site and held["kind"] in kept]

    def concepts(self) -> dict[str, list[int]]:
        """The concepts of each layer, as `build_graph(nodes=...)` takes them: the same nodes for another image."""
        return {
            site: [self.graph.nodes[node]["concept"] for node in self.of_layer(site, [CONCEPT])]
            for site in self.sites
            if site != OUTPUT
        }

    def class_node(self, target: int | str) -> str:
        """The node of a class, by its index or name.

        Raises:
            UnknownNameError: the graph does not have it.
        """
        names = {node: self.graph.nodes[node] for node in self.of_layer(OUTPUT)}
        for node, held in names.items():
            if str(target) in (str(held["class"]), held["label"], node):
                return node
        choices = [f"{held['class']} ({held['label']})" for held in names.values()]
        raise UnknownNameError("class of this graph", target, choices)

    def edges_into(self, node: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """(parent, what the edge holds), the largest weight first."""
        found = self.graph.in_edges(node, data=True)
        yield from ((parent, held) for parent, _, held in sorted(found, key=lambda e: (-abs(e[2]["weight"]), e[0])))

    def mass(self, source: str, target: str, kind: str) -> float:
        """How much of what layer `source` does for the nodes of layer `target` nodes of a kind do, 0 to 1.

        The mean over the target's nodes of the |shares| of such nodes: with kind "residual", what no concept tells.
        0 where there are no edges.
        """
        sums = []
        for node in self.of_layer(target):
            shares = [
                (self.graph.nodes[parent]["kind"], abs(held["share"]))
                for parent, held in self.edges_into(node)
                if self.graph.nodes[parent]["layer"] == source
            ]
            if shares:
                sums.append(math.fsum(share for of, share in shares if of == kind))
        return math.fsum(sums) / len(sums) if sums else 0.0

    def pairs(self) -> list[tuple[str, str]]:
        """(source, target) of the layers that edges connect, in the network's order."""
        there = {(self.graph.nodes[a]["layer"], self.graph.nodes[b]["layer"]) for a, b in self.graph.edges}
        place = {site: number for number, site in enumerate(self.sites)}
        return sorted(there, key=lambda pair: (place[pair[0]], place[pair[1]]))

    def filtered(
        self,
        *,
        min_share: float = 0.0,
        layers: Sequence[str] | None = None,
        classes: Sequence[int | str] | None = None,
        kinds: Sequence[str] | None = None,
    ) -> ConceptGraph:
        """The part of the graph that is asked for. Shares keep their meaning: of all that there was.

        Args:
            min_share: edges of smaller |share| are left out, and nodes that lose all their edges by it.
            layers: sites that stay, classes among them as "output". Edges that leap over a layer are there only if
                the graph was built with them.
            classes: classes that stay, and the concepts that were chosen for them or are shared.
            kinds: kinds of nodes that stay.

        Raises:
            UnknownNameError: a layer, class or kind that the graph does not have.
        """
        for one in layers or ():
            if one not in self.sites:
                raise UnknownNameError("layer of this graph", one, self.sites)
        for one in kinds or ():
            if one not in KINDS:
                raise UnknownNameError("kind of node", one, KINDS)
        wanted = None if classes is None else {self.graph.nodes[self.class_node(one)]["class"] for one in classes}
        kept = [
            node
            for node, held in self.graph.nodes(data=True)
            if (layers is None or held["layer"] in layers) and (kinds is None or held["kind"] in kinds)
            and (wanted is None or _serves(held, wanted))
        ]  # fmt: skip
        graph = self.graph.subgraph(kept).copy()
        weak = [(a, b) for a, b, share in graph.edges(data="share") if abs(share) < min_share]
        graph.remove_edges_from(weak)
        touched = {node for edge in weak for node in edge}
        graph.remove_nodes_from([n for n in touched if graph.degree(n) == 0 and graph.nodes[n]["kind"] != CLASS])
        sites = [layer for layer in self.layers if layers is None or layer["site"] in layers]
        names = {layer["site"] for layer in sites}
        complete = [one for one in self.completeness if {one["source"], one["target"]} <= names]
        return ConceptGraph(graph, dict(self.about), sites, complete)

    def routes(
        self, target: int | str, count: int = 5, sign: str = "positive", *, kinds: Sequence[str] = (CONCEPT,)
    ) -> list[Route]:
        """The dominant routes from the first layer to a class; see `backlight.graph.routes.routes`."""
        from backlight.graph.routes import routes

        return routes(self, target, count, sign, kinds=kinds)

    def difference(self, other: ConceptGraph, classes: tuple[int | str, int | str] | None = None) -> GraphDifference:
        """This graph beside another; see `backlight.graph.difference.difference`."""
        from backlight.graph.difference import difference

        return difference(self, other, classes)

    def summary(self, count: int = 3) -> str:
        """The graph in words: layers, what the residual does, the strongest concepts and routes of each class."""
        from backlight.graph.concept_graph_summary import summary

        return summary(self, count)

    def as_json(self) -> dict[str, Any]:
        """Plain values, format 1."""
        nodes = [{"id": node, **held} for node, held in self.graph.nodes(data=True)]
        edges = [{"source": a, "target": b, **held} for a, b, held in self.graph.edges(data=True)]
        return {
            "format": FORMAT,
            "about": self.about,
            "layers": self.layers,
            "nodes": nodes,
            "edges": edges,
            "completeness": self.completeness,
        }

    @classmethod
    def from_json(cls, value: Any) -> ConceptGraph:
        """The graph of plain values.

        Raises:
            InputError: another format, missing parts, nodes of no layer, edges without nodes.
        """
        if not isinstance(value, Mapping) or "format" not in value:
            raise InputError("this is no concept graph: it says no format")
        if value["format"] != FORMAT:
            raise InputError(f"a concept graph of format {value['format']!r}; this version reads format {FORMAT}")
        missing = [name for name in ("about", "layers", "nodes", "edges", "completeness") if name not in value]
        if missing:
            raise InputError(f"a concept graph without {', '.join(missing)}")
        found = cls(about=dict(value["about"]), layers=list(value["layers"]), completeness=list(value["completeness"]))
        sites = set(found.sites)
        for node in value["nodes"]:
            if node.get("kind") not in KINDS or node.get("layer") not in sites:
                raise InputError(f"node {node.get('id')!r} is of no known kind, or of a layer that is not there")
            found.graph.add_node(node["id"], **{name: held for name, held in node.items() if name != "id"})
        for edge in value["edges"]:
            if edge["source"] not in found.graph or edge["target"] not in found.graph:
                raise InputError(f"an edge from {edge['source']!r} to {edge['target']!r}, which are not both there")
            held = {name: one for name, one in edge.items() if name not in ("source", "target")}
            found.graph.add_edge(edge["source"], edge["target"], **held)
        return found

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the JSON file, whole or not at all.

        Raises:
            InputError: numbers that are not finite.
        """
        try:
            text = json.dumps(self.as_json(), ensure_ascii=True, allow_nan=False)
        except ValueError as error:
            raise InputError(f"this graph cannot be written as JSON: {error}") from None
        write_text(Path(path), text + "\n")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ConceptGraph:
        """The graph in a file.

        Raises:
            InputError: it cannot be read, or holds something else.
        """
        try:
            value = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f"cannot read a concept graph from {str(path)!r}: {str(error).splitlines()[0]}") from None
        try:
            return cls.from_json(value)
        except InputError as error:
            raise InputError(f"{str(path)!r}: {error}") from None


def _serves(held: Mapping[str, Any], wanted: set[int]) -> bool:
    """Whether a node belongs to a part of the graph that is about some classes."""
    if held["kind"] == CLASS:
        return held["class"] in wanted
    chosen = held.get("chosen_for")
    return held["kind"] != CONCEPT or held["shared"] or not chosen or bool(wanted & set(chosen))
