"""Which latents and images an insertion benchmark asks about: by a rule and a seed, before anything is attributed."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from backlight.concepts.latent_units import layout_at, stream
from backlight.data.labelled import LabelledFolder
from backlight.decompositions import Decomposition
from backlight.errors import ImageError, InputError
from backlight.evaluation.journal import write_text
from backlight.methods.token_layout import TokenLayout
from backlight.shapes import Float, Int


@dataclass(frozen=True)
class Rule:
    """Latents that are on at `least` to `most` of all patch tokens, and in at least `images` images, in an order that
    `seed` and the layer's name decide; the first `latents` of them, each with the `images` images where it is largest.

    More latents, or more images, add to those of fewer latents with the same number of images.
    """

    latents: int = 20
    images: int = 2
    least: float = 1e-4
    most: float = 0.05
    seed: int = 314

    def __post_init__(self) -> None:
        if self.latents < 1 or self.images < 1 or not 0 <= self.least <= self.most <= 1:
            raise InputError(
                f"latents and images are at least 1, and 0 <= least <= most <= 1: got {self.latents}, {self.images}, "
                f"{self.least}, {self.most}"
            )


@dataclass(frozen=True)
class Pair:
    """A latent on an image: `token`, where it is largest among the patches, with `value`; `rank` of the image, 0 first.

    `frequency`: the share of all patch tokens where the latent is on.
    """

    latent: int
    image: str
    token: int
    value: float
    rank: int
    frequency: float

    @property
    def name(self) -> str:
        """`1402/kite.jpg`."""
        return f"{self.latent}/{self.image}"


@dataclass(frozen=True)
class Choice:
    """The pairs of a layer, latent by latent; how many latents the rule admits; the grid; and how many images."""

    pairs: Sequence[Pair]
    admitted: int
    layout: TokenLayout
    images: int


def choose_pairs(
    model: nn.Module, site: str, dictionary: Decomposition, folder: LabelledFolder, rule: Rule, batch_size: int = 8
) -> Choice:
    """The pairs of a layer by the rule, on the pictures of a folder that can be read. Cost: a forward pass each.

    Raises:
        InputError: no picture, or no latent that the rule admits.
    """
    names, largest, tokens, on = _surveyed(model, site, dictionary, folder, batch_size)
    first = folder.load(names[0]).inputs[None].to(next(model.parameters()))
    layout = layout_at(model, site, dictionary, first)
    frequency = on.double() / (len(names) * layout.count)
    fires = (largest > 0).sum(0)
    allowed = (frequency >= rule.least) & (frequency <= rule.most) & (fires >= min(rule.images, len(names)))
    draw = torch.Generator().manual_seed(rule.seed + zlib.crc32(site.encode()))
    order = [int(one) for one in torch.randperm(len(allowed), generator=draw) if allowed[one]]
    if not order:
        raise InputError(
            f"no latent of {site!r} is on in {rule.images} of {len(names)} images and at {rule.least:g} to "
            f"{rule.most:g} of their patch tokens"
        )
    pairs = []
    for latent in order[: rule.latents]:
        best = largest[:, latent].sort(descending=True, stable=True).indices[: rule.images].tolist()
        for rank, row in enumerate(best):
            value, token = float(largest[row, latent]), int(tokens[row, latent])
            pairs.append(Pair(latent, names[row], token, value, rank, float(frequency[latent])))
    return Choice(pairs, len(order), layout, len(names))


def kept_pairs(path: Path, identity: Mapping[str, Any], choose: Callable[[], Choice]) -> Choice:
    """The choice that a file holds, if it was made of the same; else a new one, which the file holds then."""
    wanted = json.loads(json.dumps(identity))
    if path.is_file():
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            if found["identity"] == wanted:
                pairs = [Pair(**one) for one in found["pairs"]]
                return Choice(pairs, found["admitted"], TokenLayout(**found["layout"]), found["images"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"cannot read {str(path)!r}; remove it to choose again: {error}") from None
    made = choose()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps({"identity": wanted, **asdict(made)}, indent=1) + "\n")
    return made


def _surveyed(
    model: nn.Module, site: str, dictionary: Decomposition, folder: LabelledFolder, batch_size: int
) -> tuple[list[str], Float[Tensor, "n K"], Int[Tensor, "n K"], Int[Tensor, "K"]]:
    """Names, largest values and their tokens by image and latent, and at how many patch tokens each latent is on."""
    names: list[str] = []
    largest, tokens, on = [], [], torch.zeros(len(dictionary.modes), dtype=torch.long)
    layout: TokenLayout | None = None
    for start in range(0, len(folder.names), batch_size):
        batch = []
        for name in folder.names[start : start + batch_size]:
            try:
                batch.append(folder.load(name).inputs)
                names.append(name)
            except ImageError:
                continue
        if not batch:
            continue
        x = torch.stack(batch).to(next(model.parameters()))
        layout = layout or layout_at(model, site, dictionary, x)
        for values in stream(model, site, dictionary, x, batch_size=batch_size):
            patches = values[:, layout.prefix :].cpu()
            found = patches.max(1)
            largest.append(found.values)
            tokens.append(found.indices + layout.prefix)
            on += (patches > 0).sum((0, 1))
    if not names:
        raise InputError("none of the pictures can be read")
    return names, torch.cat(largest), torch.cat(tokens), on
