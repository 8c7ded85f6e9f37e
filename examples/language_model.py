# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     name: python3
# ---

# %% [markdown]
# # What is a language model's answer made of?
#
# Tokens by AttnLRP, blocks and heads by their contributions. The model here is a small Llama with random weights, so
# that nothing is fetched: put `load_language_model("ORG/NAME")` in its place, and words in place of numbers.

# %%
# ruff: noqa: B018  (a notebook shows the last line of a cell)
import torch

from backlight.models.language_models import load_language_model
from backlight.text import explain_text, text_contributions

sizes = {"vocab_size": 100, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3}
sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0}
torch.manual_seed(0)
language = load_language_model("llama", pretrained=False, config=sizes)
text = [1, 17, 42, 5, 23, 61]

# %% [markdown]
# Why token 7, and not token 9, behind the last one?

# %%
found = explain_text(language, text, target=7, against=9)
found

# %%
print("relevance sums to", round(float(found.relevance.sum()), 4), "of a score of", round(found.score, 4))

# %% [markdown]
# Which blocks, and which heads, make it.

# %%
inside = text_contributions(language, text, target=7)
print(inside.layers["blocks"].values.sum(1))  # a number a block
print(inside.layers["attention"].heads.sum(2))  # [blocks, heads]
