"""The Contributions tab: what channels of a layer do together, in the picture and without it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr
from PIL import Image

from backlight.app.computation import Running
from backlight.app.header import MODEL, Chosen
from backlight.app.interruption import stops, underway
from backlight.app.messages import told
from backlight.app.mode_control import (
    Controlled,
    ModeRow,
    OpenModes,
    controlled,
    listed,
    maps_figure,
    most_active,
    open_modes,
)
from backlight.app.opened import Choices, decompositions, number_of, without_paths
from backlight.app.rendering import picture, rendered
from backlight.app.tables import html_table, share
from backlight.app.workspace import Workspace

NOTHING = (
    "No decomposed contributions are open here. Make some with `backlight extract --data PICTURES --out store` and "
    "`backlight decompose store --out modes`, and start the app with `backlight app --contributions modes`."
)
ABOUT = (
    "Modes are sets of a layer's channels that contribute together to the output. List those of a class, find those of "
    "the picture above, take one away and see what the model still knows."
)
COLUMNS = ("mode", "goes with (r)", "largest channels", "on in")


def tab(workspace: Workspace, chosen: Chosen) -> None:
    """Draw the tab and wire it; with nothing opened, say how to."""
    there = decompositions(workspace)
    if not there:
        gr.Markdown(NOTHING, elem_id="contributions-nothing")
        return
    gr.Markdown(ABOUT, elem_classes="quiet")
    with gr.Row():
        which = gr.Dropdown(
            [(one.label, one.name) for one in there], label="Layer", elem_id="modes-layer", min_width=280
        )
        search = gr.Textbox(
            label="Modes of a class", placeholder="any class; e.g. dog", elem_id="modes-search", min_width=200
        )
    with gr.Row():
        find = gr.Button("List modes", elem_id="modes-list")
        active = gr.Button("Most active on the picture", variant="primary", elem_id="modes-active")
        cancel = gr.Button("Cancel", variant="stop", elem_id="cancel-contributions")
    status = gr.Markdown(elem_id="modes-status")
    table = gr.HTML(elem_id="modes-table", apply_default_css=False)
    mode = gr.Dropdown([], label="Mode", elem_id="mode", info="Of those listed; or type a number.",
                       allow_custom_value=True)  # fmt: skip
    page = Choices(workspace, there, "layer", open_modes)
    events = [
        *_wire_lists(page, chosen, which, search, find, active, [status, table, mode]),
        _control_part(page, chosen, which, mode, status),
        _maps_part(page, chosen, which, mode, status),
    ]
    stops(cancel, events, status)


def _wire_lists(
    page: Choices[OpenModes], chosen: Chosen, which: Any, search: Any, find: Any, active: Any, shown: list[Any]
) -> list[Any]:
    @told
    def run_list(name: str | None, wanted: str) -> tuple[str, str, Any]:
        found = page.opened(name)
        return listing(found, listed(found, wanted or ""), f"{len(found.decomposed.modes)} modes. {found.note}")

    @told
    def run_active(
        image: Image.Image | None, model: str, weights: str | None, names: str, target: int, name: str | None
    ) -> Iterator[Any]:
        loaded, found = page.with_model(name, model, weights, names)
        running = Running(page.workspace.lock, lambda watch: most_active(found, loaded, image))
        for words in running:
            yield underway(words), gr.skip(), gr.skip()
        yield listing(found, running.result, "The modes that are largest on the picture, by their loadings.")

    first = gr.on(
        [find.click, search.submit, which.change, gr.context.Context.root_block.load],  # type: ignore[union-attr]
        run_list, [which, search], shown, api_name="modes", show_progress_on=shown[0],
    )  # fmt: skip
    second = active.click(
        run_active, [*chosen.inputs, which], shown, api_name="active_modes", show_progress_on=shown[0], **MODEL
    )
    return [first, second]


def _control_part(page: Choices[OpenModes], chosen: Chosen, which: Any, mode: Any, status: Any) -> Any:
    gr.Markdown("### Without the mode, or with nothing else")
    with gr.Row():
        action = gr.Radio(
            [("take its channels away", "ablate"), ("keep nothing but its channels", "preserve")],
            value="ablate", label="What to do", elem_id="control-action", min_width=280,
        )  # fmt: skip
        percent = gr.Slider(
            1, 100, 10, step=1, label="Of the layer's channels, per cent", elem_id="control-percent", min_width=200
        )
    start = gr.Button("See what the model knows then", elem_id="control-start")
    table = gr.HTML(elem_id="control-table", apply_default_css=False)

    @told
    def run(
        image: Image.Image | None, model: str, weights: str | None, names: str, target: int,
        name: str | None, mode: Any, action: str, percent: float,
    ) -> Iterator[Any]:  # fmt: skip
        loaded, found = page.with_model(name, model, weights, names)
        number, count = number_of("mode", mode), max(1, round(found.width * percent / 100))
        running = Running(page.workspace.lock, lambda w: controlled(found, loaded, image, number, count, action))
        for words in running:
            yield underway(words), gr.skip()
        yield controlled_line(running.result), controlled_table(running.result)

    return start.click(
        run, [*chosen.inputs, which, mode, action, percent], [status, table], api_name="control_mode",
        show_progress_on=table, **MODEL,
    )  # fmt: skip


def _maps_part(page: Choices[OpenModes], chosen: Chosen, which: Any, mode: Any, status: Any) -> Any:
    gr.Markdown("### Where in the picture its contribution comes from")
    top = gr.Slider(1, 20, 3, step=1, label="Channels of the mode that are mapped", elem_id="maps-top")
    start = gr.Button("Draw the map", elem_id="maps-start")
    drawn = picture("Contribution map of the mode", "maps-figure")

    @told
    def run(
        image: Image.Image | None, model: str, weights: str | None, names: str, target: int,
        name: str | None, mode: Any, top: float,
    ) -> Iterator[Any]:  # fmt: skip
        loaded, found = page.with_model(name, model, weights, names)
        numbers, count = [number_of("mode", mode)], min(int(top), found.width)

        def work(watch: Any) -> Image.Image:
            with without_paths():
                return rendered(maps_figure(found, loaded, image, numbers, count, target, watch))

        running = Running(page.workspace.lock, work)
        for words in running:
            yield underway(words), gr.skip()
        yield f"The map of mode {numbers[0]}.", running.result

    return start.click(
        run, [*chosen.inputs, which, mode, top], [status, drawn], api_name="map_mode", show_progress_on=drawn, **MODEL
    )


def listing(found: OpenModes, rows: list[ModeRow], line: str) -> tuple[str, str, Any]:
    """The line, the table, and the choices of modes."""
    if not rows:
        return "No mode is on.", "", gr.Dropdown(choices=[], value=None)
    loaded = rows[0].loading is not None
    heads = (*COLUMNS, "loading") if loaded else COLUMNS
    cells = [
        (str(one.mode), one.classes, one.channels, share(one.active), *([f"{one.loading:.3g}"] if loaded else []))
        for one in rows
    ]
    table = html_table(f"Modes of {found.decomposed.site}", heads, cells, words=(0, 1, 2))
    choices = [(f"{one.mode} · {one.classes}", str(one.mode)) for one in rows]
    return line, table, gr.Dropdown(choices=choices, value=choices[0][1])


def controlled_line(found: Controlled) -> str:
    """What was done, in a sentence."""
    channels = f"{len(found.channels)} channel{'s' if len(found.channels) > 1 else ''}"
    done = "set to zero" if found.action == "ablate" else "kept, and all others set to zero"
    return f"Mode {found.mode}: its {channels} of the largest weights {done}."


def controlled_table(found: Controlled) -> str:
    """Probabilities before and after, beside those of as many random channels."""
    heads = ("class", "before", "after", "change", "random channels")
    rows = [
        (name, share(a), share(b), f"{100 * (b - a):+.1f}", share(other)) for name, a, b, other in found.rows()
    ]  # fmt: skip
    return html_table("What the model sees; random channels: the mean of five draws of as many", heads, rows)
