"""Figures of explanations, drawn without matplotlib's global state; pages that open from disk; results in notebooks."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from backlight.viz.figures import counterfactual_figure, explanation_figure, save_figure, signed_map
from backlight.viz.graph_page import graph_page, write_page
from backlight.viz.graph_picture import graph_figure
from backlight.viz.overlays import class_figure, segmentation_figure

if TYPE_CHECKING:
    from backlight.viz.report_evaluation import evaluation_report
    from backlight.viz.report_figures import maps_figure
    from backlight.viz.report_image import image_report
    from backlight.viz.report_model import model_report
    from backlight.viz.rich_display import show

__all__ = [
    "class_figure",
    "counterfactual_figure",
    "evaluation_report",
    "explanation_figure",
    "graph_figure",
    "graph_page",
    "image_report",
    "maps_figure",
    "model_report",
    "save_figure",
    "segmentation_figure",
    "show",
    "signed_map",
    "write_page",
]
# these need other rooms, and are loaded when they are first used
_LATER = {
    "evaluation_report": "report_evaluation",
    "image_report": "report_image",
    "maps_figure": "report_figures",
    "model_report": "report_model",
    "show": "rich_display",
}


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return getattr(import_module(f"backlight.viz.{_LATER[name]}"), name)
    raise AttributeError(f"module 'backlight.viz' has no attribute {name!r}")
