"""The Explain tab: maps of a picture by any methods side by side, and what a position of a layer is made of."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import gradio as gr
from PIL import Image

from backlight.app import field_panel, settings_panel
from backlight.app.computation import Running, Watch
from backlight.app.explanation import Explained, Map, begin, explained_by
from backlight.app.fitting import offered_methods, refusals
from backlight.app.header import MODEL, Chosen, outputs_of
from backlight.app.interruption import stops, underway
from backlight.app.messages import sentence, told
from backlight.app.method_settings import chosen_settings
from backlight.app.predictions import PREDICTED, class_choices
from backlight.app.rendering import stored
from backlight.app.settings_panel import Given
from backlight.app.shown import archive, pictures, summary_table
from backlight.app.workspace import Workspace
from backlight.errors import BacklightError, InputError
from backlight.models import LoadedModel

START = ["SoftPullback"]
MOST = 8  # methods at once
NOTHING = ("nothing: the class alone", PREDICTED)
FAILURES = (BacklightError, RuntimeError, MemoryError)  # a method's own; the next one may do


@dataclass(frozen=True)
class _Parts:
    """The components that listeners read and fill."""

    methods: gr.Dropdown
    against: gr.Dropdown
    given: gr.State
    sliders: tuple[gr.Slider, gr.Slider]
    status: gr.Markdown
    maps: gr.Gallery
    download: gr.DownloadButton
    table: gr.HTML
    state: gr.State


def tab(workspace: Workspace, chosen: Chosen) -> None:
    """Draw the tab and wire it."""
    with gr.Row():
        methods = gr.Dropdown(
            offered_methods(), value=START, multiselect=True, max_choices=MOST, label="Methods", elem_id="methods",
            info="Maps appear side by side, in this order.", min_width=280,
        )  # fmt: skip
        against = gr.Dropdown(
            [NOTHING], value=PREDICTED, label="In contrast to", elem_id="against", min_width=280,
            info="Explain what speaks for the class rather than for this one.",
        )  # fmt: skip
    refused = gr.Markdown(elem_classes="quiet", elem_id="refused")
    given = settings_panel.panel(methods)
    with gr.Row():
        start = gr.Button("Explain", variant="primary", elem_id="explain", scale=3, min_width=120)
        cancel = gr.Button("Cancel", elem_id="cancel-explain", scale=1, min_width=90)
    parts = _results(methods, against, given)
    _wire(workspace, chosen, parts, start, cancel)
    chosen.ready.change(
        partial(_fitting, workspace), [*chosen.network, methods], [methods, against, refused],
        api_visibility="private", show_progress_on=refused, **MODEL,
    )  # fmt: skip
    field_panel.panel(workspace, chosen)


def _results(methods: gr.Dropdown, against: gr.Dropdown, given: gr.State) -> _Parts:
    status = gr.Markdown(elem_id="explain-status")
    with gr.Row():
        opacity = gr.Slider(0, 1, 0.75, step=0.05, label="Opacity of the map", elem_id="opacity", min_width=250)
        percentile = gr.Slider(
            90, 100, 99.5, step=0.1, label="Percentile where colours end", elem_id="percentile", min_width=250
        )  # fmt: skip
    gr.Markdown("Red speaks for the class, blue against it, white is zero.", elem_classes="quiet")
    maps = gr.Gallery(
        label="Maps", show_label=False, columns=4, height="auto",
        object_fit="contain", elem_id="maps", fit_columns=False, interactive=False, buttons=["download", "fullscreen"],
    )  # fmt: skip
    table = gr.HTML(elem_id="explain-table")
    download = gr.DownloadButton("Download maps: PNG and .npy", size="sm", elem_id="download-maps", interactive=False)
    return _Parts(methods, against, given, (opacity, percentile), status, maps, download, table, gr.State(None))


def _wire(workspace: Workspace, chosen: Chosen, parts: _Parts, start: gr.Button, cancel: gr.Button) -> None:
    def views(about: Explained | None, opacity: float, percentile: float) -> tuple[Any, Any]:
        if about is None or not about.maps:
            return [], gr.DownloadButton(interactive=False)
        drawn = pictures(about, float(opacity), float(percentile))
        items = [(stored(data, f"{name}.png", parts.maps), caption) for name, caption, data in drawn]
        file = stored(archive(about, drawn), "backlight-maps.zip", parts.download)
        return items, gr.DownloadButton(value=file, interactive=True)

    @told
    def explain(
        image: Image.Image | None, name: str, weights: str | None, names: str, target: int, wanted: list[str],
        against: int, given: Given, opacity: float, percentile: float,
    ) -> Iterator[tuple[Any, ...]]:  # fmt: skip
        if not wanted:
            raise InputError("choose at least one method")
        loaded = workspace.model(name, weights, names)
        with workspace.lock:
            about = begin(loaded, image, target, None if against == PREDICTED else against)
        for number, one in enumerate(wanted, start=1):
            running = Running(workspace.lock, partial(_map, loaded, image, about, one, given))
            for words in running:
                line = underway(f"{one} ({number} of {len(wanted)}): {words}")
                yield line, gr.skip(), gr.skip(), gr.skip(), gr.skip()
            about = _with(about, one, running)
            yield said(about), *views(about, opacity, percentile), summary_table(about), about

    event = start.click(
        explain, [*chosen.inputs, parts.methods, parts.against, parts.given, *parts.sliders],
        [parts.status, parts.maps, parts.download, parts.table, parts.state],
        api_name="explain", show_progress_on=parts.status, **MODEL,
    )  # fmt: skip
    stops(cancel, [event], parts.status)
    for slider in parts.sliders:
        slider.change(
            told(views), [parts.state, *parts.sliders], [parts.maps, parts.download], api_visibility="private",
            show_progress="hidden", trigger_mode="always_last",
        )  # fmt: skip


def _map(
    loaded: LoadedModel, image: Image.Image | None, about: Explained, name: str, given: Given, watch: Watch
) -> Map:
    return explained_by(loaded, image, about, name, chosen_settings(name, given.get(name, {})), watch)


def _with(about: Explained, name: str, running: Running[Map]) -> Explained:
    """With one more map; a method that fails leaves the others."""
    try:
        return replace(about, maps=(*about.maps, running.result))
    except FAILURES as error:
        return replace(about, failures={**about.failures, name: sentence(error)})


def said(about: Explained) -> str:
    """What was explained, and which methods failed."""
    rather = f", in contrast to **{about.against}**" if about.against else ""
    failed = [f"- {name} gave no map. {why}" for name, why in about.failures.items()]
    return "\n".join([f"Explained: **{about.target}**{rather}.", *failed])


@told
def _fitting(workspace: Workspace, name: str, weights: str | None, names: str, wanted: list[str]) -> Iterator[Any]:
    """The methods and classes of another network."""
    loaded = workspace.model(name, weights, names)
    with workspace.lock:
        choices = class_choices(loaded, outputs_of(loaded))[1:]
    contrast = gr.Dropdown(choices=[NOTHING, *choices], value=PREDICTED)
    yield gr.skip(), contrast, "Which methods fit this network?"
    running = Running(workspace.lock, lambda watch: refusals(loaded, watch, sentence))
    for words in running:
        yield gr.skip(), gr.skip(), f"Which methods fit this network? {words}"
    refused = running.result
    fitting = [one for one in offered_methods() if one not in refused]
    kept = [one for one in wanted if one in fitting] or START
    line = f"Left out, for they do not fit this network: {', '.join(refused)}." if refused else ""
    yield gr.Dropdown(choices=fitting, value=kept), gr.skip(), line
