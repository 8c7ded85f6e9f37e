"""Texts: what language models are asked, and which tokens, blocks, heads and modes their answers come from."""

from backlight.text.baselines import text_baseline
from backlight.text.collector import TextCollector
from backlight.text.contributions import LayerContributions, TextContributions, text_contributions
from backlight.text.control import TextControl, text_control
from backlight.text.explanation import ExplainedText, explain_text
from backlight.text.samples import TextSamples

__all__ = [
    "ExplainedText",
    "LayerContributions",
    "TextCollector",
    "TextContributions",
    "TextControl",
    "TextSamples",
    "explain_text",
    "text_baseline",
    "text_contributions",
    "text_control",
]
