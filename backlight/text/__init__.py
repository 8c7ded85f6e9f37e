"""Texts: what language models are asked, and which tokens, blocks and heads their answers come from."""

from backlight.text.baselines import text_baseline
from backlight.text.contributions import LayerContributions, TextContributions, text_contributions
from backlight.text.explanation import ExplainedText, explain_text

__all__ = [
    "ExplainedText",
    "LayerContributions",
    "TextContributions",
    "explain_text",
    "text_baseline",
    "text_contributions",
]
