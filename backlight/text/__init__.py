"""Texts: what language models are asked, and which tokens, blocks and heads their answers come from."""

from backlight.text.explanation import ExplainedText, explain_text

__all__ = ["ExplainedText", "explain_text"]
