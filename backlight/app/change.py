"""The Change tab: what must change in a picture for the network to see another class."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr
from PIL import Image

from backlight.app.animation import frames, gif, png
from backlight.app.ascents import (
    MOST_STEPS,
    PROJECTIONS,
    TITLES,
    Ascending,
    Change,
    as_picture,
    change,
    difference_figure,
    probabilities,
    sentence,
    temperature_of,
    trajectories_figure,
)
from backlight.app.computation import Running
from backlight.app.header import MODEL, Chosen
from backlight.app.interruption import stops, underway
from backlight.app.messages import told
from backlight.app.rendering import enlarged, picture, rendered, stored
from backlight.app.tables import html_table, share
from backlight.app.workspace import Workspace

ABOUT = (
    "Two ways to move the picture towards the class chosen above, step by step: along soft pullbacks "
    "(Pullback Ascent) and along the plain gradient (Gradient Ascent). Choose a class that the model does not see."
)


def tab(workspace: Workspace, chosen: Chosen) -> None:
    """Draw the tab and wire it."""
    gr.Markdown(ABOUT, elem_classes="quiet")
    settings = _controls()
    with gr.Row():
        start = gr.Button("Change the picture", variant="primary", elem_id="change-start")
        cancel = gr.Button("Cancel", variant="stop", elem_id="cancel-change")
    status = gr.Markdown(elem_id="change-status")
    with gr.Column(visible=False, elem_id="change-results") as results:
        views, buttons = _results()

    @told
    def run(
        image: Image.Image | None, name: str, weights: str | None, names: str, target: int,
        n_steps: float, step: float, temperature: str, radius: float, project: str,
    ) -> Iterator[list[Any]]:  # fmt: skip
        wanted = Ascending(int(n_steps), float(step), float(radius), PROJECTIONS[project], temperature_of(temperature))
        loaded = workspace.model(name, weights, names)
        running = Running(workspace.lock, lambda watch: change(loaded, image, target, wanted, watch))
        waiting = [gr.skip()] * (1 + len(views) + len(buttons))
        for words in running:
            yield [underway(words), *waiting]
        made = running.result
        line = f"Done: {loaded.name}, from {made.name(made.original)} towards {made.name(made.target)}."
        yield [line, gr.Column(visible=True), *shown(made), *files(made, buttons)]

    event = start.click(
        run, [*chosen.inputs, *settings], [status, results, *views, *buttons], api_name="change",
        show_progress_on=status, **MODEL,
    )  # fmt: skip
    stops(cancel, [event], status)


def _controls() -> list[Any]:
    """Steps, their length, temperature, radius, projection."""
    with gr.Row():
        n_steps = gr.Slider(
            1, MOST_STEPS, Ascending.n_steps, step=1, label="Steps", elem_id="change-steps", min_width=200
        )
        step = gr.Slider(1, 100, Ascending.step, step=1, label="Length of a step", elem_id="change-step", min_width=200)
        temperature = gr.Dropdown(
            ["relative", "paper", "excitation"], value=str(Ascending.temperature), allow_custom_value=True,
            label="Temperature", elem_id="change-temperature", info="Of the soft pullback; or type a number.",
        )  # fmt: skip
    with gr.Accordion("Limits", open=False), gr.Row():
        radius = gr.Slider(0, 300, Ascending.radius, step=1, label="Radius: the largest l2 distance (0: none)")
        project = gr.Dropdown(list(PROJECTIONS), value="after every step", label="Clip to valid colours")
    return [n_steps, step, temperature, radius, project]


def _results() -> tuple[list[Any], list[gr.DownloadButton]]:
    """The components that `shown` and `files` fill."""
    views: list[Any] = []
    with gr.Row():
        for along, title in TITLES.items():
            with gr.Column(min_width=280):
                gr.Markdown(f"### {title}")
                views.append(picture(f"The picture after {title}", f"change-{along}"))
                views.append(gr.Markdown(elem_id=f"sentence-{along}"))
                gr.Markdown("Difference from the input, summed over colours; white is zero.", elem_classes="quiet")
                views.append(picture(f"{title}: difference", f"difference-{along}"))
    views.append(gr.HTML(elem_id="change-table", apply_default_css=False))
    with gr.Row():
        with gr.Column(min_width=280):
            gr.Markdown("### Probability against step")
            views.append(picture("Probability against step", "change-curves"))
        with gr.Column(min_width=280):
            gr.Markdown("### Animation of both")
            views.append(picture("Animation of both", "change-animation", "gif"))
    with gr.Row():
        kinds = ("Pullback Ascent, PNG", "Gradient Ascent, PNG", "Animation, GIF")
        buttons = [gr.DownloadButton(f"Download: {kind}", size="sm", min_width=150) for kind in kinds]
    return views, buttons


def shown(made: Change) -> list[Any]:
    """What the tab shows of a change, in the order of its components; the animation comes with the files."""
    views: list[Any] = []
    for along, title in TITLES.items():
        alt = f"The picture after {title} towards {made.name(made.target)}"
        views.append(gr.Image(value=enlarged(as_picture(made.found[along].image[0])), alt_text=alt))
        views.append(sentence(made, along))
        views.append(rendered(difference_figure(made, along)))
    views.append(table(made))
    views.append(rendered(trajectories_figure(made)))
    return views


def files(made: Change, buttons: list[gr.DownloadButton]) -> list[Any]:
    """The animation, and the three downloads."""
    pictures = [png(as_picture(made.found[along].image[0])) for along in TITLES]
    names = [f"{along}-ascent.png" for along in TITLES]
    paths = list(map(stored, [*pictures, gif(frames(made))], [*names, "ascents.gif"], buttons))
    return [paths[-1], *paths]


def table(made: Change) -> str:
    """Names and probabilities before and after."""
    rows = [(name, *map(share, shares)) for name, *shares in probabilities(made)]
    return html_table("Probabilities", ("class", "before", *(f"after {one}" for one in TITLES.values())), rows)
