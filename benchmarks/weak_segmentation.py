"""Masks from image labels: weak segmentation by several attributions on COCO photographs, against boxes.

    python benchmarks/weak_segmentation.py --data FOLDER [--model efficientnet_lite0] [--out FILE]

FOLDER holds `images/*.jpg` and `masks/*.png` (a COCO category a pixel). A photograph counts where a category with
ImageNet classes covers 2 % to 70 % of it; the largest such category is the object. Explained is the class of that
category with the largest logit. The network sees the whole photograph, squashed to its input; masks are compared at the
photograph's own size, by intersection over union with all pixels of the category.

The baseline is a centred box of one and the same fraction of height and width, for all photographs the best of 100
fractions: it is chosen with the masks, which no method sees.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import backlight
from backlight.errors import BacklightError
from backlight.methods import method
from backlight.methods.weak_segmentation import quantile_seeds, saliency_map, weak_segmentation


def numbers(text: str) -> list[int]:
    """`7-24 80` as a list."""
    parts = (part.partition("-") for part in text.split())
    return [index for first, _, last in parts for index in range(int(first), int(last or first) + 1)]


# COCO category -> ImageNet classes that are kinds of it
CLASSES = {
    2: "444 671",  # bicycle
    3: "407 436 468 511 627 656 661 705 734 751 817",  # car
    4: "665 670",  # motorcycle
    5: "404 895",  # airplane
    6: "654 779 874",  # bus
    7: "466 547 705 820 829",  # train
    8: "555 569 675 717 864 867",  # truck
    9: "472 484 510 554 576 625 780 814 914",  # boat
    10: "920",  # traffic light
    13: "919",  # stop sign
    15: "703",  # bench
    16: "7-24 80-100 127-146",  # bird
    17: "281-285",  # cat
    18: "151-268",  # dog
    19: "339",  # horse
    20: "348 349",  # sheep
    22: "101 385 386",  # elephant
    23: "294-297",  # bear
    24: "340",  # zebra
    28: "879",  # umbrella
    35: "795",  # skis
    43: "752",  # tennis racket
    44: "440 720 737 898 907",  # bottle
    47: "504 968",  # cup
    51: "659 809",  # bowl
    52: "954",  # banana
    53: "948",  # apple
    55: "950",  # orange
    56: "937",  # broccoli
    58: "934",  # hot dog
    59: "963",  # pizza
    62: "423 559 765",  # chair
    63: "831",  # couch
    64: "738",  # potted plant
    65: "564",  # bed
    67: "532",  # dining table
    70: "861",  # toilet
    72: "664 782 851",  # tv
    73: "620 681",  # laptop
    75: "761",  # remote
    76: "508",  # keyboard
    77: "487",  # cell phone
    78: "651",  # microwave
    82: "760",  # refrigerator
    85: "409 530 892",  # clock
    86: "883",  # vase
    88: "850",  # teddy bear
}
CATEGORIES = {category: numbers(text) for category, text in CLASSES.items()}
EXPLAINERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ClassSaliency": ("ClassSaliency", {}),
    "ClassSaliency, crops": ("ClassSaliency", {"crops": True}),
    "SoftPullback": ("SoftPullback", {}),
    "GuidedBackprop": ("GuidedBackprop", {}),
    "GradCAM": ("GradCAM", {}),
    "SRD": ("SRD", {}),
}


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two masks."""
    return float((a & b).sum() / max(int((a | b).sum()), 1))


def photographs(folder: Path) -> Iterable[tuple[Path, np.ndarray, int]]:
    """(file, mask of the object, its category) of every photograph that counts."""
    for path in sorted((folder / "images").glob("*.jpg")):
        labels = np.asarray(Image.open(folder / "masks" / f"{path.stem}.png"))
        shares = {category: float((labels == category).mean()) for category in CATEGORIES}
        best = max(shares, key=lambda category: shares[category])
        if 0.02 <= shares[best] <= 0.7:
            yield path, labels == best, best


def best_box(masks: list[np.ndarray]) -> tuple[float, list[float]]:
    """The fraction of the best centred box, and its overlaps."""
    found = []
    for fraction in np.arange(1, 101) / 100:
        overlaps = []
        for mask in masks:
            height, width = mask.shape
            h, w = round(fraction * height), round(fraction * width)
            box = np.zeros_like(mask)
            box[(height - h) // 2 : (height - h) // 2 + h, (width - w) // 2 : (width - w) // 2 + w] = True
            overlaps.append(overlap(box, mask))
        found.append((float(np.mean(overlaps)), float(fraction), overlaps))
    _, fraction, overlaps = max(found)
    return fraction, overlaps


def explained(loaded: Any, path: Path, category: int) -> tuple[Tensor, int, bool]:
    """(input, class, whether a class of the category is among the five largest logits)."""
    size = loaded.preprocessing.size
    x = replace(loaded.preprocessing, resize=size, fit="squash", crop_square=False).tensor(path)[None]
    with torch.no_grad():
        logits = loaded.model(x)[0]
    classes = CATEGORIES[category]
    return x, classes[int(logits[classes].argmax())], bool(set(classes) & set(logits.topk(5).indices.tolist()))


def main() -> None:
    """Measure, print a table, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default="efficientnet_lite0")
    parser.add_argument("--variants", action="store_true", help="also five cuts, fixed seeds, and the seeds alone")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    loaded = backlight.load(arguments.model)
    chosen = list(photographs(arguments.data))[: arguments.limit]
    masks = [mask for _, mask, _ in chosen]
    fraction, boxes = best_box(masks)
    columns: dict[str, list[float]] = {f"centred box of {fraction:.2f}": boxes}
    seen, start = [], time.perf_counter()
    for path, mask, category in chosen:
        x, target, top5 = explained(loaded, path, category)
        seen.append(top5)
        for label, explainer in EXPLAINERS.items():
            found = measured(loaded, explainer, x, target, (path, mask), arguments.variants)
            for kind, value in found.items():
                columns.setdefault(label + kind, []).append(value)
    report(columns, np.array(seen), time.perf_counter() - start, arguments)


def measured(
    loaded: Any,
    explainer: tuple[str, dict[str, Any]],
    x: Tensor,
    target: int,
    photograph: tuple[Path, np.ndarray],
    variants: bool,
) -> dict[str, float]:
    """Overlaps by variant; a map that cannot be segmented by has none: 0."""
    (name, settings), (path, mask) = explainer, photograph
    value = method(name)(loaded.model, **settings).attribute(x, target, internal_batch_size=10)[0]
    found: dict[str, float] = {}
    kinds: dict[str, dict[str, Any]] = {"": {}}
    if variants:
        kinds |= {", five cuts": {"n_iterations": 5}, ", fixed seeds": {"fixed_seeds": True}}
        found[", seeds alone"] = overlap(quantile_seeds(saliency_map(value, mask.shape)) > 0, mask)
    for kind, change in kinds.items():
        try:
            found[kind] = overlap(weak_segmentation(path, value, **change).mask, mask)
        except BacklightError:
            found[kind] = 0.0
    return found


def report(columns: dict[str, list[float]], seen: np.ndarray, seconds: float, arguments: argparse.Namespace) -> None:
    """The table: mean overlap with its standard error, the same of the paired difference to the box, and the mean over
    the photographs with a class of the category in the top five."""
    counts = f"n = {len(seen)}, of which {int(seen.sum())} have a class of the category in the top five"
    print(f"{arguments.model}: {counts}; {seconds:.0f} s")
    box = np.array(next(iter(columns.values())))
    for label, overlaps in sorted(columns.items(), key=lambda item: -np.mean(item[1])):
        values = np.array(overlaps)
        more, top = described(values - box), values[seen].mean()
        print(f"{label:36s} {described(values)}   less the box {more}   top five {top:.3f}")
    if arguments.out:
        arguments.out.write_text(json.dumps({"overlaps": columns, "top_five": seen.tolist()}, indent=2))


def described(values: np.ndarray) -> str:
    """The mean and its standard error."""
    return f"{values.mean():+.3f} ± {values.std(ddof=1) / np.sqrt(len(values)):.3f}"


if __name__ == "__main__":
    main()
