"""Where is the object? Masks from a network that only knows image labels.

    python examples/segmentation.py [PICTURE [CLASS]]

Draws, for each of three attributions, its map, its seeds, and the mask and box that a graph cut makes of them, to
out/segmentation-METHOD.png.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

import backlight
from backlight.data import read_image, sample_image
from backlight.viz import save_figure, segmentation_figure

METHODS = ("ClassSaliency", "SoftPullback", "GradCAM")
OUT = Path("out")


def main() -> None:
    """Segment a picture by every method."""
    loaded = backlight.load("efficientnet_lite0")
    picture = read_image(sys.argv[1]) if len(sys.argv) > 1 else sample_image("coffee")
    given = loaded.preprocessing
    whole = replace(given, resize=given.size, fit="squash", crop_square=False)  # no crop: the map covers the picture
    x = whole.tensor(picture)[None]
    target = loaded.classes.index(sys.argv[2]) if len(sys.argv) > 2 else int(loaded.model(x).argmax())
    OUT.mkdir(exist_ok=True)
    shown = torch.from_numpy(np.array(picture)).permute(2, 0, 1) / 127.5 - 1
    for name in METHODS:
        attribution = getattr(backlight, name)(loaded.model).attribute(x, target)
        found = backlight.weak_segmentation(picture, attribution)
        title = f"{loaded.classes.name(target)} · {name}"
        figure = segmentation_figure(shown, found.saliency, found.seeds, found.mask, found.box, title)
        save_figure(figure, OUT / f"segmentation-{name}.png")
        print(f"{title}: box {found.box}, {100 * found.mask.mean():.0f} % of the picture")


if __name__ == "__main__":
    main()
