"""The Concepts tab: the concepts of a saved dictionary, and where one looks in the picture."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr
from PIL import Image

from backlight.app.computation import Running
from backlight.app.concept_pages import (
    AUTO,
    TOKENS,
    ConceptRow,
    OpenConcepts,
    listed,
    look,
    open_concepts,
    page_figure,
    strongest,
)
from backlight.app.header import MODEL, Chosen
from backlight.app.interruption import stops, underway
from backlight.app.messages import told
from backlight.app.opened import Choices, dictionaries, number_of
from backlight.app.rendering import picture, rendered
from backlight.app.tables import html_table
from backlight.app.workspace import Workspace
from backlight.concepts.attributors import ATTRIBUTORS

NOTHING = (
    "No dictionary is open here. Make one with `backlight concepts bank --data PICTURES --site LAYER --out bank` and "
    "`backlight concepts fit bank --method TopKSAE --out concepts/mine`, and start the app with "
    "`backlight app --dictionaries concepts`."
)
ABOUT = (
    "Concepts are directions in a layer that a dictionary found. Search them by what they go with, open one's page, "
    "and see where in the picture above one fires and where it looks (CAFE)."
)


def tab(workspace: Workspace, chosen: Chosen) -> None:
    """Draw the tab and wire it; with nothing opened, say how to."""
    there = dictionaries(workspace)
    if not there:
        gr.Markdown(NOTHING, elem_id="concepts-nothing")
        return
    gr.Markdown(ABOUT, elem_classes="quiet")
    with gr.Row():
        which = gr.Dropdown(
            [(one.label, one.name) for one in there], label="Dictionary", elem_id="concepts-dictionary", min_width=280
        )
        search = gr.Textbox(
            label="Concepts of a class", placeholder="any class; e.g. dog", elem_id="concepts-search", min_width=200
        )
    with gr.Row():
        find = gr.Button("List concepts", elem_id="concepts-list")
        active = gr.Button("Strongest on the picture", variant="primary", elem_id="concepts-active")
        cancel = gr.Button("Cancel", variant="stop", elem_id="cancel-concepts")
    status = gr.Markdown(elem_id="concepts-status")
    table = gr.HTML(elem_id="concepts-table", apply_default_css=False)
    with gr.Row():
        concept = gr.Dropdown(
            [], label="Concept", elem_id="concept", min_width=280, info="Of those listed; or type a number.",
            allow_custom_value=True,
        )  # fmt: skip
        token = gr.Dropdown(
            list(TOKENS), value=next(iter(TOKENS)), label="Its value at", elem_id="concepts-token", min_width=280,
            allow_custom_value=True, info="For the picture above; or type a token's number.",
        )  # fmt: skip
    page = Choices(workspace, there, "dictionary", open_concepts)
    shown = [status, table, concept]
    events = [
        *_wire_lists(page, chosen, which, search, token, find, active, shown),
        _page_part(page, which, concept, status),
        _look_part(page, chosen, which, concept, token, status),
    ]
    stops(cancel, events, status)


def _wire_lists(
    page: Choices[OpenConcepts],
    chosen: Chosen,
    which: Any,
    search: Any,
    token: Any,
    find: Any,
    active: Any,
    shown: list[Any],
) -> list[Any]:
    @told
    def run_list(name: str | None, wanted: str) -> tuple[str, str, Any]:
        found = page.opened(name)
        alive = int(found.concepts.statistics["alive"].sum())
        return listing(found, listed(found, wanted or ""), f"{alive} concepts that are on somewhere. {found.note}")

    @told
    def run_active(
        image: Image.Image | None,
        model: str,
        weights: str | None,
        names: str,
        target: int,
        name: str | None,
        token: str,
    ) -> Iterator[Any]:
        loaded, found = page.with_model(name, model, weights, names)
        running = Running(page.workspace.lock, lambda watch: strongest(found, loaded, image, token))
        for words in running:
            yield underway(words), gr.skip(), gr.skip()
        yield listing(found, running.result, "The concepts that are largest on the picture.")

    first = gr.on(
        [find.click, search.submit, which.change, gr.context.Context.root_block.load],  # type: ignore[union-attr]
        run_list, [which, search], shown, api_name="concepts", show_progress_on=shown[0],
    )  # fmt: skip
    second = active.click(
        run_active, [*chosen.inputs, which, token], shown, api_name="active_concepts", show_progress_on=shown[0],
        **MODEL,
    )  # fmt: skip
    return [first, second]


def _page_part(page: Choices[OpenConcepts], which: Any, concept: Any, status: Any) -> Any:
    gr.Markdown("### Its page: the pictures on which it is strongest, what it is made of there, and crops")
    with gr.Row():
        count = gr.Slider(1, 12, 4, step=1, label="Pictures", elem_id="page-count")
        diverse = gr.Checkbox(label="Far from each other", elem_id="page-diverse")
    start = gr.Button("Open its page", elem_id="page-start")
    drawn = picture("The page of the concept", "page-figure")

    @told
    def run(name: str | None, concept: Any, count: float, diverse: bool) -> Iterator[Any]:
        found, number = page.opened(name), number_of("concept", concept)

        def work(watch: Any) -> Image.Image:
            return rendered(page_figure(found, number, int(count), diverse, watch))

        running = Running(page.workspace.lock, work)
        for words in running:
            yield underway(f"Concept {number}: {words}"), gr.skip()
        yield f"The page of concept {number}: {found.told_classes(number)}.", running.result

    return start.click(
        run, [which, concept, count, diverse], [status, drawn], api_name="concept", show_progress_on=drawn, **MODEL
    )


def _look_part(page: Choices[OpenConcepts], chosen: Chosen, which: Any, concept: Any, token: Any, status: Any) -> Any:
    gr.Markdown("### Where it fires in the picture above, and where it looks")
    how = gr.Dropdown(
        [AUTO, *ATTRIBUTORS], value=AUTO, label="Attributor", elem_id="cafe-attributor",
        info="By itself, AttnLRP for transformers and SRD for convolutional networks.",
    )  # fmt: skip
    start = gr.Button("See where it looks", variant="primary", elem_id="cafe-start")
    said = gr.Markdown(elem_id="cafe-sentence")
    drawn = picture("Where the concept fires, and where it looks", "cafe-figure")

    @told
    def run(
        image: Image.Image | None, model: str, weights: str | None, names: str, target: int,
        name: str | None, concept: Any, token: str, how: str,
    ) -> Iterator[Any]:  # fmt: skip
        loaded, found = page.with_model(name, model, weights, names)
        number = number_of("concept", concept)
        running = Running(page.workspace.lock, lambda w: look(found, loaded, image, number, how, token, w))
        for words in running:
            yield underway(words), gr.skip(), gr.skip()
        yield f"Concept {number} on the picture.", running.result.sentence, rendered(running.result.figure)

    return start.click(
        run, [*chosen.inputs, which, concept, token, how], [status, said, drawn], api_name="look",
        show_progress_on=drawn, **MODEL,
    )  # fmt: skip


def listing(found: OpenConcepts, rows: list[ConceptRow], line: str) -> tuple[str, str, Any]:
    """The line, the table, and the choices of concepts."""
    if not rows:
        return "No concept is on.", "", gr.Dropdown(choices=[], value=None)
    measured = rows[0].z is not None
    heads = ("concept", "goes with (r)", "on in", "R2 lost without", *(["on the picture"] if measured else []))
    cells = [
        (
            str(one.concept), one.classes, f"{100 * one.frequency:.2g} %",
            "–" if one.explained != one.explained else f"{one.explained:.4f}",
            *([f"{one.z:.3g}"] if one.z is not None else []),
        )
        for one in rows
    ]  # fmt: skip
    table = html_table(f"Concepts of {found.concepts.model_name}, {found.concepts.site}", heads, cells, words=(0, 1))
    choices = [(f"{one.concept} · {one.classes}", str(one.concept)) for one in rows]
    return line, table, gr.Dropdown(choices=choices, value=choices[0][1])
