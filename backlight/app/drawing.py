"""Maps as pictures: laid over what the network saw, with the scale below."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from backlight.shapes import Float, UInt8
from backlight.viz.figures import COLOURS, signed_map

SIDE = 448  # pixels of the longer side of a drawn map, at least
BAR, MARGIN = 14, 26  # heights of the colour bar and of the line of numbers


def drawn_map(
    picture: Image.Image, attribution: Float[np.ndarray, "*shape"], opacity: float = 0.75, percentile: float = 99.5
) -> tuple[Image.Image, float]:
    """(picture of a signed map over `picture`, scale): red speaks for the target, blue against it, white is zero.

    `opacity`: of the map over the picture's greys, in [0, 1]. `percentile`: the quantile of absolute values, in per
    cent, at which the colours end; the scale is its value, and stands at the ends of the bar below.
    """
    values, scale = signed_map(attribution, percentile / 100)
    colours = Image.fromarray(_colours()[np.round((values + 1) * 127.5).astype(np.uint8)])
    under = enlarged(picture.convert("L").convert("RGB"))
    over = colours.resize(under.size, Image.Resampling.NEAREST)
    return _with_bar(Image.blend(under, over, opacity), scale), scale


def enlarged(picture: Image.Image) -> Image.Image:
    """A picture a whole number of times its size, so that its longer side is about `SIDE`."""
    grow = max(1, round(SIDE / max(picture.size)))
    return picture.resize((picture.width * grow, picture.height * grow), Image.Resampling.BICUBIC)


def _with_bar(drawn: Image.Image, scale: float) -> Image.Image:
    sheet = Image.new("RGB", (drawn.width, drawn.height + 4 + BAR + MARGIN), "white")
    sheet.paste(drawn, (0, 0))
    bar = Image.fromarray(_colours()[None]).resize((drawn.width, BAR), Image.Resampling.BILINEAR)
    top = drawn.height + 4
    sheet.paste(bar, (0, top))
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(18)
    middle = drawn.width // 2
    pen.line([(middle, top), (middle, top + BAR + 3)], fill="#444444")
    for place, anchor, text in (
        (2, "lt", f"-{scale:.2g}"),
        (middle, "mt", "0"),
        (drawn.width - 2, "rt", f"+{scale:.2g}"),
    ):
        pen.text((place, top + BAR + 5), text, fill="#333333", font=font, anchor=anchor)
    return sheet


@lru_cache(1)
def _colours() -> UInt8[np.ndarray, "256 3"]:
    """The colours of `viz.figures`, from -1 to +1."""
    from matplotlib import colormaps

    return (colormaps[COLOURS](np.linspace(0, 1, 256))[:, :3] * 255).round().astype(np.uint8)
