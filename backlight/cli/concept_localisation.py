"""`backlight concepts localise`: which latents of a layer look away from where they fire; a table and figures out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from backlight.cli.cafe import Attributor, Dictionary, Settings, Site
from backlight.cli.options import Device, Format, Json, Kind, Model, OnDevice, Out, Random, Weights

if TYPE_CHECKING:
    from backlight.concepts.localisation import Localisation


def localise(
    images: Annotated[list[str], typer.Argument(metavar="IMAGE...", help="Picture files, or folders of them.")],
    site: Site,
    dictionary: Dictionary,
    model: Model = "dinov2_small",
    count: Annotated[int, typer.Option(min=1, help="Latents to explain, drawn of those that are on somewhere.")] = 64,
    per_latent: Annotated[int, typer.Option(min=1, help="Pictures for each: those where it is largest.")] = 4,
    radius: Annotated[float, typer.Option(min=0, help="Patches around the firing token that count as there.")] = 2.0,
    limit: Annotated[int | None, typer.Option(min=1, help="The most pictures.")] = None,
    top: Annotated[int, typer.Option(min=1, help="Latents in the table.")] = 10,
    attributor: Attributor = "AttnLRP",
    set: Settings = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the draw.")] = 0,
    out: Out = Path("out/localisation"),
    device: OnDevice = Device.auto,
    format: Format = Kind.png,
    json: Json = False,
    weights: Weights = None,
    random_weights: Random = False,
) -> None:
    """List the latents of a layer that look farthest from where they fire: table, .csv, .json, figure."""
    from dataclasses import replace

    import torch

    from backlight.cli import console
    from backlight.cli.cafe import attributor_with_settings, open_dictionary
    from backlight.cli.networks import open_network
    from backlight.cli.outputs import output_folder
    from backlight.concepts.localisation import localise as measured
    from backlight.data import image_paths

    folder = output_folder(out)
    how, fitted = attributor_with_settings(attributor, set or []), open_dictionary(dictionary)
    network = open_network(model, weights, random_weights, None, device)
    paths = list(dict.fromkeys(path for one in images for path in image_paths(one)))
    pictures = torch.cat([network.picture(path) for path in paths[:limit]])
    with console.progress(count, "explaining") as step:
        found = measured(
            network.front,
            fitted,
            network.site(site),
            pictures,
            count=count,
            per_latent=per_latent,
            radius=radius,
            attributor=how,
            seed=seed,
            progress=lambda done, total: step(f"{done} of {total} latents"),
        )
    found = replace(found, site=site)
    files = _write(found, folder, format.value, top)
    if json:
        console.print_json(found.record())
    else:
        print(found.markdown(top))
    console.say(f"{len(found.latents)} of {found.modes} latents ({found.dead} on nowhere) -> {', '.join(files)}")


def _write(found: Localisation, out: Path, kind: str, top: int) -> list[str]:
    """The files, by name."""
    from backlight.cli.outputs import write_figure
    from backlight.decompositions.folder import write_json
    from backlight.evaluation.journal import write_text
    from backlight.viz.latents import localisation_figure

    write_json(out / "localisation.json", found.record())
    write_text(out / "localisation.csv", found.csv())
    write_text(out / "localisation.md", found.markdown(top) + "\n")
    figure: Any = localisation_figure(found, top)
    write_figure(out / f"localisation.{kind}", figure, kind)
    return ["localisation.json", "localisation.csv", "localisation.md", f"localisation.{kind}"]
