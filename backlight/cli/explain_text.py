"""`backlight explain-text`: a text in; coloured tokens, a page and heat maps of contributions out."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from backlight.cli.options import Device, Format, Json, Kind, OnDevice, Out

if TYPE_CHECKING:
    from backlight.models.language_models import LanguageModel
    from backlight.text import TextContributions


class Readout(StrEnum):
    """What a token's relevance is of its embedding's."""

    sum = "sum"
    norm = "norm"


class Precision(StrEnum):
    """Of weights and passes."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


def explain_text(
    text: Annotated[str, typer.Argument(help="The text; of an encoder, with its mask; - reads it from stdin.")],
    model: Annotated[
        str, typer.Option("--model", "-m", metavar="M", help="ORG/NAME of Hugging Face, a folder, or a llama2.c .bin.")
    ],
    target: Annotated[
        str | None,
        typer.Option("--target", "-t", metavar="TOKEN", help='As written, " cat", or #17; else the best.'),
    ] = None,
    against: Annotated[str | None, typer.Option(metavar="TOKEN", help="A token whose logit is taken off.")] = None,
    position: Annotated[
        int | None, typer.Option(help="The token behind which is asked, from 0 [default: the mask, else the last].")
    ] = None,
    method: Annotated[str, typer.Option(help="A name of `backlight methods`.")] = "AttnLRP",
    set: Annotated[list[str] | None, typer.Option(metavar="NAME=VALUE", help="A setting of the method.")] = None,
    readout: Annotated[Readout, typer.Option(help="A token's relevance, of that of its embedding.")] = Readout.sum,
    algorithm: Annotated[
        str | None, typer.Option(help="Of the contributions [default: hidden integrated gradients]; none: without.")
    ] = None,
    baseline: Annotated[
        str, typer.Option(metavar="WORD", help="Where paths begin: neutral, vocabulary, text, zero, or a token.")
    ] = "neutral",
    tokenizer: Annotated[Path | None, typer.Option(metavar="FILE", help="The tokens of a llama2.c file.")] = None,
    encoder: Annotated[bool, typer.Option("--encoder", help="A masked language model, such as BERT.")] = False,
    dtype: Annotated[
        Precision, typer.Option(help="Of weights and passes; auto is that of the model's file.")
    ] = Precision.auto,
    checkpoint: Annotated[
        bool, typer.Option("--checkpoint", help="For long texts: hold what goes into blocks, compute the rest again.")
    ] = False,
    out: Out = Path("out/text"),
    device: OnDevice = Device.auto,
    format: Format = Kind.png,
    json: Json = False,
) -> None:
    """Explain what a language model says after a text: relevance by token, contributions by block and head."""
    from rich.console import Console

    from backlight.cli import console
    from backlight.cli.outputs import output_folder
    from backlight.contributions import default_sites
    from backlight.engine import checkpointed
    from backlight.methods import method as by_name
    from backlight.text import explain_text as explain
    from backlight.text import text_contributions
    from backlight.viz.text_figures import coloured_text, text_page, visible

    text = sys.stdin.read() if text == "-" else text
    folder = output_folder(out)
    chosen = by_name(method).__name__
    settings = _settings(chosen, set or [], baseline)
    language = _open(model, tokenizer, encoder, device, dtype)
    asked: dict[str, Any] = {"target": _token(target), "against": _token(against), "position": position}
    wanted = algorithm != "none"
    with checkpointed(language.network, default_sites(language.network)) if checkpoint else nullcontext():
        found = explain(language, text, **asked, method=chosen, readout=readout.value, **settings)
        shown = text_contributions(language, text, **asked, algorithm=algorithm, baseline=baseline) if wanted else None
    record = {
        "text": text,
        "model": language.name,
        "source": language.source,
        **found.record(),
        "contributions": None if shown is None else shown.record(),
    }
    page = text_page(found, shown, title=f"{language.name}: {found.asked}, {found.method}")
    files = _written(folder, page, record, shown, format.value)
    if json:
        console.print_json({**record, "files": [*map(str, files)]})
    else:
        Console(highlight=False, soft_wrap=True).print(coloured_text(found))
    best = ", ".join(f"{visible(token)!r} {100 * share:.1f} %" for token, share in found.predicted[:3])
    console.say(f"{found.asked}: {found.score:.4g}; likeliest {best}")
    console.say("-> " + ", ".join(map(str, files)))


def _written(
    folder: Path, page: str, record: dict[str, Any], contributions: TextContributions | None, kind: str
) -> list[Path]:
    """The files: the page, the record and, where there are contributions, their figure."""
    from backlight.cli.outputs import write_figure
    from backlight.evaluation.journal import write_text
    from backlight.viz.text_figures import contributions_figure

    files = [folder / "explanation.html", folder / "explanation.json"]
    write_text(files[0], page)
    write_text(files[1], _json(record))
    if contributions is not None:
        files.append(folder / f"contributions.{kind}")
        write_figure(files[-1], contributions_figure(contributions), kind)
    return files


def _open(model: str, tokenizer: Path | None, encoder: bool, device: Device, dtype: Precision) -> LanguageModel:
    import torch

    from backlight.cli.networks import choose_device
    from backlight.errors import InputError
    from backlight.models.language_models import load_language_model

    place = choose_device(device.value)
    if tokenizer is not None and not (tokenizer.is_file() and model.endswith(".bin")):
        why = "is no file" if not tokenizer.is_file() else "goes with a llama2.c file; other models have their own"
        raise InputError(f"--tokenizer {str(tokenizer)!r} {why}")
    if model.endswith(".bin") and tokenizer is None:
        raise InputError(f"{model!r} holds no tokens: give their file by --tokenizer")
    precision = None if dtype is Precision.auto else getattr(torch, dtype.value)
    language = load_language_model(model, tokenizer=tokenizer, encoder=encoder, dtype=precision)
    language.model.to(place)
    return language


def _token(written: str | None) -> str | int | None:
    """`#17` is token 17, anything else the token that is written so."""
    numbered = written is not None and written.startswith("#") and written[1:].isdigit()
    return int(written[1:]) if written is not None and numbered else written


def _settings(name: str, given: list[str], baseline: str) -> dict[str, Any]:
    """The method's settings; a path of its own begins where those of the contributions do."""
    from backlight.cli.settings import parse_setting, parse_value
    from backlight.errors import UnknownNameError
    from backlight.methods import method

    known = method(name).settings()
    found: dict[str, Any] = {"baseline": baseline} if "baseline" in known else {}
    for key, value in map(parse_setting, given):
        if key not in known:
            raise UnknownNameError(f"setting of {name}", key, known)
        found[key] = parse_value(key, value, known[key])
    return found


def _json(record: dict[str, Any]) -> str:
    import json

    return json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
