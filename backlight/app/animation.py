"""An animation of both ascents as a GIF: the picture at each step side by side, with the target's probability."""

from __future__ import annotations

import io
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from backlight.app.ascents import COLOURS, TITLES, Change, as_picture

SIDE, EDGE, STRIP = 300, 8, 46  # pixels: the longer side of a picture, around it, and below it
HOLD, LAST, PLAYS = 350, 1500, 3  # milliseconds a frame, of the last one; then it stands still


def frames(made: Change) -> list[Image.Image]:
    """A frame a step, the start included: both ascents' pictures, each with a bar of the target's probability."""
    name = made.name(made.target)
    return [_frame(made, name, number) for number in range(len(next(iter(made.found.values())).points))]


def gif(pictures: Sequence[Image.Image]) -> bytes:
    """The frames as an animated GIF, which plays three times and ends on the last frame."""
    coloured = [one.quantize(255, dither=Image.Dither.FLOYDSTEINBERG) for one in pictures]
    file = io.BytesIO()
    durations = [HOLD] * (len(coloured) - 1) + [LAST]
    coloured[0].save(
        file, "GIF", save_all=True, append_images=coloured[1:], duration=durations, loop=PLAYS - 1, disposal=1
    )
    return file.getvalue()


def png(picture: Image.Image) -> bytes:
    """A picture as a PNG file."""
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def _frame(made: Change, name: str, number: int) -> Image.Image:
    shown = {along: _fitted(as_picture(found.points[number, 0])) for along, found in made.found.items()}
    width, height = next(iter(shown.values())).size
    frame = Image.new("RGB", (2 * width + 3 * EDGE, height + STRIP + 2 * EDGE), "white")
    draw, font = ImageDraw.Draw(frame), ImageFont.load_default(13)
    for place, (along, picture) in enumerate(shown.items()):
        left = EDGE + place * (width + EDGE)
        frame.paste(picture, (left, EDGE))
        share = float(made.found[along].probabilities[number, 0])
        draw.text((left, EDGE + height + 3), f"{TITLES[along]}, step {number}", fill="black", font=font)
        draw.text((left, EDGE + height + 19), f"{name[:26]}: {100 * share:.1f} %", fill="black", font=font)
        box = (left, EDGE + height + 38, left + width - 1, EDGE + height + 44)
        draw.rectangle(box, fill="#E3E6E8")
        if share > 0.002:
            draw.rectangle((box[0], box[1], left + max(1, round(share * (width - 1))), box[3]), fill=COLOURS[along])
    return frame


def _fitted(picture: Image.Image) -> Image.Image:
    scale = SIDE / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.resize(size, Image.Resampling.BICUBIC)
