"""Figures of latents: where one fires and where it looks, and how localised those of a layer are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from backlight.concepts.cafe import LatentFields
from backlight.concepts.localisation import Localisation
from backlight.errors import InputError
from backlight.shapes import Float
from backlight.viz.figures import EDGE, GAP, TARGET, Array, Sheet, draw_image, extent_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FIRES, LOOKS = "viridis", "magma"  # of even lightness: they read the same to the colour-blind, and in grey
MARK = "#E69F00"
POINTS, PREFIXED = "#0072B2", "#D55E00"  # Okabe and Ito's blue and vermillion
SIDE, HEAD, LABEL = 1.9, 0.75, 0.34  # inches
COLUMNS = ("picture", "z at each patch", "iERF", "most of the iERF")
KEPT = 0.8  # of the iERF's mass, in the masked crop


@dataclass(frozen=True, eq=False)
class Shown:
    """One picture of a latent's page. `image`: in [-1, 1]; `activation`, `field`: `[h, w]`.

    `token`: (row, column) of the explained token; None where it is the class token, a register, or the sum.
    """

    image: Float[Array, "3 H W"]
    activation: Float[np.ndarray, "h w"]
    field: Float[np.ndarray, "h w"]
    token: tuple[int, int] | None
    caption: str = ""


def shown(fields: LatentFields, images: Float[Tensor, "N 3 H W"], captions: Sequence[str] = ()) -> list[Shown]:
    """The rows of a page, of fields and their images (in [-1, 1]; one for all, or one a field)."""
    made = []
    for number in range(len(fields)):
        row, column = fields.positions[number].tolist()
        made.append(
            Shown(
                images[number if len(images) > 1 else 0].cpu(),
                fields.activation[number].double().cpu().numpy(),
                fields.map[number].double().cpu().numpy(),
                (row, column) if row >= 0 else None,
                f"z = {float(fields.z[number]):.3g}" + (f"  {captions[number]}" if captions else ""),
            )
        )
    return made


def latent_page(
    rows: Sequence[Shown], values: Float[np.ndarray, "n"] | None = None, title: str = "", attributor: str = "AttnLRP"
) -> Figure:
    """A latent's page: a row a picture, with z at its patches, the iERF, and what of the picture holds most of it.

    The explained token is framed in orange on all panels; the last shows the patches that hold four fifths of the
    iERF. `values`: the latent at many tokens, for the histogram of those where it is on.

    Raises:
        InputError: no rows.
        MissingExtraError: matplotlib is not installed.
    """
    if not rows:
        raise InputError("a page needs at least one picture")
    tail = 0.0 if values is None else 1.75
    sheet = Sheet(EDGE + len(COLUMNS) * (SIDE + GAP), HEAD + len(rows) * (SIDE + LABEL) + tail)
    sheet.title(title)
    for place, name in enumerate(COLUMNS):
        text = f"{name}, {attributor}" if name == "iERF" else name
        sheet.text(EDGE + place * (SIDE + GAP), HEAD - 0.15, text, fontsize=9)
    for number, row in enumerate(rows):
        top = HEAD + number * (SIDE + LABEL)
        _draw_row(sheet, top, row)
        sheet.text(EDGE, top + SIDE + 0.13, row.caption, fontsize=8)
    if values is not None:
        _draw_histogram(sheet, HEAD + len(rows) * (SIDE + LABEL) + 0.35, values)
    return sheet.figure


def _draw_row(sheet: Sheet, top: float, row: Shown) -> None:
    for place in range(len(COLUMNS)):
        axes = sheet.axes(EDGE + place * (SIDE + GAP), top, SIDE, SIDE)
        draw_image(axes, row.image if place in (0, 3) else _grey(row.image))
        if place == 1:
            _overlay(axes, row.activation, row.image, FIRES)
        if place == 2:
            _overlay(axes, row.field, row.image, LOOKS)
        if place == 3:
            _mask(axes, row.field, row.image)
        if row.token is not None:
            _mark(axes, row.token, row.activation.shape, row.image)


def _grey(image: Array) -> np.ndarray:
    """The picture without colours, pale, so that those of a map are its own."""
    values = image.detach().cpu().float().numpy() if isinstance(image, Tensor) else image
    return np.broadcast_to(0.45 + 0.45 * values.mean(0, keepdims=True), values.shape)


def _overlay(axes: Axes, values: np.ndarray, image: Array, colours: str) -> None:
    """The positive part of a map over the picture: the larger, the more opaque; zero is the picture itself."""
    from matplotlib import colormaps

    positive = values.clip(min=0)
    share = positive / (positive.max() or 1.0)
    layer = colormaps[colours](1 - share)  # the largest are darkest, on a pale picture
    layer[..., 3] = 0.9 * np.sqrt(share)
    axes.imshow(layer, extent=extent_of(image), interpolation="nearest")


def _mask(axes: Axes, field: np.ndarray, image: Array) -> None:
    """White over all but the patches with the most of the iERF, together `KEPT` of its positive mass."""
    layer = np.ones((*field.shape, 4))
    layer[..., 3] = np.where(most_of(field), 0.0, 0.86)
    axes.imshow(layer, extent=extent_of(image), interpolation="nearest")


def most_of(field: Float[np.ndarray, "h w"], share: float = KEPT) -> np.ndarray:
    """Which patches, the largest first, hold a share of a map's positive mass; none of a map without any."""
    flat = field.clip(min=0).flatten()
    order = (-flat).argsort(kind="stable")
    before = flat[order].cumsum() - flat[order]
    kept = np.zeros(flat.shape, bool)
    kept[order] = (before < share * flat.sum()) & (flat[order] > 0)
    return kept.reshape(field.shape)


def _mark(axes: Axes, token: tuple[int, int], grid: tuple[int, ...], image: Array) -> None:
    from matplotlib.patches import Rectangle

    height, width = image.shape[-2] / grid[0], image.shape[-1] / grid[1]
    for colour, line in (("black", 2.6), (MARK, 1.4)):
        corner = (token[1] * width, token[0] * height)
        axes.add_patch(Rectangle(corner, width, height, fill=False, edgecolor=colour, linewidth=line))


def _draw_histogram(sheet: Sheet, top: float, values: np.ndarray) -> None:
    on = values[values > 0]
    axes = sheet.axes(EDGE + 0.55, top, 2 * SIDE + GAP - 0.55, 0.95)
    if len(on):
        axes.hist(on, bins=40, color=POINTS, log=True)
    axes.set_xlabel(
        f"z where it is on: {len(on)} of {len(values)} tokens ({len(on) / max(len(values), 1):.2%})", fontsize=8
    )
    axes.set_ylabel("tokens", fontsize=8)
    _plain(axes)


def localisation_figure(found: Localisation, marked: int = 5, title: str = "") -> Figure:
    """A layer's latents: how widely they fire against how far away they look, and how often they are on.

    Those that are largest at the class token on most of their images are triangles, by what they are on the others;
    those that are on all of their images lie nowhere, and are counted below. The `marked` most non-localised carry
    numbers; larger marks are on more often.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    sheet = Sheet(8.4, 4.15)
    sheet.title(title or f"{found.site}: {len(found.latents)} latents, {found.attributor}")
    axes = sheet.axes(0.75, 0.55, 4.0, 2.85)
    placed = [one for one in found.latents if one.outside is not None and one.activation_patches is not None]
    for prefix, marker, colour in ((False, "o", POINTS), (True, "^", PREFIXED)):
        some = [one for one in placed if (one.at_prefix > 0.5) == prefix]
        label = "class token on most images" if prefix else "patches"
        size = [12 + 60 * min(one.frequency / 0.1, 1.0) for one in some]
        if some:
            x, y = ([getattr(one, name) for one in some] for name in ("activation_patches", "outside"))
            axes.scatter(x, y, s=size, marker=marker, color=colour, alpha=0.6, linewidths=0, label=label)
    chance = found.summary()["outside_by_chance"]
    if chance is not None:
        axes.axhline(chance, color="#7A8691", linestyle="--", linewidth=1, label="a constant map")
    for one in found.non_localised(marked):
        at = (one.activation_patches or 1.0, one.outside or 0.0)
        axes.annotate(str(one.latent), at, fontsize=7, xytext=(3, 3), textcoords="offset points")
    axes.set_xscale("log")
    axes.set(ylim=(-0.03, 1.03))
    axes.set_xlabel("fires on: effective patches", fontsize=8.5)
    axes.set_ylabel(f"iERF farther than {found.radius:g} patches from the token", fontsize=8.5)
    axes.legend(fontsize=7.5, frameon=False, loc="best")
    _plain(axes)
    nowhere = len(found.latents) - len(placed)
    sheet.text(0.75, 4.0, f"not drawn: {nowhere} that are never largest at a patch", fontsize=8)
    _draw_frequency(sheet, found)
    return sheet.figure


def _draw_frequency(sheet: Sheet, found: Localisation) -> None:
    axes = sheet.axes(5.55, 0.55, 2.6, 2.85)
    rates = np.array([one.frequency for one in found.latents])
    if len(rates):
        low = max(rates.min(), 1e-7)
        axes.hist(rates, bins=np.geomspace(low, max(rates.max(), low * 1.01), 25).tolist(), color=POINTS)
        axes.set_xscale("log")
    axes.set_xlabel("share of tokens where it is on", fontsize=8.5)
    axes.set_ylabel("latents", fontsize=8.5)
    colour = TARGET if found.dead else "black"
    sheet.text(5.55, 0.42, f"{found.dead} of {found.modes} latents are on nowhere", fontsize=8, color=colour)
    _plain(axes)


def _plain(axes: Axes) -> None:
    axes.tick_params(labelsize=7.5)
    axes.spines[["top", "right"]].set_visible(False)
