"""The Explain tab: maps of a picture by any methods side by side."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import gradio as gr
from PIL import Image

from backlight.app.computation import Running
from backlight.app.drawing import drawn_map
from backlight.app.explanation import Explained, begin, explained_by, offered_methods
from backlight.app.header import MODEL, Chosen
from backlight.app.messages import sentence, told
from backlight.app.workspace import Workspace
from backlight.errors import BacklightError, InputError

START = ["SoftPullback"]


def tab(workspace: Workspace, chosen: Chosen) -> None:
    """Draw the tab and wire it."""
    methods = gr.Dropdown(
        offered_methods(), value=START, multiselect=True, label="Methods", elem_id="methods",
        info="Maps appear side by side, in this order.",
    )  # fmt: skip
    with gr.Row():
        start = gr.Button("Explain", variant="primary", elem_id="explain")
        cancel = gr.Button("Cancel", variant="stop", elem_id="cancel-explain")
    status = gr.Markdown(elem_id="explain-status")
    maps = gr.Gallery(label="Maps", format="png", columns=3, height="auto", object_fit="contain", elem_id="maps")
    with gr.Row():
        opacity = gr.Slider(0, 1, 0.75, step=0.05, label="Opacity of the map", elem_id="opacity")
        percentile = gr.Slider(90, 100, 99.5, step=0.1, label="Percentile where colours end", elem_id="percentile")
    state = gr.State(None)

    @told
    def explain(
        image: Image.Image | None, name: str, weights: str | None, names: str, target: int, wanted: list[str],
        opacity: float, percentile: float,
    ) -> Iterator[tuple[Any, Any, Any]]:  # fmt: skip
        loaded = workspace.model(name, weights, names)
        if not wanted:
            raise InputError("choose at least one method")
        with workspace.lock:
            about = begin(loaded, image, target)
        for number, one in enumerate(wanted, start=1):
            running = Running(workspace.lock, partial(explained_by, loaded, image, about, one, {}))
            for words in running:
                yield f"{one} ({number} of {len(wanted)}): {words}", gr.skip(), gr.skip()
            about = _with(about, one, running)
            yield said(about), gallery(about, opacity, percentile), about

    event = start.click(
        explain, [*chosen.inputs, methods, opacity, percentile], [status, maps, state], api_name="explain", **MODEL
    )
    cancel.click(lambda: "Cancelled.", None, status, cancels=[event], queue=False, api_visibility="private")
    for slider in (opacity, percentile):
        slider.release(gallery, [state, opacity, percentile], maps, api_visibility="private", show_progress="hidden")


def _with(about: Explained, name: str, running: Running[Any]) -> Explained:
    try:
        return replace(about, maps=(*about.maps, running.result))
    except BacklightError as error:
        return replace(about, failures={**about.failures, name: sentence(error)})


def gallery(about: Explained | None, opacity: float, percentile: float) -> list[tuple[Image.Image, str]]:
    """The maps with captions."""
    if about is None:
        return []
    drawn = [(one, *drawn_map(about.picture, one.values, opacity, percentile)) for one in about.maps]
    return [(picture, f"{one.method}, ±{scale:.2g}") for one, picture, scale in drawn]


def said(about: Explained) -> str:
    """What was explained, and what failed."""
    failed = [f"- {name}: {why}" for name, why in about.failures.items()]
    return "\n".join([f"Explained: **{about.target}**", *failed])
