"""The static picture of a concept graph: layers as columns, nodes as iERF crops, edges by width and sign."""

from __future__ import annotations

import base64
import io
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from backlight.errors import InputError, UnknownNameError
from backlight.viz.figures import EDGE, Sheet, signed_map
from backlight.viz.graph_document import Document, Edge, Graph, Layer, Node, read
from backlight.viz.graph_layout import ordered, places

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FOR, AGAINST = "#B2182B", "#2166AC"  # the ends of RdBu_r: apart under the common kinds of colour blindness
CLASSES = ("#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#8C6D1F", "#5E5E5E")  # Okabe and Ito, less the signs' hues
HATCH = {"residual": "////", "rest": "...."}
UNTOLD, HATCHED, INK, MUTED = "#EEF0F2", "#C3CAD1", "#1F2933", "#66707A"
CROP, TEXT, CARD = 0.62, 1.16, 0.74  # inches: a crop's side, the text beside it, a card's height
ACROSS, ALONG, HEAD, FOOT = 3.0, 0.86, 1.0, 0.85
BARS = 4  # classes whose importance a node shows
WIDEST = 16.0  # points, of an edge that does all
DASH = (6.0, 2.0)  # points; matplotlib multiplies dashes by the width of their line


@dataclass(frozen=True)
class Shown:
    """What of a graph is drawn: columns in their order, and edges from the weakest to the strongest."""

    columns: list[list[Node]]
    edges: list[Edge]
    mass: float  # of all |shares| of the graph


def graph_figure(
    graph: Graph | Mapping[str, Any],
    *,
    nodes: int = 8,
    min_share: float = 0.05,
    negative: bool = True,
    residual: bool = True,
    of: str | int | None = None,
    title: str = "",
) -> Figure:
    """Layers from left to right, the classes last; red edges speak for their target, dashed blue ones against it.

    Args:
        graph: a concept graph, or its JSON of format 1.
        nodes: concepts of a layer at most, those of the largest importance, and classes; residuals come on top.
        min_share: edges of a smaller |share| are not drawn; the caption says how much of all |shares| is.
        negative: draw edges against their target. residual: draw the residual and the rest of the concepts.
        of: a class, by its number or name: concepts are chosen by their importance for it; other classes are left out.

    Raises:
        MissingExtraError: matplotlib is not installed.
        InputError: not a concept graph of format 1; settings out of range.
        UnknownNameError: a class that the graph does not have.
    """
    document = read(graph)
    shown = select(document, nodes=nodes, min_share=min_share, negative=negative, residual=residual, of=of)
    columns = [[node.id for node in column] for column in shown.columns]
    most = max(len(column) for column in columns)
    sheet = Sheet(2 * EDGE + (len(columns) - 1) * ACROSS + CROP + TEXT + 0.1, HEAD + max(most, 3) * ALONG + FOOT)
    axes = sheet.axes(0.0, 0.0, sheet.width, sheet.height)
    axes.set(xlim=(0, sheet.width), ylim=(sheet.height, 0))
    axes.set_axis_off()
    at = {one: (EDGE + x, HEAD + y) for one, (x, y) in places(columns, ACROSS, ALONG).items()}
    _draw_edges(axes, shown, at)
    colours = {key: CLASSES[number % len(CLASSES)] for number, key in enumerate(document.classes)}
    for layer, column in zip(document.layers, shown.columns, strict=True):
        scale = max((abs(v) for node in column if not node.untold for v in node.importance.values()), default=0.0)
        for node in column:
            _draw_node(axes, node, at[node.id], colours, scale)
        _draw_head(sheet, layer, EDGE + document.layers.index(layer) * ACROSS)
    axes.set(xlim=(0, sheet.width), ylim=(sheet.height, 0), aspect="auto")
    _draw_legend(axes, sheet, document, shown, colours)
    sheet.title(title or _title(document))
    sheet.text(EDGE, sheet.height - 0.2, _caption(document, shown, min_share), fontsize=8, color=MUTED)
    return sheet.figure


def select(
    document: Document, *, nodes: int, min_share: float, negative: bool, residual: bool, of: str | int | None = None
) -> Shown:
    """What `graph_figure` draws, in an order of few crossings.

    Raises:
        InputError: settings out of range.
        UnknownNameError: a class that the graph does not have.
    """
    if nodes < 1 or not 0 <= min_share <= 1:
        raise InputError(f"nodes must be at least 1 and min_share in [0, 1], not {nodes} and {min_share}")
    chosen = None if of is None else _class(document, of)
    columns = [_chosen(document.of(layer), nodes, residual, chosen) for layer in document.layers]
    there = {node.id for column in columns for node in column}
    edges = [
        edge for edge in document.edges
        if {edge.source, edge.target} <= there and abs(edge.share) >= min_share and (negative or edge.share >= 0)
    ]  # fmt: skip
    weighted = [(edge.source, edge.target, abs(edge.share)) for edge in edges]
    last = {node.id for column in columns for node in column if node.untold}
    order = ordered([[node.id for node in column] for column in columns], weighted, last)
    by_id = {node.id: node for node in document.nodes}
    total = sum(abs(edge.share) for edge in document.edges)
    mass = sum(abs(edge.share) for edge in edges) / total if total else 0.0
    edges.sort(key=lambda edge: abs(edge.share))
    return Shown([[by_id[one] for one in column] for column in order], edges, mass)


def _class(document: Document, given: str | int) -> str:
    for key, name in document.classes.items():
        if str(given) in (key, name):
            return key
    raise UnknownNameError("class of this graph", given, [f"{k} ({v})" for k, v in document.classes.items()])


def _chosen(nodes: Sequence[Node], most: int, residual: bool, of: str | None) -> list[Node]:
    """The nodes of one layer that are drawn, in the graph's order."""
    told = [node for node in nodes if not node.untold and not (node.kind == "class" and of not in (None, node.key))]
    kept = {node.id for node in sorted(told, key=lambda node: -node.rank(of))[:most]}
    return [node for node in nodes if node.id in kept or (node.untold and residual)]


def _draw_edges(axes: Axes, shown: Shown, at: Mapping[str, tuple[float, float]]) -> None:
    """Curves from the right side of a card to the left side of another; they leave in the direction they go."""
    from matplotlib.collections import PathCollection
    from matplotlib.path import Path

    codes = [Path.MOVETO, Path.CURVE4, Path.CURVE4, Path.CURVE4]
    span = max((y for _, y in at.values()), default=1.0) or 1.0
    for sign, colour in ((1, FOR), (-1, AGAINST)):
        edges = [edge for edge in shown.edges if (edge.share < 0) == (sign < 0)]
        paths = []
        for edge in edges:
            (x0, y0), (x1, y1) = at[edge.source], at[edge.target]
            x0 += CROP + TEXT
            tilt = 0.5 * CARD * (y1 - y0) / span
            y0, y1 = y0 + CROP / 2 + tilt, y1 + CROP / 2 - tilt
            bend = 0.5 * (x1 - x0)
            paths.append(Path([(x0, y0), (x0 + bend, y0), (x1 - bend, y1), (x1, y1)], codes))
        widths = [max(0.4, WIDEST * abs(edge.share)) for edge in edges]
        styles = ["solid" if sign > 0 else (0, (DASH[0] / width, DASH[1] / width)) for width in widths]
        drawn = PathCollection(
            paths, facecolors="none", edgecolors=colour, linewidths=widths, linestyles=styles, alpha=0.55, zorder=1
        )
        drawn.set_capstyle("butt")
        axes.add_collection(drawn, autolim=False)


def _draw_node(axes: Axes, node: Node, place: tuple[float, float], colours: Mapping[str, str], scale: float) -> None:
    from matplotlib.patches import FancyBboxPatch, Rectangle

    x, y = place
    own = colours.get(node.key) if node.kind == "class" else None
    box = FancyBboxPatch(
        (x - 0.04, y - 0.06), CROP + TEXT + 0.04, CARD, boxstyle="round,pad=0,rounding_size=0.05", zorder=2,
        facecolor=UNTOLD if node.untold else "white", edgecolor=own or ("#8A94A0" if node.shared else "#CBD2D9"),
        linewidth=2.2 if own else (1.6 if node.shared else 0.7), linestyle="--" if node.untold else "-",
    )  # fmt: skip
    axes.add_patch(box)
    if node.untold:
        size = (CROP + TEXT + 0.04, CARD)
        fill = Rectangle(
            (x - 0.04, y - 0.06), *size, fill=False, hatch=HATCH[node.kind], edgecolor=HATCHED, linewidth=0
        )
        axes.add_patch(fill).set_zorder(2.5)
    extent = (x, x + CROP, y + CROP, y)
    if node.crop is not None:
        axes.imshow(_pixels(node.crop), extent=extent, interpolation="bilinear", zorder=3)
    elif node.map is not None and not node.untold:
        axes.imshow(signed_map(node.map)[0], cmap="RdBu_r", vmin=-1, vmax=1, extent=extent, zorder=3)
    if node.kind == "class":
        axes.add_patch(Rectangle((x, y), 0.12, CROP, facecolor=own or MUTED, linewidth=0, zorder=3))
        _draw_text(axes, node, (x + 0.2, y))
        return
    _draw_text(axes, node, (x + CROP + 0.07, y))
    _draw_importance(axes, node, (x + CROP + 0.07, y + CROP - 0.02), colours, scale)


def _draw_text(axes: Axes, node: Node, place: tuple[float, float]) -> None:
    x, y = place
    style: dict[str, Any] = {"va": "top", "parse_math": False, "zorder": 4, "linespacing": 1.05}
    wide, most = (23, 2) if node.kind == "class" else (17, 1)
    lines = textwrap.wrap(node.label or node.id, wide, max_lines=most, placeholder="…") or [""]
    axes.text(x, y - 0.01, "\n".join(lines), fontsize=7.5, fontweight="bold", color=INK, **style)
    told = [] if node.concept is None or str(node.concept) in node.label else [f"concept {node.concept}"]
    told += [f"output {node.activation:.3g}"] if node.kind == "class" and node.activation is not None else []
    told += [f"{_short(tag)} {value:.2f}" for tag, value in node.tags]
    axes.text(x, y + 0.13 * len(lines) + 0.02, "\n".join(told[:2]), fontsize=6.3, color=MUTED, **style)


def _draw_importance(
    axes: Axes, node: Node, place: tuple[float, float], colours: Mapping[str, str], scale: float
) -> None:
    """A bar a class from a zero line, in the class's colour, on the scale of the layer's concepts; longer are cut."""
    from matplotlib.patches import Rectangle

    keys = [key for key in colours if key in node.importance][:BARS]
    if not keys or not scale:
        return
    x, bottom = place
    half, thick = 0.5, 0.045
    top = bottom - thick * len(keys)
    axes.plot([x + half, x + half], [top - 0.01, bottom + 0.01], color=MUTED, linewidth=0.6, zorder=5)
    for number, key in enumerate(keys):
        length = half * min(1.0, max(-1.0, node.importance[key] / scale))  # a residual's can dwarf all others
        axes.add_patch(
            Rectangle((x + half, top + number * thick), length, 0.8 * thick, facecolor=colours[key], zorder=4)
        )


def _draw_head(sheet: Sheet, layer: Layer, left: float) -> None:
    name = "classes" if layer.classes else layer.site
    sheet.text(left, 0.58, name, fontsize=9, fontweight="bold", color=INK)
    grid = "" if layer.grid is None else f"{layer.grid[0]} × {layer.grid[1]} positions"
    atoms = "" if layer.atoms is None else f"{layer.atoms} concepts"
    error = "" if layer.relative_error is None else f"error {layer.relative_error:.2f}"
    sheet.text(left, 0.75, " · ".join(part for part in (grid, atoms, error) if part), fontsize=6.3, color=MUTED)


def _draw_legend(axes: Axes, sheet: Sheet, document: Document, shown: Shown, colours: Mapping[str, str]) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    nodes = [node for column in shown.columns for node in column]
    kinds = {node.kind for node in nodes}
    width = WIDEST * 0.2
    grey: dict[str, Any] = {"facecolor": UNTOLD, "edgecolor": "#8A94A0"}
    entries: list[Any] = [
        Line2D([], [], color=FOR, linewidth=width, alpha=0.55, label="for its target (20 %)"),
        Line2D([], [], color=AGAINST, linewidth=width, alpha=0.55, linestyle="--", label="against it (20 %)"),
    ]
    if "residual" in kinds:
        entries.append(Patch(hatch=HATCH["residual"], label="residual: no concept tells", **grey))
    if "rest" in kinds:
        entries.append(Patch(hatch=HATCH["rest"], label="rest: other concepts", **grey))
    if any(node.shared for node in nodes):
        entries.append(Patch(facecolor="white", edgecolor="#8A94A0", linewidth=1.6, label="shared by classes"))
    told = [key for key in colours if any(key in node.importance for node in nodes if node.kind != "class")]
    entries += [Patch(color=colours[key], label=f"for {_short(document.classes[key])}") for key in told[:BARS]]
    columns = max(int((sheet.width - 2 * EDGE) / 1.75), 1)
    legend = axes.legend(
        handles=entries, loc="lower left", bbox_to_anchor=((EDGE - 0.08) / sheet.width, 0.28 / sheet.height),
        ncols=min(columns, len(entries)), fontsize=7.5, frameon=False, handlelength=2.2, columnspacing=1.3,
    )  # fmt: skip
    for text in legend.get_texts():
        text.set_parse_math(False)


def _short(text: str, most: int = 14) -> str:
    return text if len(text) <= most else text[: most - 1].rstrip() + "…"


def _title(document: Document) -> str:
    about = document.about
    return " · ".join(str(about[key]) for key in ("model", "image", "attribution") if about.get(key))


def _caption(document: Document, shown: Shown, min_share: float) -> str:
    drawn, there = sum(len(column) for column in shown.columns), len(document.nodes)
    return (
        f"{drawn} of {there} nodes; {len(shown.edges)} of {len(document.edges)} edges, those of at least "
        f"{100 * min_share:g} % of what is done for or against their target: {100 * shown.mass:.0f} % of the mass of "
        "all edges. Bars: importance for the classes, on the scale of the layer's concepts."
    )


def _pixels(url: str) -> np.ndarray:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, ValueError) as error:
        raise InputError(f"a picture of this concept graph cannot be read: {error}") from None
