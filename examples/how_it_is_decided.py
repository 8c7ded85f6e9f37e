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
# # How is a decision put together?
#
# A concept graph: concepts of one layer, what they do for those of the next, and these for the classes. Dictionaries
# are fitted here to four pictures' vectors alone, in a moment; real ones come from `backlight concepts fit`.

# %%
# ruff: noqa: B018  (a notebook shows the last line of a cell)
import tempfile

import torch

import backlight
from backlight.data import sample_image
from backlight.decompositions import KMeans
from backlight.engine import captured
from backlight.graph import Diagnosis, build_graph
from backlight.viz import show, write_page

loaded = backlight.load("efficientnet_lite0")
names = ["chelsea", "coffee", "rocket", "astronaut"]
inputs = torch.stack([loaded.preprocessing.tensor(sample_image(name)) for name in names])
sites = ("blocks.3", "blocks.4", "blocks.5")
with torch.no_grad(), captured(loaded.model, sites) as held:
    loaded.model(inputs)
layers = {site: KMeans(n_modes=12).fit(held[site].flatten(2).transpose(1, 2).flatten(0, 1)) for site in sites}

# %%
tabby, tiger_cat = loaded.classes.index("tabby"), loaded.classes.index("tiger cat")
graph = build_graph(
    loaded, inputs[:1], layers, classes=[tabby, tiger_cat], top=3, attribution="GradientTimesInput", name="chelsea"
)
graph

# %% [markdown]
# Why a tiger cat, and not a tabby? What speaks for one against the other, from the last layer to the first.

# %%
found = Diagnosis.of(graph, tabby, tiger_cat)
print(found.text(2))

# %%
show(graph, min_share=0.1, nodes=5)

# %% [markdown]
# The graph to explore, in one file that opens from disk.

# %%
print(write_page(graph, f"{tempfile.mkdtemp()}/graph.html"))
