"""`backlight concepts fit`, `encode`: a bank in; dictionaries and codes of its vectors out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from backlight.cli.options import Device, Json, OnDevice

if TYPE_CHECKING:
    from backlight.concepts.concepts import Concepts

Folder = Annotated[Path, typer.Argument(metavar="FOLDER", help="What `backlight concepts fit` wrote, of one site.")]
BankPlace = Annotated[
    Path | None, typer.Option("--bank", metavar="DIR", help="Where the bank is now, if it has moved.")
]
Settings = Annotated[list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="A setting.")]


def fit(
    bank: Annotated[Path, typer.Argument(metavar="BANK", help="A folder of `backlight concepts bank`.")],
    site: Annotated[list[str] | None, typer.Option("--site", "-s", help="Repeat, or A,B [default: all].")] = None,
    method: Annotated[str, typer.Option(help="A dictionary, or NAME:PRESET.")] = "BisectingKMeans",
    modes: Annotated[
        str | None, typer.Option(metavar="N", help="Concepts: a number, or a multiple of channels: 8x [by method].")
    ] = None,
    set: Settings = None,
    held_out: Annotated[float, typer.Option(help="The share of images that are scored and not fitted.")] = 0.2,
    seed: Annotated[int, typer.Option(help="Of all draws.")] = 0,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="A folder a site goes there.")] = Path(
        "concepts"
    ),
    device: OnDevice = Device.auto,
    json: Json = False,
) -> None:
    """Fit dictionaries to a bank's vectors: the concepts of each layer, and how well they tell its vectors."""
    from backlight.cli.console import print_json
    from backlight.cli.decomposition import news, record, show, typed
    from backlight.cli.networks import choose_device
    from backlight.cli.outputs import output_folder
    from backlight.cli.settings import split
    from backlight.concepts.bank import Bank
    from backlight.concepts.concepts import fit_concepts
    from backlight.decompositions import decomposition
    from backlight.store.arrays import part

    settings = typed(decomposition(method.partition(":")[0]), set or [])
    count = int(modes) if modes is not None and modes.isdecimal() else modes
    opened, place = Bank.open(bank), choose_device(device.value)
    sites = split(site or []) or list(opened.sites)
    for one in sites:
        opened.rows(one)  # all names are right before the first fit begins
    folder, found = output_folder(out), []
    for one in sites:
        with news(one) as tell:
            made = fit_concepts(
                opened, one, method, folder / part(one), modes=count, held_out=held_out, seed=seed, device=place,
                progress=tell, **settings,
            )  # fmt: skip
        found.append(made.decomposed)
    print_json([record(one) for one in found]) if json else show(found)


def encode(
    folder: Folder,
    coder: Annotated[str, typer.Option(help="Lasso, OMP, TopK or Amortised.")] = "Lasso",
    set: Settings = None,
    bank: BankPlace = None,
    device: OnDevice = Device.auto,
    json: Json = False,
) -> None:
    """Code a bank's vectors by another coder than the dictionary's own, the same for every dictionary."""
    from backlight.cli import console
    from backlight.cli.networks import choose_device
    from backlight.concepts.concepts import Concepts, encode_concepts

    concepts, place = Concepts.open(folder, bank=bank), choose_device(device.value)
    settings = coder_settings(coder, set or [])
    with console.progress(-(-concepts.codes.shape[0] // 1024) + 1, "coding") as step:
        found: Any = encode_concepts(
            concepts, None, coder, device=place, progress=lambda done, total: step(f"{done} of {total}"), **settings
        )
    told = coded(found)
    if json:
        console.print_json(told)
        return
    scores = told["held_out"] or told["fitted"]
    where = "held out" if told["held_out"] else "fitted"
    print(f"{told['coder']}: {scores['l0']:.3g} of {told['concepts']} concepts on, R2 {scores['r2']:.3f} ({where})")


def coder_settings(coder: str, given: list[str]) -> dict[str, Any]:
    """`NAME=VALUE` as values of the coder's settings.

    Raises:
        UnknownNameError: a coder, or a setting that it has not; InputError: a value of the wrong type.
    """
    from dataclasses import fields
    from typing import get_type_hints

    from backlight.cli.settings import parse_setting, parse_typed
    from backlight.decompositions.codes import coder as by_name
    from backlight.errors import UnknownNameError

    found: Any = type(by_name(coder))
    known, hints = [one.name for one in fields(found)], get_type_hints(found)
    settings = {}
    for name, text in map(parse_setting, given):
        if name not in known:
            raise UnknownNameError(f"setting of {found.__name__}", name, known)
        settings[name] = parse_typed(name, text, hints[name])
    return settings


def coded(concepts: Concepts) -> dict[str, Any]:
    """Codes and their scores as plain values."""
    report = concepts.report
    return {
        "folder": str(concepts.folder),
        "site": concepts.site,
        "coder": concepts.coder,
        "settings": report["identity"]["settings"],
        "concepts": len(concepts),
        "alive": report["alive"],
        "fitted": report["fitted"],
        "held_out": report.get("held_out"),
    }
