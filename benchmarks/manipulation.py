"""How far explanations are moved by the manipulation attack: methods x pairs of photographs.

    python benchmarks/manipulation.py [--photographs FOLDER] [--model efficientnet_lite0] [--weights FILE]
        [--size 128] [--pairs 2] [--n-steps 100] [--preset paper] [--methods Saliency ...] [--out FILE]

Each photograph of a pair is explained for its own largest logit; the first is changed until its map is that of the
second. Without a folder the sample photographs are taken. Columns, means over pairs:

- `moved`: PCC and SSIM of the maps before and after, low where the attack succeeds; `noise`: the same PCC where the
  image is changed by Gaussian noise of the same mean square;
- `reached`: of the map after and the one aimed at, high where it succeeds; `apart`: of the latter and the map before;
  `closed`: the share of that gap in PCC that was closed;
- the largest change of a channel in 1/255, the mean squared change in units of the input, the largest change of a
  logit, the probability of the class before and after, whether it is still the largest, steps, seconds a step.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import backlight
from backlight.benchmarks.manipulation import COLUMNS, row, under_noise
from backlight.data import read_image, sample_image
from backlight.methods import method
from backlight.robustness import PRESETS, manipulate

METHODS: dict[str, dict[str, Any]] = {
    "Saliency": {},
    "InputXGradient": {},
    "GuidedBackprop": {},
    "IntegratedGradients": {"n_steps": 4},
    "Pullback": {},
    "SoftPullback": {},
    "SRD": {},
}
SAMPLES = ["chelsea", "coffee", "rocket", "astronaut", "coffee", "chelsea", "astronaut", "rocket"]


def pictures(folder: Path | None, count: int) -> list[Any]:
    """That many photographs: the folder's first by name, or samples."""
    if folder is None:
        if count > len(SAMPLES):
            raise SystemExit(f"{len(SAMPLES) // 2} pairs of sample photographs are at hand: --photographs FOLDER")
        return [sample_image(name) for name in SAMPLES[:count]]
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    if len(files) < count:
        raise SystemExit(f"{folder} has {len(files)} photographs, {count} are needed")
    return [read_image(path) for path in files[:count]]


def table(rows: dict[str, list[dict[str, float]]]) -> str:
    """Means over pairs, as Markdown."""
    lines = [f"| method | {' | '.join(COLUMNS)} |", "|---" * (len(COLUMNS) + 1) + "|"]
    for name, found in rows.items():
        means = [sum(figures[column] for figures in found) / len(found) for column in COLUMNS]
        lines.append(f"| {name} | {' | '.join(f'{mean:.3g}' for mean in means)} |")
    return "\n".join(lines)


def attack_pair(name: str, loaded: Any, x: Tensor, other: Tensor, settings: dict[str, Any]) -> dict[str, float]:
    """One method on one pair."""
    start = time.perf_counter()
    explainer = method(name)(loaded.model, **METHODS.get(name, {}))
    found = manipulate(explainer, x, other, preprocessing=loaded.preprocessing, **settings)
    seconds = (time.perf_counter() - start) / int(found.steps.max())
    return row(found, under_noise(explainer, found), seconds)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photographs", type=Path)
    parser.add_argument("--model", default="efficientnet_lite0")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--pairs", type=int, default=2)
    parser.add_argument("--n-steps", type=int, default=100)
    parser.add_argument("--preset", choices=PRESETS, default="paper")
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    loaded = backlight.load(options.model, weights=options.weights)
    side = (options.size, options.size)
    loaded = replace(loaded, preprocessing=replace(loaded.preprocessing, size=side, resize=side))
    x = torch.stack([loaded.preprocessing.tensor(p) for p in pictures(options.photographs, 2 * options.pairs)])
    rows: dict[str, list[dict[str, float]]] = {}
    for name in options.methods:
        for pair in range(options.pairs):
            figures = attack_pair(
                name, loaded, x[2 * pair : 2 * pair + 1], x[2 * pair + 1 : 2 * pair + 2],
                {"preset": options.preset, "n_steps": options.n_steps},
            )  # fmt: skip
            rows.setdefault(name, []).append(figures)
        print(table({name: rows[name]}).splitlines()[-1], flush=True)
        if options.out is not None:
            options.out.write_text(json.dumps({"options": {k: str(v) for k, v in vars(options).items()}, "rows": rows}))
    print(table(rows))


if __name__ == "__main__":
    main()
