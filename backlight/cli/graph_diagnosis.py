"""`backlight graph diagnose`: why a picture is taken for one class and not for another."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from backlight.cli.graph_options import Coder, CoderSettings, Dictionaries, Picture, coding
from backlight.cli.options import Classes, Device, Json, Model, OnDevice, Random, Weights, check_picture


def diagnose(
    image: Picture,
    concepts: Dictionaries,
    true: Annotated[
        str | None,
        typer.Option("--true", metavar="CLASS", help="Name, synset or index; with --attacked, the predicted one."),
    ] = None,
    predicted: Annotated[
        str | None,
        typer.Option("--predicted", metavar="CLASS", help="The other class [default: the likeliest other one]."),
    ] = None,
    attacked: Annotated[
        Path | None, typer.Option(metavar="OTHER", help="Another version of the picture, as of `backlight attack`.")
    ] = None,
    model: Model = "efficientnet_lite0",
    coder: Coder = None,
    set: CoderSettings = None,
    top: Annotated[int, typer.Option(min=1, help="Concepts a layer that speak for a class against the other.")] = 5,
    shared: Annotated[int, typer.Option(min=0, help="Concepts a layer that matter for both classes.")] = 3,
    attribution: Annotated[str, typer.Option(help="What makes an edge.")] = "IntegratedGradients",
    count: Annotated[int, typer.Option(min=1, help="Routes of each kind.")] = 5,
    exemplars: Annotated[int, typer.Option(min=0, help="Pictures of each concept in other images; slow.")] = 0,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Where the files go.")] = Path("out"),
    device: OnDevice = Device.auto,
    json: Json = False,
    weights: Weights = None,
    random_weights: Random = False,
    classes: Classes = None,
) -> None:
    """Tell two classes apart in a picture, or a picture from its attacked version: a summary, graphs and pages."""
    from backlight.cli import console
    from backlight.cli.graph import steps
    from backlight.cli.networks import open_network
    from backlight.cli.outputs import output_folder
    from backlight.errors import InputError
    from backlight.graph.diagnosis import diagnose as of_image
    from backlight.graph.diagnosis_change import diagnose_change
    from backlight.graph.layers_fitted import open_layers

    for path in (image, attacked):
        if path is not None:
            check_picture(path, "a diagnosis is of one picture")
    settings = coding(coder, set)
    if true is None and attacked is None:
        raise InputError("say which class the picture shows, --true CLASS, or give its attacked version, --attacked")
    folder = output_folder(out)
    network = open_network(model, weights, random_weights, classes, device)
    layers = open_layers(concepts, coder, model=network.loaded.model, **settings)
    a, b = (None if one is None else network.class_index(one) for one in (true, predicted))
    x = _read(network, image)
    building: dict[str, Any] = {"top": top, "shared": shared, "attribution": attribution, "exemplars": exemplars}
    with steps() as tell:
        building["progress"] = tell
        if attacked is None:
            assert a is not None
            found: Any = of_image(
                network.loaded, x, layers, true=a, predicted=b, count=count, name=image.name, **building
            )
        else:
            found = diagnose_change(
                network.loaded, x, _read(network, attacked), layers, true=a, predicted=b, count=count,
                image_names=(image.name, attacked.name), **building,
            )  # fmt: skip
    files = written(found, folder)
    console.print_json({**found.as_json(), "files": files}) if json else print(found.text())
    if not json:
        console.say(f"{image} -> {', '.join(files.values())}")


def written(found: Any, folder: Path) -> dict[str, str]:
    """A diagnosis as files: the summary, its numbers, and each graph with its page and figure."""
    from json import dumps

    from backlight.cli.graph import drawn
    from backlight.cli.outputs import output_folder
    from backlight.evaluation.journal import write_text
    from backlight.graph.diagnosis import Diagnosis

    files = {"summary": str(folder / "diagnosis.md"), "record": str(folder / "diagnosis.json")}
    write_text(folder / "diagnosis.md", found.markdown())
    write_text(folder / "diagnosis.json", dumps(found.as_json(), indent=2) + "\n")
    graphs = {"": found.graph} if isinstance(found, Diagnosis) else {"before": found.before, "after": found.after}
    for name, graph in graphs.items():
        place = output_folder(folder / name)
        graph.save(place / "graph.json")
        told = {"graph": str(place / "graph.json"), **drawn(graph, place)}
        files |= {f"{name} {kind}".strip(): path for kind, path in told.items()}
    return files


def _read(network: Any, path: Path) -> Any:
    return network.loaded.preprocessing.tensor(path)[None].to(network.device)
