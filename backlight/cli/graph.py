"""`backlight graph`: how the concepts of a network's layers make each other, and the decision on a picture."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from backlight.cli.graph_diagnosis import diagnose
from backlight.cli.graph_options import Coder, CoderSettings, Dictionaries, Picture, coding
from backlight.cli.graph_validation import validate
from backlight.cli.options import Classes, Device, Json, Model, OnDevice, Random, Weights, check_picture

if TYPE_CHECKING:
    from rich.table import Table

    from backlight.graph.concept_graph import ConceptGraph
    from backlight.graph.difference import GraphDifference

graph = typer.Typer(
    name="graph",
    help="Concept graphs: how the concepts of one layer make those of the next, and these the decision.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

GraphFile = Annotated[Path, typer.Argument(metavar="GRAPH.json", help="What `graph build` wrote.")]


class Pairs(StrEnum):
    """Between which layers edges go."""

    consecutive = "consecutive"
    classes = "classes"
    all = "all"


class Sign(StrEnum):
    """Of routes."""

    positive = "positive"
    negative = "negative"
    any = "any"


@graph.command()
def build(
    image: Picture,
    concepts: Dictionaries,
    model: Model = "efficientnet_lite0",
    class_: Annotated[
        list[str] | None,
        typer.Option("--class", metavar="CLASS", help="Beside the predicted one: name, synset or index; repeat."),
    ] = None,
    coder: Coder = None,
    set: CoderSettings = None,
    top: Annotated[int, typer.Option(min=0, help="Concepts a class and layer.")] = 5,
    shared: Annotated[int, typer.Option(min=0, help="Concepts a layer that matter for all classes.")] = 3,
    attribution: Annotated[str, typer.Option(help="What makes an edge.")] = "IntegratedGradients",
    pairs: Annotated[Pairs, typer.Option(help="Between which layers.")] = Pairs.consecutive,
    no_residual: Annotated[
        bool, typer.Option("--no-residual", help="Leave out what no concept tells, as in the paper.")
    ] = False,
    exemplars: Annotated[int, typer.Option(min=0, help="Pictures of each concept in other images; slow.")] = 0,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Where graph.json and its pages go.")] = Path(
        "out"
    ),
    device: OnDevice = Device.auto,
    json: Json = False,
    weights: Weights = None,
    random_weights: Random = False,
    classes: Classes = None,
) -> None:
    """Build the graph of a picture: graph.json, a page to explore it (graph.html) and a figure (graph.png)."""
    from backlight.cli import console
    from backlight.cli.networks import open_network
    from backlight.cli.outputs import output_folder
    from backlight.graph.build import build_graph
    from backlight.graph.layers_fitted import open_layers

    check_picture(image, "a graph is of one picture")
    settings = coding(coder, set)
    folder = output_folder(out)
    network = open_network(model, weights, random_weights, classes, device)
    layers = open_layers(concepts, coder, model=network.loaded.model, **settings)
    indices = [network.class_index(one) for one in class_ or []]
    x = network.loaded.preprocessing.tensor(image)[None].to(network.device)
    with steps() as tell:
        found = build_graph(
            network.loaded, x, layers, classes=indices, top=top, shared=shared, attribution=attribution,
            residual=not no_residual, pairs=pairs.value, name=image.name, exemplars=exemplars, progress=tell,
        )  # fmt: skip
    found.save(folder / "graph.json")
    files = {"graph": str(folder / "graph.json"), **drawn(found, folder)}
    console.print_json({**record(found), "files": files}) if json else show_graph(found, 3, Sign.positive.value)
    if not json:
        console.say(f"{image} -> {', '.join(files.values())}")


@graph.command()
def show(
    file: GraphFile,
    routes: Annotated[int, typer.Option(min=1, help="The strongest, a class.")] = 5,
    sign: Annotated[Sign, typer.Option(help="Routes that speak for a class, against it, or both.")] = Sign.positive,
    min_share: Annotated[float, typer.Option(min=0, max=1, help="Leave out weaker edges.")] = 0.0,
    layer: Annotated[list[str] | None, typer.Option(help="Only these; repeat.")] = None,
    class_: Annotated[list[str] | None, typer.Option("--class", metavar="CLASS", help="Only these; repeat.")] = None,
    json: Json = False,
) -> None:
    """Show a graph: its layers, the strongest edges into each node, the strongest routes to each class."""
    from backlight.cli import console
    from backlight.graph.concept_graph import ConceptGraph

    found = ConceptGraph.load(file).filtered(min_share=min_share, layers=layer, classes=class_)
    console.print_json(record(found, routes, sign.value)) if json else show_graph(found, routes, sign.value)


@graph.command()
def diff(
    first: GraphFile,
    second: GraphFile,
    class_: Annotated[
        list[str] | None,
        typer.Option("--class", metavar="CLASS", help="Of both, or twice: of the first, of the second."),
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="The largest changes.")] = 15,
    json: Json = False,
) -> None:
    """Compare two graphs: what becomes more important for a class, and less; the same file twice, two classes."""
    from backlight.cli import console
    from backlight.errors import InputError
    from backlight.graph.concept_graph import ConceptGraph

    named = class_ or []
    if len(named) > 2:
        raise InputError(f"--class is given {len(named)} times: give one for both graphs, or one for each")
    graphs = [ConceptGraph.load(path) for path in (first, second)]
    found = graphs[0].difference(graphs[1], (named[0], named[-1]) if named else None)
    console.print_json(found.as_json()) if json else show_difference(found, count)


graph.command()(diagnose)
graph.command()(validate)


def steps() -> Any:
    """A bar on stderr where it is a terminal; call what it yields as `build_graph` does its `progress`."""
    from contextlib import contextmanager

    from rich.markup import escape
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from backlight.cli.console import messages

    @contextmanager
    def bar() -> Any:
        console = messages()
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as shown:
            task = shown.add_task("codes")
            yield lambda what, done, total: shown.update(task, description=escape(what), completed=done, total=total)

    return bar()


def drawn(found: ConceptGraph, folder: Path) -> dict[str, str]:
    """The page and the figure of a graph, as files."""
    from backlight.cli.outputs import write_figure
    from backlight.viz.graph_page import write_page
    from backlight.viz.graph_picture import graph_figure

    page = write_page(found, folder / "graph.html")
    return {"page": str(page), "figure": write_figure(folder / "graph.png", graph_figure(found), "png")}


def record(found: ConceptGraph, count: int = 3, sign: str = "positive") -> dict[str, Any]:
    """A graph as plain values, without pictures and maps."""
    held = found.graph.nodes
    return {
        **{name: found.about.get(name) for name in ("model", "image", "attribution", "classes")},
        "layers": found.layers,
        "nodes": [
            {
                "id": node,
                **{name: held[node].get(name) for name in ("layer", "kind", "label", "importance", "activation")},
            }
            for node in held
        ],
        "edges": [{"source": a, "target": b, **edge} for a, b, edge in found.graph.edges(data=True)],
        "mass": [
            {"source": a, "target": b, **{kind: found.mass(a, b, kind) for kind in ("concept", "rest", "residual")}}
            for a, b in found.pairs()
        ],
        "completeness": found.completeness,
        "routes": {str(c): [one.as_json() for one in found.routes(c, count, sign)] for c in found.classes},
    }


def show_graph(found: ConceptGraph, count: int, sign: str) -> None:
    """Layers, edges and routes, as tables on stdout."""
    from rich.markup import escape

    print(f"{found.about.get('model')}, {found.about.get('image')}: {', '.join(_classes(found))}")
    table = _table("layers", "site", "concepts", "relative error", "to", "by concepts", "rest", "residual", "gap")
    errors = {one["site"]: one for one in found.layers}
    for a, b in found.pairs():
        masses = [f"{found.mass(a, b, kind):.0%}" for kind in ("concept", "rest", "residual")]
        layer = errors[a]
        table.add_row(
            escape(a), str(layer["atoms"]), f"{layer['relative_error']:.2f}", escape(b), *masses, _gap(found, a, b)
        )
    print_table(table)
    table = _table("strongest edges", "from", "to", "weight", "share")
    for node in found.graph:
        for parent, edge in list(found.edges_into(node))[:count]:
            table.add_row(_named(found, parent), _named(found, node), f"{edge['weight']:+.3g}", f"{edge['share']:+.0%}")
    print_table(table)
    table = _table("routes", "class", "strength", "route")
    for number in found.classes:
        for route in found.routes(number, count, sign):
            table.add_row(str(number), f"{route.strength:+.2g}", escape(" > ".join(route.nodes[:-1])))
    print_table(table)


def show_difference(found: GraphDifference, count: int) -> None:
    """The largest changes, as tables on stdout."""
    from rich.markup import escape

    a, b = found.classes
    print(f"class {a}" + ("" if a == b else f" in the first, {b} in the second"))
    table = _table("importance", "node", "first", "second", "difference")
    for one in found.nodes[:count]:
        table.add_row(escape(f"{one.node} {one.label}"), *_cells(one.importance))
    print_table(table)
    table = _table("shares", "from", "to", "first", "second", "difference")
    for edge in found.edges[:count]:
        table.add_row(escape(edge.source), escape(edge.target), *_cells(edge.share))
    print_table(table)
    for where, nodes in (("first", found.only_first), ("second", found.only_second)):
        if nodes:
            print(f"only in the {where}: {', '.join(nodes)}")


def _cells(change: Any) -> list[str]:
    told = ["-" if one is None else f"{one:+.3g}" for one in (change.first, change.second)]
    return [*told, f"{change.difference:+.3g}"]


def _classes(found: ConceptGraph) -> list[str]:
    shown = []
    for one in found.about.get("classes", []):
        share = "" if one["probability"] is None else f" {one['probability']:.1%}"
        shown.append(f"{one['name']} ({one['index']}){share}")
    return shown


def _gap(found: ConceptGraph, source: str, target: str) -> str:
    """The largest completeness gap of an edge set, by the largest score that is explained."""
    for one in found.completeness:
        if (one["source"], one["target"]) == (source, target) and one["gap"]:
            most = max(abs(end - start) for end, start in zip(one["reached"], one["base"], strict=True))
            return f"{max(map(abs, one['gap'])) / most:.1%}" if most else "-"
    return "-"


def _named(found: ConceptGraph, node: str) -> str:
    from rich.markup import escape

    label = found.graph.nodes[node]["label"]
    return escape(node if label.startswith("concept ") or label in node else f"{node} {label}")


def _table(title: str, *columns: str) -> Table:
    from rich.box import HORIZONTALS
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=HORIZONTALS)
    for name in columns:
        words = name in ("site", "to", "from", "class", "route", "node")
        table.add_column(name, justify="left" if words else "right", overflow="fold")
    return table


def print_table(table: Table) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = max(console.width, 120)
    console.print(table)
