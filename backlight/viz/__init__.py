"""Figures of explanations, drawn without matplotlib's global state."""

from backlight.viz.figures import counterfactual_figure, explanation_figure, save_figure, signed_map

__all__ = ["counterfactual_figure", "explanation_figure", "save_figure", "signed_map"]
