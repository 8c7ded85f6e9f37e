"""Are the maps of modes faithful? Insertion less deletion on photographs, beside controls, of EfficientNet-Lite0.

    python benchmarks/contribution_map_faithfulness.py --data PICTURES --modes FOLDER [--images 24]

`PICTURES` holds labels.csv; `FOLDER` is what `backlight decompose` wrote of contributions on them. For each drawn
picture: the 3 top channels of the mode that correlates best with its label, their InputGrad map, 14 steps of patches,
both curves on the blurred picture, so that a map that orders nothing gets 0 on average. Means and standard errors over
pictures; and the difference of each map to the noise map on the same picture.
"""

from __future__ import annotations

import argparse

import torch

import backlight
from backlight.contributions import class_sets, map_faithfulness
from backlight.contributions.decomposed import open_decomposed
from backlight.data.labelled import LabelledFolder
from backlight.metrics import Deletion, Insertion


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--modes", required=True)
    parser.add_argument("--images", type=int, default=24)
    parser.add_argument("--by", default="ActGrad")
    given = parser.parse_args()
    torch.set_num_threads(1)
    loaded, decomposed = backlight.load("efficientnet_lite0"), open_decomposed(given.modes)
    pictures = LabelledFolder(given.data, loaded.classes, loaded.preprocessing)
    order = torch.randperm(len(pictures), generator=torch.Generator().manual_seed(0))[: given.images]
    curves = {"insertion": Insertion(canvas="blur", steps=14), "deletion": Deletion(canvas="blur", steps=14)}
    gains = []
    for number, place in enumerate(order.tolist(), 1):
        sample = pictures.load(pictures.names[place])
        x = loaded.preprocessing.normalise((sample.inputs[None] + 1) / 2)
        (chosen,) = class_sets(decomposed, sample.target, count=1)
        sets = [list(chosen.channels)]
        found = map_faithfulness(loaded.model, x, decomposed.site, sets, sample.target, by=given.by, draws=2, **curves)
        gains.append(torch.stack([found.gain(score)[:, 0, 0] for score in ("mode", "class")]))
        print(f"{number} of {len(order)}", flush=True)
    values = torch.stack(gains)
    against = values - values[:, :, -1:]
    for place, score in enumerate(("mode", "class")):
        print(f"score: {score}")
        for kind, name in enumerate(found.maps):
            cells = []
            for one in (values, against):
                mean, error = one[:, place, kind].mean(), one[:, place, kind].std() / len(one) ** 0.5
                cells.append(f"{mean:+.3f} ± {error:.3f}")
            print(f"  {name}: {cells[0]}; less noise {cells[1]}")


if __name__ == "__main__":
    main()
