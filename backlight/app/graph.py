"""The Graph tab: how the concepts of the layers make the decision on the picture, and why a mistake is made."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr
from PIL import Image

from backlight.app.computation import Running, Watch
from backlight.app.header import MODEL, Chosen
from backlight.app.interruption import stops, underway
from backlight.app.messages import told
from backlight.app.opened import Opened, by_name, check_model, dictionaries
from backlight.app.picture_graphs import (
    CODERS,
    MOST_NODES,
    OWN,
    Building,
    class_choices,
    diagnosis_of,
    framed,
    graph_of,
    json_file,
    layer_choices,
    part_of,
)
from backlight.app.rendering import picture, rendered, stored
from backlight.app.workspace import Workspace
from backlight.graph.concept_graph import ConceptGraph
from backlight.graph.diagnosis import Diagnosis
from backlight.graph.operators import OPERATORS
from backlight.viz.graph_page import graph_page
from backlight.viz.graph_picture import graph_figure

NOTHING = (
    "No dictionaries are open here. Make some, a layer each, with `backlight concepts bank --data PICTURES --site A,B "
    "--out bank` and `backlight concepts fit bank --out concepts/mine`, and start the app with "
    "`backlight app --dictionaries concepts`."
)
ABOUT = (
    "The concept graph of the picture above: how concepts of one layer make those of the next, and these the decision. "
    "It is built for the predicted class and the one chosen above. The diagnosis takes the chosen class for the true "
    "one, and tells why the model sees another."
)
KEPT = 3600.0  # seconds that a graph stays with its reader


def tab(workspace: Workspace, chosen: Chosen) -> None:
    """Draw the tab and wire it; with nothing opened, say how to."""
    there = dictionaries(workspace)
    if not there:
        gr.Markdown(NOTHING, elem_id="graph-nothing")
        return
    gr.Markdown(ABOUT, elem_classes="quiet")
    settings = _controls(there)
    with gr.Row():
        start = gr.Button("Build the graph", variant="primary", elem_id="graph-start")
        why = gr.Button("Diagnose", elem_id="graph-diagnose")
        cancel = gr.Button("Cancel", variant="stop", elem_id="cancel-graph")
    status = gr.Markdown(elem_id="graph-status")
    with gr.Column(visible=False) as results:
        words = gr.Markdown(elem_id="graph-text")
        with gr.Accordion("Tables", open=False, visible=False) as more:
            tables = gr.Markdown(elem_id="graph-tables")
        frame = gr.HTML(elem_id="graph-page", apply_default_css=False)
        filters = _filters()
        figure = picture("The concept graph", "graph-figure")
        with gr.Row():
            buttons = [gr.DownloadButton(f"Download: {kind}", size="sm") for kind in ("page, HTML", "graph, JSON")]
    state = gr.State(None, time_to_live=KEPT)
    shown = [status, results, words, more, tables, frame, *filters, figure, *buttons, state]
    work = _Work(workspace, there, buttons)
    event, diagnosing = (
        button.click(
            run, [*chosen.inputs, *settings], shown, api_name=name, show_progress_on=status, **MODEL
        )
        for button, run, name in ((start, work.build, "graph"), (why, work.diagnose, "diagnose"))
    )  # fmt: skip
    gr.on(
        [one.release if isinstance(one, gr.Slider) else one.input for one in filters], work.filtered,
        [state, *filters], [frame, figure, *buttons], api_visibility="private", show_progress_on=frame,
    )  # fmt: skip
    stops(cancel, [event, diagnosing], status)


def _controls(there: list[Opened]) -> list[Any]:
    """Dictionaries, coder, numbers of concepts, attribution, exemplars."""
    first = there[0].name.partition("/")[0]
    names = gr.Dropdown(
        [(one.label, one.name) for one in there], multiselect=True, label="Dictionaries, one a layer",
        value=[one.name for one in there if one.name.partition("/")[0] == first][-2:], elem_id="graph-dictionaries",
    )  # fmt: skip
    with gr.Row():
        top = gr.Slider(
            1, MOST_NODES, Building.top, step=1, label="Concepts a class and layer", elem_id="graph-top", min_width=200
        )
        shared = gr.Slider(0, MOST_NODES, Building.shared, step=1, label="Concepts that classes share", min_width=200)
    with gr.Accordion("Coding and attribution", open=False), gr.Row():
        coder = gr.Dropdown(list(CODERS), value=OWN, label="How the picture is coded", elem_id="graph-coder")
        operator = gr.Dropdown(list(OPERATORS), value=Building.attribution, label="What makes an edge")
        exemplars = gr.Slider(0, 4, 0, step=1, label="Pictures of each concept elsewhere (slow)")
    return [names, top, shared, coder, operator, exemplars]


def _filters() -> list[Any]:
    """The least share of an edge, layers, classes."""
    with gr.Row():
        return [
            gr.Slider(
                0, 0.5, 0, step=0.01, label="Leave out edges of a smaller share", elem_id="graph-share", min_width=200
            ),
            gr.CheckboxGroup([], label="Layers", elem_id="graph-layers"),
            gr.CheckboxGroup([], label="Classes", elem_id="graph-classes"),
        ]


class _Work:
    """The listeners of the tab. It holds the folders that are open, and nothing of a user's."""

    def __init__(self, workspace: Workspace, there: list[Opened], buttons: list[gr.DownloadButton]) -> None:
        self.workspace, self.there, self.buttons = workspace, there, buttons
        self.build, self.diagnose = told(self._build), told(self._diagnose)
        self.filtered = told(self._filtered)

    def _build(self, *given: Any) -> Iterator[list[Any]]:
        """The graph of the picture."""
        running = self._running(graph_of, *given)
        for words in running:
            yield self._waiting(words)
        found: ConceptGraph = running.result
        yield self._shown(f"```\n{found.summary()}\n```", "", found)

    def _diagnose(self, *given: Any) -> Iterator[list[Any]]:
        """The graph of two classes, and what tells them apart."""
        running = self._running(diagnosis_of, *given)
        for words in running:
            yield self._waiting(words)
        found: Diagnosis = running.result
        yield self._shown(found.text(), found.markdown(), found.graph)

    def _running(
        self, work: Callable[..., Any], image: Image.Image | None, model: str, weights: str | None, class_names: str,
        target: int, names: list[str] | None, top: float, shared: float, coder: str, operator: str, exemplars: float,
    ) -> Running[Any]:  # fmt: skip
        chosen = [by_name(self.there, "dictionary", name) for name in names or []]
        for one in chosen:
            check_model(one, model)
        settings = Building(CODERS.get(coder), int(top), int(shared), operator, int(exemplars))
        loaded = self.workspace.model(model, weights, class_names)

        def run(watch: Watch) -> Any:
            return work(chosen, loaded, image, target, settings, watch)

        return Running(self.workspace.lock, run)

    def _waiting(self, words: str) -> list[Any]:
        return [underway(words), *[gr.skip()] * (10 + len(self.buttons))]

    def _shown(self, text: str, tables: str, graph: ConceptGraph) -> list[Any]:
        layers, classes = layer_choices(graph), class_choices(graph)
        filters = [
            gr.Slider(value=0),
            gr.CheckboxGroup(choices=layers, value=layers),
            gr.CheckboxGroup(choices=classes, value=[index for _, index in classes]),
        ]
        frame, figure, *paths = self._views(graph)
        more = gr.Accordion(visible=bool(tables))
        return ["Done.", gr.Column(visible=True), text, more, tables, frame, *filters, figure, *paths, graph]

    def _filtered(self, graph: ConceptGraph | None, least: float, layers: list[str], classes: list[int]) -> list[Any]:
        """The part of the reader's graph that is asked for."""
        if graph is None:
            return [gr.skip()] * (2 + len(self.buttons))
        return self._views(part_of(graph, float(least), layers, classes))

    def _views(self, graph: ConceptGraph) -> list[Any]:
        """The page in its frame, the figure, and the files."""
        page = graph_page(graph)
        files = ((page.encode(), "concept-graph.html"), (json_file(graph), "concept-graph.json"))
        paths = [stored(data, name, button) for (data, name), button in zip(files, self.buttons, strict=True)]
        return [framed(page, "The concept graph, to explore"), rendered(graph_figure(graph)), *paths]
