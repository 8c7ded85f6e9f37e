"""What tokens of a vision transformer are made of: effective fields in DINOv2-S at three depths; writes a picture.

Each map shows the shares of the patches, white being the second largest; the token's own patch is framed.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

import backlight
from backlight.data import sample_image
from backlight.methods.token_fields import TokenFields

OUT = Path("out/token_fields.png")
BLOCKS = (3, 7, 11)
PATCHES = ((3, 3), (3, 8), (3, 12), (6, 6), (6, 9), (8, 4), (8, 8), (10, 10), (12, 3), (13, 13))  # (row, column)


def main(picture: str = "chelsea") -> None:
    """Draw, for each block, the shares of the patches in the class token and in ten patch tokens."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    loaded = backlight.load("dinov2_small")
    x = loaded.preprocessing.tensor(sample_image(picture))[None]
    image = loaded.preprocessing.picture(sample_image(picture))
    explainer = TokenFields(loaded.model)
    layout = explainer.layout(x)
    tokens = [0, *(layout.token(*patch) for patch in PATCHES)]
    figure, axes = plt.subplots(len(BLOCKS), len(tokens) + 1, figsize=(1.7 * (len(tokens) + 1), 1.95 * len(BLOCKS)))
    for row, block in enumerate(BLOCKS):
        fields = explainer.of(x, f"blocks.{block}", tokens, internal_batch_size=4)
        axes[row, 0].imshow(image)
        axes[row, 0].set_ylabel(f"block {block}")
        for column, share in enumerate(fields.shares.numpy(), 1):
            at = axes[row, column]
            second = np.sort(share, axis=None)[-2]  # the own patch would outshine all others
            at.imshow(np.kron(share, np.ones((14, 14))), cmap="magma", vmin=0, vmax=second)
            name = "class"
            if column > 1:
                y, z = PATCHES[column - 2]
                at.add_patch(plt.Rectangle((14 * z, 14 * y), 14, 14, fill=False, edgecolor="cyan", linewidth=0.8))
                name, own = f"({y}, {z})", share[y, z]
                at.set_xlabel(f"own {own:.0%}, white {second:.1%}", fontsize=6)
            else:
                at.set_xlabel(f"max {share.max():.0%}, white {second:.1%}", fontsize=6)
            at.set_title(name, fontsize=8)
        absorbed = {name: round(float(part.mean()), 3) for name, part in fields.absorbed.items()}
        class_absorbed = {name: round(float(part[0]), 3) for name, part in fields.absorbed.items()}
        print(f"block {block}: all tokens {absorbed}, class token {class_absorbed}")
        own = [float(s[p]) for s, p in zip(fields.shares[1:], PATCHES, strict=True)]
        first = sum(float(s.max()) == o for s, o in zip(fields.shares[1:], own, strict=True))
        print(f"  share of the own patch: mean {np.mean(own):.3f}, the largest of all in {first} of {len(own)}")
    for at in axes.flat:
        at.set_xticks([])
        at.set_yticks([])
    figure.tight_layout()
    OUT.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(OUT, dpi=110)
    print(OUT)


if __name__ == "__main__":
    main(*sys.argv[1:])
