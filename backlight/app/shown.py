"""What the Explain tab shows of its maps, and gives to download."""

from __future__ import annotations

import io
import json
import zipfile
from typing import Any

import numpy as np
from PIL import Image

import backlight
from backlight.app.drawing import drawn_map, enlarged
from backlight.app.explanation import Explained, Map
from backlight.app.tables import html_table

Drawn = tuple[str, str, bytes]  # name, caption, PNG


def pictures(about: Explained, opacity: float, percentile: float) -> list[Drawn]:
    """What the network saw, then the maps in their order, with their scales in the captions."""
    drawn: list[Drawn] = [("input", "what the network saw", png(enlarged(about.picture)))]
    for one in about.maps:
        picture, scale = drawn_map(about.picture, one.values, opacity, percentile)
        drawn.append((one.method, f"{one.method}, ±{scale:.2g}", png(picture)))
    return drawn


def archive(about: Explained, drawn: list[Drawn]) -> bytes:
    """A zip of the pictures as they are shown, the maps as arrays (.npy), and what they are of (about.json)."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as pack:
        for name, _, data in drawn:
            pack.writestr(zipfile.ZipInfo(f"{name}.png"), data)
        for one in about.maps:
            array = io.BytesIO()
            np.save(array, one.values, allow_pickle=False)
            pack.writestr(zipfile.ZipInfo(f"{one.method}.npy"), array.getvalue())
        pack.writestr(zipfile.ZipInfo("about.json"), json.dumps(record(about), indent=2, default=str))
    return file.getvalue()


def record(about: Explained) -> dict[str, Any]:
    """What the maps are of, as JSON can hold it."""
    return {
        "model": about.model,
        "weights": about.source,
        "target": vars(about.target),
        "in contrast to": None if about.against is None else vars(about.against),
        "version": backlight.__version__,
        "maps": {one.method: _facts(one) for one in about.maps},
        "failures": about.failures,
    }


def summary_table(about: Explained) -> str:
    """Score, residual, cost and settings of each map."""
    rows = [
        (
            one.method,
            "" if one.score is None else f"{one.score:.4g}",
            "" if one.residual is None else f"{one.residual:.2g}",
            f"{one.cost['forwards']:g} / {one.cost['backwards']:g}",
            f"{one.seconds:.2f}",
            ", ".join(f"{name} = {value}" for name, value in one.settings.items()) or "defaults",
        )
        for one in about.maps
    ]
    heads = ("method", "score", "residual", "forward / backward passes", "seconds", "settings")
    return html_table("What the maps are", heads, rows, words=(0, 5)) if rows else ""


def png(picture: Image.Image) -> bytes:
    """A picture as PNG."""
    file = io.BytesIO()
    picture.save(file, "PNG", compress_level=3)
    return file.getvalue()


def _facts(one: Map) -> dict[str, Any]:
    return {name: value for name, value in vars(one).items() if name not in ("method", "values")}
