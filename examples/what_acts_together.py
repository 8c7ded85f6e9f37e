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
# # What acts together?
#
# Contributions say what every hidden unit adds to a logit. Decomposed over many pictures they fall into modes: channels
# that act together (CODEC). Whether a mode matters is seen by taking it away, beside as many channels at random.
# Twelve views of sample pictures stand for the thousands that `backlight extract` and `decompose` take.

# %%
# ruff: noqa: B018  (a notebook shows the last line of a cell)
import torch

import backlight
from backlight.contributions import ChannelEdit, control
from backlight.data import sample_image
from backlight.decompositions import NMF
from backlight.viz import show

loaded = backlight.load("efficientnet_lite0")
names = ["chelsea", "coffee", "rocket", "astronaut"]
inputs = torch.stack([loaded.preprocessing.tensor(sample_image(name)) for name in names])
views = torch.cat((inputs, inputs.flip(3), inputs.roll(24, 2)))
site = "blocks.5.3"

# %%
found = backlight.contribute(loaded.model, views, site, algorithm="ActGrad")
found

# %%
show(found, title="The channels that add the most to chelsea's logit, and take the most from it")

# %% [markdown]
# A row a picture: what each channel contributes, positive parts. Four modes, one a subject if all goes well.

# %%
rows = found.values[site].sum((2, 3)).clamp(min=0)
modes = NMF(n_modes=4).fit(rows)
loadings = modes.encode(rows)
print(loadings.argmax(1).reshape(3, 4))  # views by pictures: the strongest mode
own = int(loadings[0].argmax())
modes

# %% [markdown]
# The ten strongest channels of chelsea's mode removed, beside ten at random.

# %%
channels = modes.modes[own].topk(10).indices.tolist()
draw = torch.randperm(rows.shape[1], generator=torch.Generator().manual_seed(0))[:10].tolist()
with torch.no_grad():
    before = loaded.model(inputs).softmax(1)
    best = before.argmax(1)
    print("untouched:   ", before.gather(1, best[:, None])[:, 0])
    for name, removed in (("the mode's: ", channels), ("at random:  ", draw)):
        with control(loaded.model, {site: ChannelEdit(removed)}):
            print(f"without {name}", loaded.model(inputs).softmax(1).gather(1, best[:, None])[:, 0])

# %% [markdown]
# Where in the picture do the mode's contributions come from?

# %%
maps = backlight.contribution_maps(loaded.model, inputs[:1], site, channels, int(best[0]))
show(maps, inputs, loaded=loaded, title="What the mode's ten channels contribute")
