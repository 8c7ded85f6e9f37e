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
# # What does a layer encode?
#
# Concepts are directions of a hidden layer that many pictures use. A dictionary finds them among the layer's vectors;
# exemplars say what each stands for. In a transformer, where a latent looks need not be where it fires: CAFE.
# Eight views of sample pictures stand for the thousands that a dictionary wants (`backlight concepts bank`, `fit`).

# %%
# ruff: noqa: B018  (a notebook shows the last line of a cell)
import tempfile

import torch

import backlight
from backlight.concepts.bank import make_bank
from backlight.concepts.cafe import Cafe
from backlight.concepts.concepts import fit_concepts
from backlight.concepts.exemplars import exemplars
from backlight.data import sample_image
from backlight.decompositions import TopKSAE
from backlight.engine import captured
from backlight.evaluation import TensorSamples
from backlight.viz import show

loaded = backlight.load("efficientnet_lite0")
names = ["chelsea", "coffee", "rocket", "astronaut"]
pictures = torch.stack([2 * loaded.preprocessing.image(sample_image(name)) - 1 for name in names])
samples = TensorSamples(torch.cat((pictures, pictures.flip(3))))

# %%
folder = tempfile.mkdtemp()
bank = make_bank(loaded, samples, ("blocks.4",), f"{folder}/bank", per_image=24)
bank

# %%
concepts = fit_concepts(bank, "blocks.4", "KMeans", f"{folder}/concepts", modes=6, held_out=0.25)
concepts

# %% [markdown]
# The place where a concept is strongest, and what that place is made of.

# %%
strongest = exemplars(concepts, 0, count=2)
for one in strongest:
    print(one.name, one.position, one.box())
show({f"concept 0 in picture {one.name}": one.ierf for one in strongest})

# %% [markdown]
# A sparse autoencoder of a transformer's tokens (here of one picture's, and for a moment only), and where its strongest
# latents look.

# %%
dino = backlight.load("dinov2_small")
x = dino.preprocessing.tensor(sample_image("chelsea"))[None]
with torch.no_grad(), captured(dino.model, ["blocks.3"]) as held:
    dino.model(x)
sae = TopKSAE(n_modes=64, k=8, epochs=2).fit(held["blocks.3"][0])
cafe = Cafe(dino.model, sae, "blocks.3")
fields = cafe.explain(x, cafe.strongest(x, 2))
fields

# %%
show(fields, x, loaded=dino, title="Where two latents fire, and where they look")
