"""A concept graph as one HTML file: no network, no library, opened from disk; with its scripts by their hashes alone.

Labels and names come from anywhere, so they reach the page as JSON whose `<`, `>` and `&` are escaped, and its elements
as text; pictures are data URLs. The page's Content-Security-Policy forbids everything else.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import os
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from backlight.errors import InputError
from backlight.evaluation.journal import write_text
from backlight.viz.graph_document import Document, Edge, Graph, Node, read, read_picture
from backlight.viz.graph_layout import ordered

SCRIPTS = ("graph_page.js", "graph_page_card.js", "graph_page_events.js")
DIGITS = 6  # of weights in the page
LEVELS = 127  # of a map to either side of zero
_APART = ("picture", "classes")  # of `about`: shown as pictures and nodes


def write_page(graph: Graph | Mapping[str, Any], path: str | os.PathLike[str], *, title: str = "") -> Path:
    """Write the page of a graph, whole or not at all.

    Raises:
        InputError, UnknownNameError: as `graph_page`.
    """
    file = Path(path)
    write_text(file, graph_page(graph, title=title))
    return file


def graph_page(graph: Graph | Mapping[str, Any], *, title: str = "") -> str:
    """The page of a concept graph.

    Args:
        graph: a concept graph, or its JSON of format 1.
        title: by default, the model and the image.

    Maps are kept in 127 steps to either side of zero, weights to six digits.

    Raises:
        InputError: not a concept graph of format 1; a picture that is no data URL.
        UnknownNameError: a node of an unknown kind or layer, an edge to an unknown node.
    """
    document = read(graph)
    about = document.about
    style = _text("graph_page.css")
    script = "\n".join(_text(name) for name in SCRIPTS)
    data = json.dumps(_data(document), ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    parts = {
        "TITLE": html.escape(title or _named(about)),
        "STYLE": style,
        "STYLE_HASH": _hash(style),
        "SCRIPT": script,
        "SCRIPT_HASH": _hash(script),
        "DATA": _inert(data),
    }  # fmt: skip
    pieces = _text("graph_page.html").split("%")  # names stand between signs of per cent, and no others are there
    return "".join(parts[piece] if place % 2 else piece for place, piece in enumerate(pieces))


def _text(name: str) -> str:
    return resources.files("backlight.viz").joinpath(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """Of a script or style, as a Content-Security-Policy names it."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _inert(data: str) -> str:
    """JSON that cannot end its element: the same values, without a character that HTML gives a meaning."""
    return data.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _data(document: Document) -> dict[str, Any]:
    """What the page's scripts read; nodes go by their place in the list."""
    place = {node.id: number for number, node in enumerate(document.nodes)}
    layer_of = {layer.site: number for number, layer in enumerate(document.layers)}
    edges = sorted(document.edges, key=lambda edge: abs(edge.share))
    columns = _columns(document, edges)
    about = document.about
    chances = _chances(about.get("classes"))
    return {
        "subtitle": _way(about),
        "about": [[str(key), _told(value)] for key, value in about.items() if key not in _APART and value is not None],
        "picture": read_picture(about.get("picture"), "the image"),
        "classes": [[key, name] for key, name in document.classes.items()],
        "layers": [
            {"site": layer.site, "classes": layer.classes, "atoms": layer.atoms, "grid": layer.grid,
             "error": layer.relative_error, "nodes": [place[one] for one in column]}
            for layer, column in zip(document.layers, columns, strict=True)
        ],
        "nodes": [_node(node, layer_of[node.layer], chances) for node in document.nodes],
        "edges": [
            [place[edge.source], place[edge.target], _rounded(edge.weight), _rounded(edge.share)] for edge in edges
        ],
        "completeness": [
            {"source": str(one.get("source")), "target": str(one.get("target")), "missed": _missed(one)}
            for one in document.completeness
        ],
    }  # fmt: skip


def _columns(document: Document, edges: Sequence[Edge]) -> list[list[str]]:
    """The ids of each layer in the order in which they are drawn."""
    columns = [[node.id for node in document.of(layer)] for layer in document.layers]
    last = {node.id for node in document.nodes if node.untold}
    return ordered(columns, [(edge.source, edge.target, abs(edge.share)) for edge in edges], last)


def _node(node: Node, layer: int, chances: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "id": node.id, "key": node.key, "layer": layer, "kind": node.kind, "concept": node.concept, "label": node.label,
        "tags": [[tag, _rounded(value)] for tag, value in node.tags],
        "importance": {key: _rounded(value) for key, value in node.importance.items()},
        "activation": None if node.activation is None else _rounded(node.activation),
        "probability": chances.get(node.key) if node.kind == "class" else None,
        "shared": node.shared, "map": None if node.map is None else _map(node.map), "crop": node.crop,
        "exemplars": [list(one) for one in node.exemplars],
    }  # fmt: skip


def _map(values: np.ndarray) -> dict[str, Any]:
    """A map in whole steps of its scale: value = level * scale / 127."""
    scale = float(np.abs(values).max())
    levels = np.rint(values / (scale or 1) * LEVELS).astype(np.int8)
    return {
        "h": values.shape[0], "w": values.shape[1], "scale": _rounded(scale), "on": int((values != 0).sum()),
        "levels": base64.b64encode(levels.tobytes()).decode(),
    }  # fmt: skip


def _missed(one: Mapping[str, Any]) -> float | None:
    """Sum over targets of |gap|, by that of |S(reached) - S(base)|: what edges leave unexplained."""
    try:
        gap, reached, base = (np.asarray(one[key], dtype=np.float64) for key in ("gap", "reached", "base"))
        whole, missed = float(np.abs(reached - base).sum()), float(np.abs(gap).sum())
    except (KeyError, TypeError, ValueError):
        raise InputError(
            f"completeness needs numbers reached, base and gap, of one length, not {dict(one)!r}"
        ) from None
    return _rounded(missed / whole) if whole > 0 and np.isfinite(missed / whole) else None


def _named(about: Mapping[str, Any]) -> str:
    return " · ".join(_told(about[key]) for key in ("model", "image") if about.get(key)) or "Concept graph"


def _way(about: Mapping[str, Any]) -> str:
    steps = about.get("n_steps")
    return _told(about.get("attribution") or "") + (f", {_told(steps)} steps" if steps else "")


def _chances(classes: Any) -> dict[str, Any]:
    """Probabilities by class, where `about` tells them."""
    told = classes if isinstance(classes, list) else []
    return {str(one.get("index")): one.get("probability") for one in told if isinstance(one, Mapping)}


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")


def _told(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
