"""What the pictures of a concept graph need of it, read and checked once: format 1 of its JSON."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np

from backlight.errors import InputError, UnknownNameError

FORMAT = 1
KINDS = ("concept", "residual", "rest", "class")
UNTOLD = ("residual", "rest")  # what no concept, or no concept of the graph, tells
_PICTURE = re.compile(r"data:image/(png|jpeg|webp|gif);base64,[A-Za-z0-9+/]+=*")


@runtime_checkable
class Graph(Protocol):
    """A `backlight.graph.ConceptGraph`, as far as it is drawn."""

    def as_json(self) -> dict[str, Any]:
        """The graph's JSON, format 1."""
        ...


@dataclass(frozen=True)
class Layer:
    """A column: a site with its dictionary, or the classes."""

    site: str
    classes: bool = False
    atoms: int | None = None
    grid: tuple[int, int] | None = None
    relative_error: float | None = None


@dataclass(frozen=True, eq=False)
class Node:
    """A concept, what no concept tells, or a class.

    Attributes:
        importance: for each class, by its number as text.
        map: `[h, w]`, where it is on in the image.
        crop: a data URL of its iERF; exemplars: (name of the image, data URL).
    """

    id: str
    layer: str
    kind: str
    label: str
    concept: int | None = None
    tags: tuple[tuple[str, float], ...] = ()
    importance: Mapping[str, float] = field(default_factory=dict)
    activation: float | None = None
    shared: bool = False
    map: np.ndarray | None = None
    crop: str | None = None
    exemplars: tuple[tuple[str, str], ...] = ()

    @property
    def key(self) -> str:
        """What follows the layer in its id: the number of a concept or class as text."""
        return self.id.removeprefix(f"{self.layer}/")

    @property
    def untold(self) -> bool:
        """Whether it is a residual, or the concepts that are not shown."""
        return self.kind in UNTOLD

    def rank(self, of: str | None = None) -> float:
        """What nodes are chosen by: |importance| for a class or over all, else activation; of classes, the output."""
        if self.kind == "class":
            return self.activation or 0.0
        if of is not None and self.importance:
            return abs(self.importance.get(of, 0.0))
        if self.importance:
            return sum(abs(value) for value in self.importance.values())
        return abs(self.activation or 0.0)


@dataclass(frozen=True)
class Edge:
    """What a node does for a later one: ICAT, and its part of all that is done for that one."""

    source: str
    target: str
    weight: float
    share: float


@dataclass(frozen=True, eq=False)
class Document:
    """A concept graph as it is drawn."""

    about: Mapping[str, Any]
    layers: tuple[Layer, ...]
    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]
    completeness: tuple[Mapping[str, Any], ...] = ()

    @property
    def classes(self) -> dict[str, str]:
        """Names of the classes that importance is told for, by number as text, in the order of the last column."""
        told = {key for node in self.nodes for key in node.importance}
        found = {node.key: node.label or node.key for node in self.nodes if node.kind == "class"}
        return found | {key: key for key in sorted(told - found.keys())}

    def of(self, layer: Layer) -> list[Node]:
        """The nodes of a layer, in the graph's order."""
        return [node for node in self.nodes if node.layer == layer.site]


def read(graph: Graph | Mapping[str, Any]) -> Document:
    """Check a graph and take what is drawn.

    Raises:
        InputError: not format 1; a field missing, of another type or not finite; an edge to nowhere; a picture that is
            no data URL (a page must not fetch anything).
        UnknownNameError: a node of an unknown kind or layer.
    """
    data = graph if isinstance(graph, Mapping) else graph.as_json()
    if data.get("format") != FORMAT:
        raise InputError(f"a concept graph of format {FORMAT} is expected, not {data.get('format')!r}")
    try:
        layers = tuple(_layer(one) for one in data["layers"])
        sites = [layer.site for layer in layers]
        nodes = tuple(_node(one, sites) for one in data["nodes"])
        edges = tuple(_edge(one) for one in data["edges"])
    except KeyError as error:
        if isinstance(error, UnknownNameError):
            raise
        raise InputError(f"this concept graph lacks the field {error.args[0]!r}") from None
    ids = {node.id for node in nodes}
    for what, found in (("node", [node.id for node in nodes]), ("layer", sites)):
        if len(set(found)) < len(found):
            raise InputError(f"a {what} of this concept graph stands in it twice: {_twice(found)!r}")
    for edge in edges:
        for end in (edge.source, edge.target):
            if end not in ids:
                raise UnknownNameError("node at an edge's end", end, ids)
    return Document(data.get("about", {}), layers, nodes, edges, tuple(data.get("completeness", ())))


def _twice(names: Sequence[str]) -> str:
    return next(name for number, name in enumerate(names) if name in names[:number])


def _layer(data: Mapping[str, Any]) -> Layer:
    grid = data.get("grid")
    error = data.get("relative_error")
    return Layer(
        site=str(data["site"]),
        classes=bool(data.get("classes", False)),
        atoms=data.get("atoms"),
        grid=(int(grid[0]), int(grid[1])) if grid else None,
        relative_error=None if error is None else _finite(error, f"relative_error of layer {data['site']!r}"),
    )


def _node(data: Mapping[str, Any], sites: Sequence[str]) -> Node:
    name = str(data["id"])
    if data["kind"] not in KINDS:
        raise UnknownNameError("kind of a node", data["kind"], KINDS)
    if data["layer"] not in sites:
        raise UnknownNameError("layer of a node", data["layer"], sites)
    activation, on = data.get("activation"), data.get("map")
    return Node(
        id=name,
        layer=data["layer"],
        kind=data["kind"],
        label=str(data.get("label") or ""),
        concept=data.get("concept"),
        tags=tuple((str(tag), _finite(value, f"a tag of {name!r}")) for tag, value in data.get("tags") or ()),
        importance={str(k): _finite(v, f"importance of {name!r}") for k, v in (data.get("importance") or {}).items()},
        activation=None if activation is None else _finite(activation, f"activation of {name!r}"),
        shared=bool(data.get("shared", False)),
        map=None if on is None else _map(on, name),
        crop=read_picture(data.get("field"), name),
        exemplars=tuple(
            (str(one.get("image", "")), crop)
            for one in data.get("exemplars") or ()
            if (crop := read_picture(one.get("crop"), name)) is not None
        ),
    )


def _edge(data: Mapping[str, Any]) -> Edge:
    name = f"{data['source']} -> {data['target']}"
    weight, share = (_finite(data[key], f"{key} of the edge {name}") for key in ("weight", "share"))
    return Edge(str(data["source"]), str(data["target"]), weight, share)


def _finite(value: Any, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InputError(f"{what} must be a finite number, not {value!r}")
    return float(value)


def _map(values: Any, name: str) -> np.ndarray:
    try:
        found = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise InputError(f"the map of {name!r} must be rows of numbers of one length") from None
    if found.ndim != 2 or not found.size or not np.isfinite(found).all():
        raise InputError(f"the map of {name!r} must be [h, w] and finite, not of shape {list(found.shape)}")
    return found


def read_picture(url: Any, name: str) -> str | None:
    if url in (None, ""):
        return None
    if not isinstance(url, str) or not _PICTURE.fullmatch(url):
        raise InputError(f"a picture of {name!r} must be a data URL of a PNG, JPEG, WebP or GIF, not {str(url)[:40]!r}")
    return url
