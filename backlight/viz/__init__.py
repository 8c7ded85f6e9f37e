"""Figures of explanations, drawn without matplotlib's global state."""

from backlight.viz.figures import counterfactual_figure, explanation_figure, save_figure, signed_map
from backlight.viz.graph_page import graph_page, write_page
from backlight.viz.graph_picture import graph_figure
from backlight.viz.overlays import class_figure, segmentation_figure

__all__ = [
    "class_figure",
    "counterfactual_figure",
    "explanation_figure",
    "graph_figure",
    "graph_page",
    "save_figure",
    "segmentation_figure",
    "signed_map",
    "write_page",
]
