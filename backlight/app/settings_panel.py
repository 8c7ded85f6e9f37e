"""The panel of method settings: controls made from the registry, remembered in the session by method and setting."""

from __future__ import annotations

from typing import Any

import gradio as gr

from backlight.app.method_settings import Setting, method_settings
from backlight.methods import method

Given = dict[str, dict[str, Any]]  # what the controls gave


def panel(methods: gr.Dropdown) -> gr.State:
    """Draw the panel: controls for the chosen methods, drawn anew when others are chosen. Returns what they gave."""
    given = gr.State({})
    page = gr.context.Context.root_block
    with gr.Accordion("Settings of the methods", open=False, elem_id="settings"):

        @gr.render(inputs=[methods, given], triggers=[page.load, methods.change])  # type: ignore[union-attr]
        def controls(wanted: list[str], known: Given) -> None:
            for name in wanted:
                with gr.Group():
                    gr.Markdown(about(name), padding=True)
                    with gr.Row():
                        for setting in method_settings(name):
                            before = known.get(name, {}).get(setting.name, setting.shown)
                            _remembered(control(setting, before), setting, given)

    return given


def about(name: str) -> str:
    """What a method is, where it is from, and what it costs, in a line."""
    cls = method(name)
    summary = (cls.__doc__ or "").strip().splitlines()[0].replace("`", "")
    return f"**{name}**: {summary} ({cls.source}; passes: {cls.passes})"


def control(setting: Setting, value: Any) -> Any:
    """The control of a setting: labelled, with its documentation."""
    shared: dict[str, Any] = {
        "label": setting.name,
        "info": setting.about,
        "elem_id": f"{setting.method}-{setting.name}",
        "min_width": 210,
        "interactive": True,
    }
    if setting.kind == "switch":
        return gr.Checkbox(value, **shared)
    if setting.kind in ("choice", "auto"):
        typed = setting.kind == "choice"
        return gr.Dropdown(list(setting.choices), value=value, allow_custom_value=typed, **shared)
    if setting.kind in ("whole", "number"):
        return gr.Number(value, precision=0 if setting.kind == "whole" else None, **shared)
    return gr.Textbox(value, **shared)


def _remembered(component: Any, setting: Setting, given: gr.State) -> None:
    def remember(value: Any, known: Given) -> Given:
        return {**known, setting.method: {**known.get(setting.method, {}), setting.name: value}}

    component.change(remember, [component, given], given, queue=False, show_progress="hidden", api_visibility="private")
