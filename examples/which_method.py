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
# # Which method should I trust?
#
# Ask metrics that do not share an assumption, on pictures like yours, beside maps that explain nothing: a metric that
# prefers those cannot be trusted here. Four sample pictures stand for yours, which gives wide intervals; a folder of a
# hundred narrows them (`backlight evaluate --data FOLDER`).

# %%
# ruff: noqa: B018  (a notebook shows the last line of a cell)
import tempfile

import torch

import backlight
from backlight.data import sample_image
from backlight.evaluation import TensorSamples
from backlight.metrics import FaithfulnessCorrelation, Infidelity, RandomLogit
from backlight.viz import evaluation_report, show

loaded = backlight.load("efficientnet_lite0")
front = loaded.pixels()
names = ["chelsea", "coffee", "rocket", "astronaut"]
pictures = torch.stack([2 * loaded.preprocessing.image(sample_image(name)) - 1 for name in names])
samples = TensorSamples(pictures[:, :, ::2, ::2].contiguous(), names=names)  # small: this is an example

# %%
methods = {name: getattr(backlight, name)(front) for name in ("Saliency", "SoftPullback", "SRD", "GradCAM")}
metrics = {
    "Infidelity": Infidelity(repeats=2),
    "FaithfulnessCorrelation": FaithfulnessCorrelation.preset("signed"),
    "RandomLogit": RandomLogit(),
}
folder = tempfile.mkdtemp()
found = backlight.evaluate(front, samples, methods, metrics, out=folder)
found

# %% [markdown]
# What readers of the table must know: where a control beats the methods, where a metric cannot tell a map's sign.

# %%
for note in found.footnotes:
    print("-", note.text)

# %%
show(found, metric="FaithfulnessCorrelation")

# %% [markdown]
# The same as a page that opens from disk, with settings, versions and seeds.

# %%
print(evaluation_report(found).write(f"{folder}/evaluation.html"))
