"""The panel for receptive fields: choose a layer, click a position of the picture, see what it is made of."""

from __future__ import annotations

import io
from collections.abc import Iterator
from functools import partial
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image

from backlight.app.computation import Running
from backlight.app.drawing import drawn_map, enlarged
from backlight.app.fields import EffectiveField, effective_field, field_layers, marked, position_at
from backlight.app.header import MODEL, Chosen
from backlight.app.interruption import stops, underway
from backlight.app.messages import told
from backlight.app.rendering import stored
from backlight.app.workspace import Workspace
from backlight.models import LoadedModel

ABOUT = (
    "The instance-specific effective receptive field (iERF) of a position: which pixels of this picture its feature "
    "vector is made of. Click the picture, or give row and column and press the button."
)


def panel(workspace: Workspace, chosen: Chosen) -> None:
    """Draw the panel and wire it."""
    with gr.Accordion("Look into a layer: what is a position made of?", open=False, elem_id="fields") as box:
        gr.Markdown(ABOUT, elem_classes="quiet")
        layer = gr.Dropdown([], label="Layer", elem_id="field-layer", info="In the order of the forward pass.")
        with gr.Row():
            with gr.Column(min_width=280):
                picture = gr.Image(
                    label="Click a position", interactive=False, format="png", elem_id="field-picture", buttons=[],
                    alt_text="What the network sees; click a position",
                )  # fmt: skip
            with gr.Column(min_width=280):
                result = gr.Image(
                    label="Its field", interactive=False, format="png", elem_id="field-result",
                    alt_text="The effective receptive field of the position", buttons=["download", "fullscreen"],
                )  # fmt: skip
        with gr.Row():
            row = gr.Number(0, label="Row", precision=0, minimum=0, elem_id="field-row", min_width=90)
            column = gr.Number(0, label="Column", precision=0, minimum=0, elem_id="field-column", min_width=90)
            start = gr.Button("Show the field", elem_id="field-start", min_width=120)
            cancel = gr.Button("Cancel", elem_id="cancel-field", min_width=90)
        words = gr.Markdown(elem_id="field-words")
        download = gr.DownloadButton("Download the field: .npy", size="sm", interactive=False, elem_id="download-field")
    grids, opened = gr.State({}), gr.State(False)
    _opening(workspace, chosen, box, (opened, grids, layer, picture, words))
    outputs = [picture, result, row, column, words, download]
    show = partial(_shown, workspace, download)

    @told
    def clicked(
        event: gr.SelectData, image: Image.Image | None, name: str, weights: str | None, names: str, layer: str,
        grids: dict[str, tuple[int, int]],
    ) -> Iterator[Any]:  # fmt: skip
        loaded = workspace.model(name, weights, names)
        size = field_picture(loaded, image).size
        x, y = event.index
        yield from show(loaded, image, layer, *position_at(float(x), float(y), size, grids.get(layer, (1, 1))))

    @told
    def typed(
        image: Image.Image | None, name: str, weights: str | None, names: str, layer: str, row: int, column: int
    ) -> Iterator[Any]:  # fmt: skip
        yield from show(workspace.model(name, weights, names), image, layer, int(row or 0), int(column or 0))

    inputs = [chosen.image, *chosen.network, layer]
    events: list[Any] = [
        picture.select(clicked, [*inputs, grids], outputs, api_visibility="private", show_progress_on=words, **MODEL),
        start.click(typed, [*inputs, row, column], outputs, api_name="field", show_progress_on=words, **MODEL),
    ]
    stops(cancel, events, words)


def _opening(workspace: Workspace, chosen: Chosen, box: gr.Accordion, parts: tuple[Any, ...]) -> None:
    """Layers and picture are found once the panel is open, and again for another model or picture."""
    opened = parts[0]

    @told
    def fill(opened: bool, image: Image.Image | None, name: str, weights: str | None, names: str) -> Iterator[Any]:
        if not opened:
            yield (gr.skip(),) * 4
            return
        loaded = workspace.model(name, weights, names)
        shown = None if image is None else field_picture(loaded, image)
        yield gr.skip(), gr.skip(), shown, gr.skip()
        running = Running(workspace.lock, partial(field_layers, loaded))
        for _ in running:
            yield gr.skip(), gr.skip(), gr.skip(), "Which layers have fields?"
        grids = running.result
        listed = [(f"{layer} ({height} × {width})", layer) for layer, (height, width) in grids.items()]
        start = list(grids)[3 * len(grids) // 4] if grids else None
        yield grids, gr.Dropdown(choices=listed, value=start), gr.skip(), "Click a position of the picture."

    inputs = [opened, chosen.image, *chosen.network]
    settings: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", **MODEL}
    box.expand(lambda: True, None, opened, queue=False, api_visibility="private").then(
        fill, inputs, list(parts[1:]), **settings
    )
    gr.on([chosen.ready.change, chosen.image.change], fill, inputs, list(parts[1:]), **settings)


def _shown(
    workspace: Workspace, download: gr.DownloadButton, loaded: LoadedModel, image: Image.Image | None, layer: str,
    row: int, column: int,
) -> Iterator[tuple[Any, ...]]:  # fmt: skip
    running = Running(workspace.lock, lambda watch: effective_field(loaded, image, layer, row, column, watch))
    for words in running:
        yield gr.skip(), gr.skip(), gr.skip(), gr.skip(), underway(words), gr.skip()
    field = running.result
    seen = loaded.preprocessing.picture(image)  # type: ignore[arg-type]
    drawn, scale = drawn_map(seen, field.values)
    file = io.BytesIO()
    np.save(file, field.values, allow_pickle=False)
    path = stored(file.getvalue(), f"field-{field.layer}-{field.row}-{field.column}.npy", download)
    button = gr.DownloadButton(value=path, interactive=True)
    yield marked(enlarged(seen), field), drawn, field.row, field.column, said(field, scale), button


def field_picture(loaded: LoadedModel, image: Image.Image | None) -> Image.Image:
    """What the network sees, large enough to be clicked."""
    return enlarged(loaded.preprocessing.picture(image))  # type: ignore[arg-type]


def said(field: EffectiveField, scale: float) -> str:
    """Which position it is, and what its field sums to."""
    height, width = field.grid
    return (
        f"Row {field.row}, column {field.column} of the {height} × {width} positions of `{field.layer}`: "
        f"{field.words}. Colours end at ±{scale:.2g}."
    )
