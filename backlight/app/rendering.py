"""Figures and files of results as Gradio takes them: pictures, and names in the server's own folder."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import gradio as gr
import numpy as np
from gradio.components import Component
from gradio.processing_utils import save_bytes_to_cache
from PIL import Image

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 130
SIDE = 448  # pixels of the longer side of a shown picture, at least


def rendered(figure: Figure) -> Image.Image:
    """A figure as a picture."""
    figure.set_dpi(DPI)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # a class's name in a script the font lacks
        figure.canvas.draw()
    return Image.fromarray(np.asarray(figure.canvas.buffer_rgba())).convert("RGB")  # type: ignore[attr-defined]


def stored(data: bytes, name: str, of: Component) -> str:
    """The path of a file for a component to show or give, in the server's own folder, which goes with it."""
    return save_bytes_to_cache(data, name, of.GRADIO_CACHE)


def enlarged(shown: Image.Image) -> Image.Image:
    """A small picture, a whole number of times larger."""
    grow = max(1, round(SIDE / max(shown.size)))
    return shown.resize((shown.width * grow, shown.height * grow), Image.Resampling.BICUBIC)


def picture(label: str, name: str, kind: str = "png") -> gr.Image:
    """A place for a picture that is shown whole: the label is read out, and covers nothing of it."""
    return gr.Image(
        label=label, show_label=False, alt_text=label, format=kind, interactive=False, elem_id=name,
        buttons=["download", "fullscreen"],
    )  # fmt: skip
