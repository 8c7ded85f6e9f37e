"""Elements of HTML: text is escaped unless it is `Markup`; pictures are data URIs."""

from __future__ import annotations

import base64
import html
import io
import warnings
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from backlight.errors import MissingExtraError
from backlight.shapes import Float, UInt8
from backlight.viz.figures import COLOURS, Array, as_array, signed_map

if TYPE_CHECKING:
    from matplotlib.figure import Figure

VOID = ("img", "br", "meta")
SMALL = 64  # pixels: maps that are not larger are kept exactly, and drawn with square pixels
LONGEST = 448  # pixels, of a picture in a page
QUALITY = 85
BAR = 100  # units of length of a bar


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def escape(text: object) -> Markup:
    """Text as HTML, quotes too; lone surrogates of odd file names are replaced."""
    if isinstance(text, Markup):
        return text
    return Markup(html.escape(str(text).encode("utf-8", "replace").decode("utf-8"), quote=True))


def tag(name: str, /, *children: object, **attributes: object) -> Markup:
    """An element. Attributes without a value (None, False) are left out; `class_` is class, `_` in a name `-`."""
    given = "".join(
        f" {key.rstrip('_').replace('_', '-')}" + ("" if value is True else f'="{escape(value)}"')
        for key, value in attributes.items()
        if value is not None and value is not False
    )
    inside = "".join(map(escape, children))
    return Markup(f"<{name}{given}>" if name in VOID else f"<{name}{given}>{inside}</{name}>")


def join(parts: Iterable[object], between: str = "\n") -> Markup:
    """Parts after each other."""
    return Markup(between.join(map(escape, parts)))


def table(
    heads: Sequence[object],
    rows: Iterable[Sequence[object]],
    *,
    caption: object = None,
    groups: Iterable[int] = (),
    class_: str | None = None,
) -> Markup:
    """A table whose first column heads its rows. `groups`: the rows before which a group begins."""
    breaks = set(groups)
    top = tag("tr", *(tag("th", head, scope="col") for head in heads))
    body = [
        tag(
            "tr",
            *(tag("td", cell) if place else tag("th", cell, scope="row") for place, cell in enumerate(row)),
            class_="group" if number in breaks else None,
        )
        for number, row in enumerate(rows)
    ]
    above = tag("caption", caption) if caption else ""
    return tag("table", above, tag("thead", top), tag("tbody", *body), class_=class_)


def bar(share: float, label: str, marked: bool = False) -> Markup:
    """A bar of a length in [0, 1]; it is a drawing, so that it is printed too."""
    width = BAR * min(max(share, 0.0), 1.0)
    whole = tag("rect", width=BAR, height=8, class_="all")
    part = tag("rect", width=f"{width:.3g}", height=8, class_="part marked" if marked else "part")
    return tag(
        "svg", whole, part, viewBox=f"0 0 {BAR} 8", preserveAspectRatio="none", role="img", aria_label=label,
        class_="bar",
    )  # fmt: skip


def pixels(image: Float[Array, "3 H W"]) -> UInt8[np.ndarray, "H W 3"]:
    """An image in [-1, 1] as 8-bit pixels."""
    return ((as_array(image).transpose(1, 2, 0) + 1) * 127.5).round().clip(0, 255).astype(np.uint8)


def picture(shown: UInt8[np.ndarray, "H W 3"], alt: str, class_: str = "", style: str | None = None) -> Markup:
    """An image element that holds its own WebP."""
    image = Image.fromarray(shown)
    exact = max(image.size) <= SMALL
    image.thumbnail((LONGEST, LONGEST))
    held = io.BytesIO()
    image.save(held, "WEBP", lossless=exact, quality=QUALITY, method=4)
    kinds = " ".join(part for part in (class_, "exact" if exact else "") if part)
    return tag(
        "img", alt=alt, src=data_uri(held.getvalue(), "image/webp"), width=shown.shape[1], height=shown.shape[0],
        class_=kinds or None, style=style,
    )  # fmt: skip


def data_uri(data: bytes, kind: str) -> str:
    """Bytes within a page."""
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"


def signed_picture(attribution: Array, alt: str, style: str | None = None) -> tuple[Markup, float]:
    """(the picture of a signed map in the colours of all figures, its scale).

    Raises:
        InputError: a map that cannot be drawn.
        MissingExtraError: matplotlib is not installed.
    """
    values, scale = signed_map(attribution)
    return picture(coloured(values), alt, "map", style), scale


def coloured(values: Float[np.ndarray, "H W"]) -> UInt8[np.ndarray, "H W 3"]:
    """A map in [-1, 1] in the diverging colours; zero is their middle."""
    try:
        from matplotlib import colormaps
    except ModuleNotFoundError:
        raise MissingExtraError("matplotlib", "plots") from None
    return np.asarray((colormaps[COLOURS]((values + 1) / 2)[..., :3] * 255).round(), dtype=np.uint8)


def scale_bar(scale: float) -> Markup:
    """The colours of a signed map with its ends and zero."""
    ramp = coloured(np.linspace(-1, 1, 65)[None].repeat(2, 0))
    ends = (tag("span", f"−{scale:.2g}"), tag("span", "0"), tag("span", f"+{scale:.2g}"))
    strip = picture(ramp, f"scale from −{scale:.2g} by 0 to +{scale:.2g}", "ramp")
    return tag("span", strip, tag("span", *ends, class_="ends"), class_="scale")


def figure_picture(figure: Figure, alt: str, dpi: int = 144) -> Markup:
    """A matplotlib figure in an image element, at its size in CSS pixels, at most as wide as the page."""
    held, packed = io.BytesIO(), io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # a name in a script the font lacks
        figure.savefig(held, format="png", dpi=dpi)
    with Image.open(held) as image:
        image.convert("RGB").save(packed, "WEBP", quality=QUALITY, method=4)
    width, height = figure.get_size_inches() * 96
    return tag(
        "img", alt=alt, src=data_uri(packed.getvalue(), "image/webp"), width=round(width), height=round(height),
        class_="figure",
    )  # fmt: skip


def number(value: float | None, digits: int = 3) -> str:
    """A number in a page: a few digits, a minus sign, – where there is none."""
    if value is None or value != value:
        return "–"
    return f"{value:.{digits}g}".replace("-", "−")


def per_cent(share: float) -> str:
    """39.3 %."""
    return f"{100 * share:.1f} %".replace("-", "−")
