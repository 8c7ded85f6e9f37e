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
# # What would have to change?
#
# The picture is moved, step by step, until the network takes it for another class: along soft pullbacks, and along the
# gradient. Both convince the network; what they change differs.

# %%

import backlight
from backlight.data import sample_image
from backlight.viz import show

loaded = backlight.load("efficientnet_lite0")
front = loaded.pixels()
x = (2 * loaded.preprocessing.image(sample_image("chelsea")) - 1)[None]
tiger = loaded.classes.index("tiger")

# %%
found = {
    along: backlight.Counterfactual(front, n_steps=6, along=along).perturb(x, tiger)
    for along in ("pullback", "gradient")
}
for along, one in found.items():
    way = [round(float(share), 3) for share in one.probabilities[:, 0]]
    print(f"{along}: probability of tiger {way}, moved by {float(one.difference.norm()):.1f}")

# %%
show(found["pullback"], title="Along soft pullbacks")

# %%
show(found["gradient"], title="Along the gradient")

# %% [markdown]
# Accentuation makes more of what is there already: the ascent without a new class.

# %%
more = backlight.Accentuation(front, n_steps=3).perturb(x, loaded.classes.index("tiger cat"))
show(more, title="More of a tiger cat")
