"""`backlight cafe`: where in pictures latents fire, and where they look; pages and numbers out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from backlight.cli.options import Classes, Device, Format, Json, Kind, Model, OnDevice, Out, Random, Weights

if TYPE_CHECKING:
    from backlight.cli.networks import Network
    from backlight.concepts.attributors import LatentAttributor
    from backlight.concepts.cafe import Cafe, LatentFields
    from backlight.decompositions import Decomposition

Site = Annotated[str, typer.Option(metavar="SITE", help="The dictionary's layer, of `backlight layers MODEL`.")]
Dictionary = Annotated[
    Path,
    typer.Option(metavar="DIR", help="A dictionary with an encoder, a folder of concepts, or a foreign SAE."),
]
Attributor = Annotated[str, typer.Option(help="AttnLRP, CPLRP, SRD (CNNs), IntegratedGradients, Gradient, ...")]
Settings = Annotated[list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="A setting of the attributor.")]


def cafe(
    images: Annotated[list[str], typer.Argument(metavar="IMAGE...", help="Picture files, or folders of them.")],
    site: Site,
    dictionary: Dictionary,
    model: Model = "dinov2_small",
    latent: Annotated[
        list[int] | None, typer.Option("--latent", "-k", min=0, help="Its number; repeat for more.")
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="Without --latent: the strongest on the first picture.")] = 4,
    attributor: Attributor = "AttnLRP",
    token: Annotated[
        str, typer.Option(metavar="WHICH", help="Whose z is explained: argmax, patch, class, sum, or a number.")
    ] = "argmax",
    set: Settings = None,
    out: Out = Path("out/cafe"),
    device: OnDevice = Device.auto,
    format: Format = Kind.png,
    json: Json = False,
    weights: Weights = None,
    random_weights: Random = False,
    classes: Classes = None,
) -> None:
    """Show where a latent looks in pictures, which need not be where it fires: a page a latent, and its numbers."""
    from backlight.cli import console
    from backlight.cli.networks import open_network
    from backlight.cli.outputs import output_folder
    from backlight.concepts.cafe import Cafe
    from backlight.data import image_paths

    folder = output_folder(out)
    how = attributor_with_settings(attributor, set or [])
    fitted = open_dictionary(dictionary)
    network = open_network(model, weights, random_weights, classes, device)
    place = int(token) if token.lstrip("-").isdigit() else token
    made = Cafe(network.front, fitted, network.site(site), attributor=how, token=place)
    paths = list(dict.fromkeys(path for one in images for path in image_paths(one)))
    records = make_pages(network, made, paths, latent, top, folder, format.value, site)
    for record in records:
        console.say(f"latent {record['latent']}: {len(record['pictures'])} pictures -> {record['figure']}")
    if json:
        console.print_json({"site": site, "attributor": type(how).__name__, "token": token, "latents": records})


def open_dictionary(folder: Path) -> Decomposition:
    """A dictionary's folder, that of a folder of concepts, or a checkpoint of another library.

    Raises:
        InputError: there is none.
    """
    from backlight.contributions.decomposed import FITTED
    from backlight.decompositions import Decomposition
    from backlight.decompositions.decomposition import CONFIG
    from backlight.decompositions.foreign import load_foreign

    inner = folder / FITTED
    ours = inner if inner.is_dir() else folder
    theirs = folder.is_file() or (folder.is_dir() and not (ours / CONFIG).is_file()) or (folder / "ae.pt").is_file()
    return load_foreign(folder) if theirs else Decomposition.load(ours)


def attributor_with_settings(name: str, given: list[str]) -> LatentAttributor:
    """An attributor with what was typed. Raises `UnknownNameError` or `InputError` for what does not fit."""
    from dataclasses import fields

    from backlight.cli.settings import parse_setting, parse_value
    from backlight.concepts.attributors import attributor
    from backlight.errors import UnknownNameError

    plain = attributor(name)
    defaults = {one.name: getattr(plain, one.name) for one in fields(plain)}
    chosen = {}
    for key, text in map(parse_setting, given):
        if key not in defaults:
            raise UnknownNameError(f"setting of {type(plain).__name__}", key, defaults)
        chosen[key] = parse_value(key, text, defaults[key])
    return attributor(name, **chosen)


def make_pages(
    network: Network,
    cafe: Cafe,
    paths: list[Path],
    latents: list[int] | None,
    top: int,
    out: Path,
    kind: str,
    site: str,
) -> list[dict[str, Any]]:
    """A page and a JSON file for each latent.

    Raises:
        InputError: a latent that is on in no picture; TargetError: one that is not there.
    """
    import torch

    from backlight.cli.console import progress
    from backlight.cli.outputs import write_figure
    from backlight.decompositions.folder import write_json
    from backlight.errors import InputError
    from backlight.viz.latents import latent_page, shown

    pictures = torch.cat([network.picture(path) for path in paths])
    strongest = cafe.strongest(pictures[:1], top).tolist()
    wanted = strongest if latents is None else list(dict.fromkeys(latents))
    if not wanted:
        raise InputError(f"no latent is on in {paths[0].name} at token {cafe.token!r}")
    records = []
    name = type(cafe.attributor).__name__
    with progress(len(wanted), "explaining") as step:
        for latent in wanted:
            step(f"latent {latent}")
            found = cafe.explain(pictures, latent)
            if not bool((found.z > 0).any()):
                near = ", ".join(map(str, strongest)) or "none"
                raise InputError(f"latent {latent} is off at token {cafe.token!r}; on in {paths[0].name} are {near}")
            values = torch.cat((found.prefix_activation, found.activation.flatten(1)), 1).flatten().double().cpu()
            page = shown(found, pictures, [path.name for path in paths])
            title = f"{network.loaded.name} · {site} · latent {latent}: where it fires, and where it looks"
            figure = latent_page(page, values.numpy(), title, name)
            record = {"latent": latent, "site": site, "attributor": name, "pictures": numbers(found, paths)}
            record["figure"] = write_figure(out / f"latent-{latent}.{kind}", figure, kind)
            write_json(out / f"latent-{latent}.json", record)
            records.append(record)
    return records


def numbers(found: LatentFields, paths: list[Path]) -> list[dict[str, Any]]:
    """What was found on each picture, as JSON holds it: the token, maps, shares, and how localised they are."""
    from math import isfinite

    from backlight.concepts.localisation import MEASURES, measure

    measures = measure(found)
    records = []
    for number, path in enumerate(paths):
        told = {name: float(getattr(measures, name)[number]) for name in MEASURES}
        share = found.prefix_share
        records.append(
            {
                "picture": str(path),
                "token": int(found.tokens[number]),
                "position": found.positions[number].tolist() if int(found.positions[number, 0]) >= 0 else None,
                "z": float(found.z[number]),
                "class_activation": None if found.class_activation is None else float(found.class_activation[number]),
                "prefix_share": None if share is None else float(share[number]),
                **{name: value if isfinite(value) else None for name, value in told.items()},
                "activation": found.activation[number].tolist(),
                "field": found.map[number].tolist(),
                "signed": found.patches.signed[number].tolist(),
            }
        )
    return records
