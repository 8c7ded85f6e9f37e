"""`backlight attack`: a picture changed within a bound until a network takes it for another class."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from backlight.cli.options import Classes, Device, Json, Model, OnDevice, Out, Random, Weights, check_picture


class Method(StrEnum):
    """How the picture is changed."""

    pgd = "pgd"
    fgsm = "fgsm"


class Norm(StrEnum):
    """Of the change."""

    linf = "linf"
    l2 = "l2"


class Loss(StrEnum):
    """What the attack descends."""

    cross_entropy = "cross_entropy"
    margin = "margin"


def attack(
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="A picture file.")],
    to: Annotated[
        str | None,
        typer.Option("--to", metavar="CLASS", help="Name, synset or index [default: any but the predicted one]."),
    ] = None,
    model: Model = "efficientnet_lite0",
    method: Annotated[Method, typer.Option(help="pgd: projected gradient descent; fgsm: one step.")] = Method.pgd,
    eps: Annotated[
        float | None,
        typer.Option(help="Bound. linf: levels of 255, a channel; l2: of all, in [0, 1] [default: 4 or 1]."),
    ] = None,
    norm: Annotated[Norm, typer.Option(help="Of the change.")] = Norm.linf,
    steps: Annotated[int, typer.Option(min=1, help="Of pgd.")] = 10,
    step: Annotated[float | None, typer.Option(help="Their length, as eps [default: 2.5 eps / steps].")] = None,
    loss: Annotated[Loss, typer.Option(help="What is descended.")] = Loss.cross_entropy,
    random_start: Annotated[bool, typer.Option("--random-start", help="Pgd starts anywhere in the bound.")] = False,
    seed: Annotated[int, typer.Option(help="Of the random start.")] = 0,
    stop: Annotated[bool, typer.Option("--stop", help="Stop as soon as the class is reached.")] = False,
    out: Out = Path("out"),
    device: OnDevice = Device.auto,
    json: Json = False,
    weights: Weights = None,
    random_weights: Random = False,
    classes: Classes = None,
) -> None:
    """Attack a picture: a PNG that is read back exactly, its difference to the original, and a record as JSON."""
    from backlight.cli import console
    from backlight.cli.networks import described, open_network
    from backlight.cli.outputs import output_folder

    check_picture(image, "one picture is attacked at a time")
    folder = output_folder(out)
    network = open_network(model, weights, random_weights, classes, device)
    unit = 255.0 if norm is Norm.linf else 1.0
    bound = eps if eps is not None else {Norm.linf: 4.0, Norm.l2: 1.0}[norm]
    settings: dict[str, Any] = {
        "method": method.value, "norm": norm.value, "eps": bound / unit, "n_steps": steps, "loss": loss.value,
        "step": None if step is None else step / unit, "random_start": random_start, "seed": seed, "stop": stop,
    }  # fmt: skip
    record = make_attack(network, image, None if to is None else network.class_index(to), folder, settings)
    if json:
        console.print_json(record)
    told = "reached" if record["reached"] else "not reached"
    console.say(f"{image}: {described(record['before'])} -> {described(record['after'])} ({told}), {record['picture']}")


def make_attack(network: Any, path: Path, to: int | None, out: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Attack a picture file, write what came of it, read it back, and return the record.

    Raises:
        InputError: a network of features; a bound that no 8-bit picture can use.
    """
    import json
    from dataclasses import asdict

    import torch

    import backlight
    from backlight.cli.outputs import LONGEST, slug, write_png
    from backlight.errors import InputError
    from backlight.evaluation.journal import write_text
    from backlight.robustness import evade, framed

    loaded = network.loaded
    if loaded.classes.unit == "feature":
        raise InputError(f"{loaded.name!r} gives features: an attack needs a classifier")
    x = loaded.preprocessing.image(path)[None].to(network.device)
    found = evade(loaded, x, to=to, **settings)
    aim = "another" if to is None else slug(loaded.classes.name(to))
    base = out / f"{path.stem[:LONGEST]}.to-{aim}"
    picture = write_png(base.with_name(f"{base.name}.png"), framed(found.image[0], path, loaded.preprocessing))
    change = found.image[0] - found.original[0]
    difference = write_png(base.with_name(f"{base.name}.difference.png"), shown_change(change))
    with torch.no_grad():
        again = loaded.model(loaded.preprocessing.tensor(picture)[None].to(network.device))[0]
    before, after = found.prediction.before[0], found.prediction.after[0]
    left, right = int(found.label[0]), int(after.argmax())
    aims = [left, right] if to is None else [left, to]
    record = {
        "image": str(path), "model": loaded.name, "version": backlight.__version__,
        "settings": asdict(found.adversary), "steps": int(found.steps[0]), "reached": bool(found.reached[0]),
        "before": network.prediction(before, left), "after": network.prediction(after, right),
        "classes": [
            {"before": network.prediction(before, one), "after": network.prediction(after, one)} for one in aims
        ],
        "change": {"linf_levels": round(255 * float(found.linf[0]), 4), "l2": float(found.l2[0]),
                   "changed": float(found.changed[0])},
        "read_back": {"same_pixels": bool(torch.equal(loaded.preprocessing.image(picture), found.image[0].cpu())),
                      "prediction": network.prediction(again, int(again.argmax()))},
        "losses": [None if value != value else value for value in found.losses[:, 0].tolist()],
        "picture": picture, "difference": difference,
    }  # fmt: skip
    write_text(base.with_name(f"{base.name}.json"), json.dumps(record, indent=2) + "\n")
    return record


def shown_change(change: Any) -> Any:
    """A change `[3, H, W]` as 8-bit pixels: grey is none, the largest change is black or white."""
    import numpy as np

    values = change.detach().cpu().permute(1, 2, 0).numpy()
    scaled = values / max(float(np.abs(values).max()), 1e-12)
    return np.rint(127.5 + 127.5 * scaled).clip(0, 255).astype(np.uint8)
