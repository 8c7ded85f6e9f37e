"""Draw the README's pictures, docs/images/gallery.png and counterfactuals.png: `make gallery`, about a minute."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from PIL import Image
from torch import Tensor

import backlight
from backlight.data import sample_image
from backlight.methods import method
from backlight.methods.perturbation import Counterfactual, Perturbation
from backlight.models import LoadedModel
from backlight.viz.figures import COLOURS, Sheet, draw_bare_map, draw_image, draw_trajectories, save_figure

MODEL = "efficientnet_lite0"
METHODS = ("Saliency", "IntegratedGradients", "SmoothGrad", "GuidedBackprop", "SoftPullback", "PullbackAscent")
PHOTOGRAPHS = {"chelsea": "tiger", "coffee": "pizza", "rocket": "beacon", "astronaut": "lab coat"}  # and counterfactual
IMAGES = Path(__file__).resolve().parents[1] / "docs" / "images"
DPI = 150
SIDE = 224 / DPI  # inches: a pixel of a picture is a pixel of the figure
GAP, HEAD, CELL = 0.12, 0.32, SIDE + 0.34


def inputs(loaded: LoadedModel, name: str) -> Tensor:
    """A photograph as the network sees it, in [-1, 1]."""
    return (2 * loaded.preprocessing.image(sample_image(name)) - 1)[None]


def caption(sheet: Sheet, row: int, column: int, text: str) -> None:
    """A line below a panel."""
    sheet.text(left(column), HEAD + row * CELL + SIDE + 0.12, text, fontsize=7.5)


def panel(sheet: Sheet, row: int, column: int) -> Axes:
    """A square for a picture or a map."""
    return sheet.axes(left(column), HEAD + row * CELL, SIDE, SIDE)


def left(column: int) -> float:
    """Where a column begins, in inches."""
    return 0.1 + column * (SIDE + GAP)


def gallery(loaded: LoadedModel) -> tuple[Sheet, list[Tensor]]:
    """Photographs by methods; every map explains the class that the network predicts. Also the photographs."""
    sheet = Sheet(left(len(METHODS) + 1), HEAD + len(PHOTOGRAPHS) * CELL + 0.3)
    network, shown = loaded.pixels(), []
    for column, name in enumerate(("input", *METHODS)):
        sheet.text(left(column), HEAD - 0.12, name, fontsize=9, fontweight="bold")
    for row, name in enumerate(PHOTOGRAPHS):
        x = inputs(loaded, name)
        shown.append(x[0])
        chances = network(x).detach().softmax(1)[0]
        index = int(chances.argmax())
        draw_image(panel(sheet, row, 0), x[0])
        caption(sheet, row, 0, f"{loaded.classes.name(index)}, {100 * float(chances[index]):.0f} %")
        for column, label in enumerate(METHODS, 1):
            attribution = method(label)(network).attribute(x, target=index, internal_batch_size=10)[0]
            scale = draw_bare_map(panel(sheet, row, column), attribution)
            caption(sheet, row, column, f"± {scale:.2g}")
    _key(sheet, HEAD + len(PHOTOGRAPHS) * CELL)
    return sheet, shown


def _key(sheet: Sheet, top: float) -> None:
    """One colour bar for all maps."""
    axes = sheet.axes(left(1), top + 0.02, 2 * SIDE, 0.09)
    axes.imshow([[step / 128 - 1 for step in range(257)]], cmap=COLOURS, vmin=-1, vmax=1, aspect="auto")
    axes.set(yticks=[], xticks=[0, 128, 256])
    axes.set_xticklabels(["−", "0", "+"])
    axes.tick_params(labelsize=8, length=2, pad=1)
    note = "blue: against the class, red: for it; each map has its own scale, written below it"
    sheet.text(left(1) + 2 * SIDE + GAP, top + 0.07, note, fontsize=8)


def counterfactuals(loaded: LoadedModel) -> tuple[Sheet, list[Tensor]]:
    """Each photograph toward another class, along the soft pullback and along the gradient. Also the images shown."""
    titles = ("input", "along the pullback", "difference", "along the gradient", "difference")
    sheet = Sheet(left(len(titles)) + 2.75, HEAD + len(PHOTOGRAPHS) * CELL + 0.12)
    shown: list[Tensor] = []
    for column, title in enumerate(titles):
        sheet.text(left(column), HEAD - 0.12, title, fontsize=9, fontweight="bold")
    for row, (name, goal) in enumerate(PHOTOGRAPHS.items()):
        x, target = inputs(loaded, name), loaded.classes.index(goal)
        shown.append(x[0])
        draw_image(panel(sheet, row, 0), x[0])
        caption(sheet, row, 0, f"{name}, toward {goal}")
        curves = {}
        for column, along in ((1, "pullback"), (3, "gradient")):
            found = Counterfactual(loaded.pixels(), along=along).perturb(x, target)
            _draw_perturbed(sheet, row, column, found, goal)
            shown.append(found.image[0])
            curves[along] = found.probabilities[:, 0].tolist()
        axes = sheet.axes(left(len(titles)) + 0.5, HEAD + row * CELL, 2.1, SIDE - 0.02)
        draw_trajectories(axes, curves, legend=row == 0)
        axes.set_ylabel(f"p({goal})", fontsize=8)
        axes.set_xlabel("step" if row == len(PHOTOGRAPHS) - 1 else "", fontsize=8, labelpad=1)
    return sheet, shown


def _draw_perturbed(sheet: Sheet, row: int, column: int, found: Perturbation, goal: str) -> None:
    draw_image(panel(sheet, row, column), found.image[0])
    caption(sheet, row, column, f"{goal}, {100 * float(found.probabilities[-1, 0]):.0f} %")
    scale = draw_bare_map(panel(sheet, row, column + 1), found.difference[0])
    caption(sheet, row, column + 1, f"± {scale:.2g}, l2 norm {float(found.difference.norm()):.0f}")


def save(drawn: tuple[Sheet, list[Tensor]], path: Path) -> None:
    """Save with a palette of 256: maps are noise to the PNG compressor. Most colours go to the photographs."""
    sheet, photographs = drawn
    save_figure(sheet.figure, path, dpi=DPI)
    strip = ((torch.cat(photographs, dim=1) + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).numpy()
    palette = Image.fromarray(strip).quantize(216, method=Image.Quantize.MEDIANCUT).getpalette()[: 216 * 3]
    ramp = matplotlib.colormaps[COLOURS](np.linspace(0, 1, 33))[:, :3]
    grey = np.linspace(0, 1, 7)[:, None].repeat(3, 1)
    palette += (np.concatenate([ramp, grey]) * 255).round().astype(int).flatten().tolist()
    triples = [palette[start : start + 3] for start in range(0, len(palette), 3)]
    paper = [[255] * 3 if min(triple) > 248 else triple for triple in triples]  # nearly white paper looks dirty
    reference = Image.new("P", (1, 1))
    reference.putpalette([value for triple in paper for value in triple])
    with Image.open(path) as image:
        small = image.convert("RGB").quantize(palette=reference, dither=Image.Dither.NONE)
    small.save(path, optimize=True)
    print(f"{path.relative_to(IMAGES.parents[1])}: {path.stat().st_size // 1000} kB")


if __name__ == "__main__":
    IMAGES.mkdir(parents=True, exist_ok=True)
    network = backlight.load(MODEL)
    save(gallery(network), IMAGES / "gallery.png")
    save(counterfactuals(network), IMAGES / "counterfactuals.png")
