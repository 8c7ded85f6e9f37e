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
# # Why did the network say this?
#
# A photograph, what a network says of it, and where the evidence lies: by several methods beside each other, for two
# classes, and down to what single places of a hidden layer see. Runs as a script, or as a notebook (`jupytext`).

# %%
# ruff: noqa: B018  (a notebook shows the last line of a cell)
import backlight
from backlight.data import sample_image
from backlight.viz import show

loaded = backlight.load("efficientnet_lite0")
loaded

# %% [markdown]
# `pixels()` puts a front before the network that takes pictures in [-1, 1]: maps of all networks are then in the same
# units.

# %%
image = sample_image("chelsea")
front = loaded.pixels()
x = (2 * loaded.preprocessing.image(image) - 1)[None]
shares = front(x)[0].detach().softmax(0)
for share, index in zip(*shares.topk(5), strict=True):
    print(f"{loaded.classes.name(index)}: {float(share):.1%}")

# %% [markdown]
# Red speaks for the class, blue against it. The methods answer different questions; where they disagree, see
# `which_method.py`.

# %%
target = loaded.classes.index("tiger cat")
maps = {name: getattr(backlight, name)(front).explain(x, target) for name in ("SoftPullback", "SRD", "GradCAM")}
show(maps, image, loaded=loaded, title="Evidence for tiger cat")

# %% [markdown]
# What is evidence for one class and not for the other? A contrast is a target like any other.

# %%
other = loaded.classes.index("Egyptian cat")
contrast = backlight.SRD(front).explain(x, backlight.Contrast(target, other))
print("the logits differ by", round(float(contrast.scores[0]), 2))
show({"tiger cat, not Egyptian cat": contrast}, image, loaded=loaded)

# %% [markdown]
# What do single places of a hidden layer see? Their receptive fields sum to 1.

# %%
operator = backlight.SRD(front).prepare(x)
fields = operator.ierf("network.blocks.4", positions=[(5, 4), (11, 8)])[0]
print([round(float(one.sum()), 3) for one in fields])
show({"row 5, column 4": fields[0], "row 11, column 8": fields[1]}, image, loaded=loaded)

# %% [markdown]
# Every result says which rule answered for which operation.

# %%
maps["SoftPullback"].coverage
