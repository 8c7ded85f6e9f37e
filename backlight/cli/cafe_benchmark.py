"""`backlight benchmark cafe`: which attributor finds the patches that bring a latent back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from backlight.cli.options import Device, Model, OnDevice, Out, Random, Weights
from backlight.errors import InputError

if TYPE_CHECKING:
    from backlight.benchmarks.cafe import SiteDictionary
    from backlight.concepts.insertion_latents import InsertionTest

QUICK_STEPS = "2,8,16,32,64,128"
List = list[str] | None


def cafe(
    dictionaries: Annotated[
        list[str],
        typer.Option(
            "--dictionaries",
            "-d",
            metavar="[SITE=]FOLDER",
            help="Fitted concepts, or SITE=a saved decomposition; repeat for several layers.",
        ),
    ],
    data: Annotated[Path, typer.Option(metavar="FOLDER", help="Pictures that the dictionaries were not fitted to.")],
    model: Model = "dinov2_small",
    attributors: Annotated[List, typer.Option("--attributors", "-a", help="Repeat, or A,B [default: all].")] = None,
    set: Annotated[List, typer.Option(metavar="ATTRIBUTOR.NAME=VALUE", help="A setting of an attributor.")] = None,
    latents_per_layer: Annotated[int, typer.Option(min=1, help="Drawn among those --least and --most admit.")] = 20,
    images_per_latent: Annotated[int, typer.Option(min=1, help="Those where it is largest.")] = 2,
    least: Annotated[float, typer.Option(help="The least share of patch tokens that a latent is on at.")] = 1e-4,
    most: Annotated[float, typer.Option(help="The largest share.")] = 0.05,
    unit: Annotated[List, typer.Option(help="tokens, pixels [default: both].")] = None,
    canvas: Annotated[
        List, typer.Option(help="position, zero, mean, blur, noise [default: position, zero; zero, blur of pixels].")
    ] = None,
    reading: Annotated[str, typer.Option(help="fixed: at the token where the latent is largest; or max.")] = "fixed",
    steps: Annotated[
        str | None, typer.Option(help="lab, doubling, a number of steps, or budgets as 2,8,32 [default: lab].")
    ] = None,
    delete: Annotated[bool, typer.Option("--delete", help="Take patches away instead.")] = False,
    few: Annotated[int | None, typer.Option(min=1, help="The most pairs a layer of costly attributors.")] = None,
    signed: Annotated[List, typer.Option(help="Attributors that are ranked by signed sums too, or none [all].")] = None,
    precision: Annotated[str, typer.Option(help="Of the curves' passes: float32 or bfloat16.")] = "float32",
    limit: Annotated[int | None, typer.Option(min=1, help="The most pictures to choose from.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Few steps and samples.")] = False,
    out: Out = Path("out"),
    seed: Annotated[int, typer.Option(help="Of the draw of latents.")] = 314,
    device: OnDevice = Device.auto,
    batch_size: Annotated[int, typer.Option(min=1, help="The most images in one pass of the network.")] = 32,
    weights: Weights = None,
    random_weights: Random = False,
) -> None:
    """iERF, Figure 7: do the patches that an attributor ranks first bring a latent back?"""
    from backlight import models
    from backlight.benchmarks.cafe import CafeOptions
    from backlight.benchmarks.cafe import cafe as run
    from backlight.benchmarks.cafe_attributors import DEFAULT
    from backlight.benchmarks.cafe_pairs import Rule
    from backlight.cli.console import say
    from backlight.cli.networks import choose_device
    from backlight.cli.outputs import output_folder
    from backlight.cli.settings import split

    folder = output_folder(out)
    found = [opened(one) for one in dictionaries]
    common = {"reading": reading, "steps": steps_of(steps, quick), "delete": delete, "batch_size": batch_size}
    options = CafeOptions(
        out=folder,
        data=data,
        attributors=split(attributors) if attributors else DEFAULT,
        settings=attributor_settings(set or []),
        tests=tests_of(split(unit or []), split(canvas or []), common),
        rule=Rule(latents_per_layer, images_per_latent, least, most, seed),
        signed=split(signed) if signed else True,
        few=few,
        precision=precision,
        limit=limit,
        quick=quick,
        told=say,
    )
    loaded = models.load(model, weights=weights, pretrained=not random_weights)
    loaded.model.to(choose_device(device.value))
    print(run(loaded, found, options).markdown(), flush=True)
    say(f"-> {out}: table.md, table.csv, table.tex, curves.csv, run.json")


def opened(text: str) -> SiteDictionary:
    """A dictionary with its site: `SITE=FOLDER` of a saved decomposition, or the folder of fitted concepts."""
    from backlight.benchmarks.cafe import SiteDictionary
    from backlight.concepts.concepts import Concepts
    from backlight.decompositions import Decomposition

    site, equals, folder = text.partition("=")
    if equals:
        return SiteDictionary(site, Decomposition.load(folder))
    concepts = Concepts.open(text)
    return SiteDictionary(concepts.site, concepts.dictionary)


def tests_of(units: Sequence[str], canvases: Sequence[str], common: dict[str, Any]) -> list[InsertionTest]:
    """A test for each unit and canvas that go together; InputError where a canvas goes with none of the units."""
    from backlight.concepts.insertion_latents import UNITS, InsertionTest
    from backlight.concepts.token_canvas import TOKEN_CANVASES
    from backlight.metrics.canvas import CANVASES

    known = {"tokens": [one for one in TOKEN_CANVASES if one != "patch"], "pixels": CANVASES}
    usual = {"tokens": ("position", "zero"), "pixels": ("zero", "blur")}
    found = []
    for unit in units or UNITS:
        chosen = [one for one in canvases if one in known.get(unit, canvases)] if canvases else usual.get(unit, ("",))
        found += [InsertionTest(unit=unit, canvas=canvas, token="patch", **common) for canvas in chosen]
    lost = {*canvases} - {test.canvas for test in found}
    if lost:
        raise InputError(f"no canvas {sorted(map(str, lost))[0]!r} of {', '.join(units or UNITS)}; choices: {known}")
    return found


def steps_of(text: str | None, quick: bool) -> Any:
    """A schedule's name, a number of steps, or budgets."""
    text = text or (QUICK_STEPS if quick else "lab")
    parts = text.split(",")
    if len(parts) > 1 or text.strip().isdigit():
        try:
            numbers = [int(part) for part in parts]
        except ValueError:
            raise InputError(f"steps are a schedule, a number, or numbers with commas, not {text!r}") from None
        return numbers if len(numbers) > 1 else numbers[0]
    return text


def attributor_settings(given: Sequence[str]) -> dict[str, dict[str, Any]]:
    """`KernelSHAP.n_samples=256` as `{"KernelSHAP": {"n_samples": 256}}`."""
    import json

    found: dict[str, dict[str, Any]] = {}
    for one in given:
        place, equals, value = one.partition("=")
        name, dot, setting = place.partition(".")
        if not (equals and dot and setting):
            raise InputError(f"a setting is written ATTRIBUTOR.NAME=VALUE, not {one!r}")
        try:
            read = json.loads(value)
        except ValueError:
            read = value
        found.setdefault(name, {})[setting] = read
    return found
