"""Where is the evidence for a class, and what is a feature vector made of? SRD beside other methods.

    python examples/evidence.py                                # a cat, a cat beside a cup of coffee, receptive fields
    python examples/evidence.py --left CAT.jpg --left-class tabby --right DOG.jpg --right-class "bull mastiff"
    python examples/evidence.py --numbers                      # what SRD does to the cat, in numbers
    python examples/evidence.py --photographs FOLDER --pairs 20       # a table; FOLDER has labels.csv: file,class_index

Draws to out/: evidence-MODEL-chelsea.png and evidence-MODEL-pair.png, rows are classes and columns methods, and
ierf-MODEL.png, the effective receptive fields of four positions and a channel at four depths. All maps are signed,
summed over colours; bilinear where they are coarser than the picture. The two pictures of a pair stand side by side,
each as large as the network sees it alone: the networks take inputs of any size.
"""

from __future__ import annotations

import argparse
import copy
import csv
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from matplotlib import colormaps
from PIL import Image
from torch import Tensor

import backlight
from backlight.data import Preprocessing, read_image, sample_image
from backlight.methods import Method, method
from backlight.methods.sharing_operator import SharingOperator
from backlight.methods.srd import SRD
from backlight.models import LoadedModel
from backlight.viz import save_figure
from backlight.viz.figures import COLOURS, EDGE, GAP, HEAD, Sheet, draw_image, draw_map

MODELS = ("efficientnet_lite0", "mobilenet_v2")
Explainer = Callable[[torch.nn.Module], Method]
FIGURE: dict[str, Explainer] = {
    "SRD, input": SRD,
    "SRD, high": partial(SRD, resolution="high"),
    "SRD, low": partial(SRD, resolution="low"),
    "SRD, input, raw head": partial(SRD, head="raw"),
    "GradCAM": method("GradCAM"),
    "IntegratedGradients": method("IntegratedGradients"),
    "GuidedBackprop": method("GuidedBackprop"),
}
TABLE: dict[str, Explainer] = {
    **FIGURE,
    "SRD, input, mean head": partial(SRD, head="mean"),
    "Saliency": method("Saliency"),
    "ClassSaliency": method("ClassSaliency"),
    "SoftPullback": method("SoftPullback"),
}
PLACES = {"eye": (78, 67), "nose": (190, 147), "ear": (22, 216), "background": (160, 217)}  # pixels of chelsea
DPI = 150
SIDE, BAR = 224 / DPI, 0.52  # inches: a pixel of a map is a pixel of the figure


def main() -> None:
    """Draw the figures, or print the table."""
    options = _options()
    for name in options.model or MODELS:
        loaded = backlight.load(name)
        if options.numbers:
            print(name)
            numbers(loaded)
        if options.numbers or options.photographs is not None:
            continue
        options.out.mkdir(parents=True, exist_ok=True)
        x = loaded.preprocessing.tensor(sample_image("chelsea"))[None]
        best = loaded.classes.name(int(loaded.model(x).argmax()))
        cats = dict.fromkeys((best, "Egyptian cat", "tabby"))
        save(evidence(loaded, x, list(cats)), options.out / f"evidence-{name}-chelsea.png", options.width)
        left, right = (
            read_image(path) if path else sample_image(own)
            for path, own in ((options.left, "chelsea"), (options.right, "coffee"))
        )
        x = beside(loaded.preprocessing.tensor(left), loaded.preprocessing.tensor(right))
        sheet = evidence(loaded, x, [options.left_class, options.right_class])
        save(sheet, options.out / f"evidence-{name}-pair.png", options.width)
        save(fields(loaded), options.out / f"ierf-{name}.png", options.width)
    if options.photographs is not None:
        table([backlight.load(name) for name in options.model or MODELS], options.photographs, options.pairs)


def save(sheet: Sheet, path: Path, width: int) -> None:
    """Save, at most so wide, with a palette: maps are noise to the PNG compressor."""
    save_figure(sheet.figure, path, dpi=DPI)
    with Image.open(path) as image:
        drawn = image.convert("RGB")
    if drawn.width > width:
        drawn = drawn.resize((width, drawn.height * width // drawn.width), Image.Resampling.LANCZOS)
    reference = Image.new("P", (1, 1))
    reference.putpalette(palette())
    drawn.quantize(palette=reference, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"{path}: {path.stat().st_size // 1000} kB")


def palette() -> list[int]:
    """The maps' colours, greys, and what is left for photographs: a grid of the colours of fur, wood and grass."""
    ramp = colormaps[COLOURS](np.linspace(0, 1, 49))[:, :3]
    grey = np.linspace(0, 1, 15)[:, None].repeat(3, 1)
    luma, warm, green = np.meshgrid(np.linspace(0.04, 0.95, 12), np.linspace(-0.06, 0.3, 4), np.linspace(-0.06, 0.1, 4))
    grid = np.stack([luma + warm, luma + green, luma - warm], -1).reshape(-1, 3)
    return [int(value) for value in (np.concatenate([ramp, grey, grid]).clip(0, 1) * 255).round().flatten()]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", nargs="*", help=f"by default {' '.join(MODELS)}")
    parser.add_argument("--left", type=Path, help="a picture; by default the cat")
    parser.add_argument("--right", type=Path, help="a picture; by default the cup of coffee")
    parser.add_argument("--left-class", default="tiger cat")
    parser.add_argument("--right-class", default="espresso")
    parser.add_argument("--photographs", type=Path, help="a folder with labels.csv: print the table, draw nothing")
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--numbers", action="store_true", help="print the facts of docs/srd.md, draw nothing")
    parser.add_argument("--width", type=int, default=10_000, help="of the figures, at most")
    parser.add_argument("--out", type=Path, default=Path("out"))
    return parser.parse_args()


# maps of classes


def evidence(loaded: LoadedModel, x: Tensor, names: list[str]) -> Sheet:
    """Classes by methods, in one line or several. Also prints what the network says of the classes."""
    height, width = x.shape[2:]
    wide, across = SIDE * width / height, (len(FIGURE) + 1) * height // width
    lines = -(-(len(FIGURE) + 1) // across)
    sheet = Sheet(EDGE + across * (wide + GAP), HEAD + len(names) * lines * (SIDE + BAR))
    for number, name in enumerate(names):
        said = standing(loaded, x, name)
        print(f"{loaded.name}, {name}: {said}")
        top = HEAD + number * lines * (SIDE + BAR)
        draw_image(sheet.axes(EDGE, top, wide, SIDE), 2 * loaded.preprocessing.denormalise(x[0]) - 1)
        for line, text in enumerate((name, said)):
            sheet.text(EDGE, top + SIDE + 0.1 + 0.14 * line, text, fontsize=7)
        for place, (label, explainer) in enumerate(FIGURE.items(), 1):
            line, column = divmod(place, across)
            found = _attribution(explainer, loaded, x, loaded.classes.index(name))
            left, above = EDGE + column * (wide + GAP), top + line * (SIDE + BAR)
            draw_map(sheet, left, above, SIDE, found[0], (0.0, float(width), float(height), 0.0), wide)
            sheet.text(left, above - 0.09, label, fontsize=8)
    sheet.title(loaded.name)
    return sheet


def standing(loaded: LoadedModel, x: Tensor, name: str) -> str:
    """A class's logit, probability and rank."""
    with torch.no_grad():
        logits = loaded.model(x)[0]
    index = loaded.classes.index(name)
    rank = 1 + int((logits > logits[index]).sum())
    return f"logit {logits[index]:.2f}, {logits.softmax(0)[index]:.1%}, rank {rank}"


def _attribution(explainer: Explainer, loaded: LoadedModel, x: Tensor, index: int) -> Tensor:
    found = explainer(loaded.model).attribute(x, target=index, internal_batch_size=10)
    assert isinstance(found, Tensor)
    return found.sum(1, keepdim=True)


def beside(left: Tensor, right: Tensor) -> Tensor:
    """Two inputs `[3, H, W]` as one, `[1, 3, H, 2 W]`."""
    return torch.cat((left, right), 2)[None]


# receptive fields


def fields(loaded: LoadedModel) -> Sheet:
    """Depths by positions, and the field of the channel that stands out most on the eye. Also prints their extent.

    The maps of positions show the part of the picture where some field of the line is not zero.
    """
    x = loaded.preprocessing.tensor(sample_image("chelsea"))[None]
    operator = SRD(loaded.model).prepare(x)
    layers = depths(operator)
    sheet = Sheet(EDGE + (len(PLACES) + 2) * (SIDE + GAP), HEAD + len(layers) * (SIDE + BAR))
    for row, layer in enumerate(layers):
        top, size = HEAD + row * (SIDE + BAR), operator.size(layer)
        cells = [cell(place, size) for place in PLACES.values()]
        channel = _outstanding(loaded, layer, x, cells[0])
        found = torch.cat((operator.ierf(layer, cells), operator.ierf(layer, channel=channel)), 1)[0]
        reach = max(map(breadth, found[:-1]))
        draw_image(sheet.axes(EDGE, top, SIDE, SIDE), 2 * loaded.preprocessing.denormalise(x[0]) - 1)
        sheet.text(EDGE, top + SIDE + 0.1, f"{layer}, {size[0]} x {size[1]}", fontsize=7)
        sheet.text(EDGE, top + SIDE + 0.24, f"its fields: {reach} x {reach} pixels", fontsize=7)
        for column, (field, title) in enumerate(zip(found, [*PLACES, f"channel {channel}"], strict=True)):
            left = EDGE + (column + 1) * (SIDE + GAP)
            place = None if column == len(cells) else cells[column]
            _draw_field(sheet, left, top, field, place, size, reach)
            sheet.text(left, top - 0.09, title, fontsize=8)
            print(f"{loaded.name} {layer} {title}: {extent(field)}")
    sheet.title(f"{loaded.name}: effective receptive fields; framed: the position")
    return sheet


def _draw_field(
    sheet: Sheet, left: float, top: float, field: Tensor, at: tuple[int, int] | None, size: tuple[int, ...], reach: int
) -> None:
    """A field; of a position, the window of `reach` pixels around it, with the position framed."""
    whole = len(field)
    if at is None:
        draw_map(sheet, left, top, SIDE, field, (0.0, float(whole), float(whole), 0.0))
        return
    cells = [whole // count for count in size]
    first, second = (
        min(max(place * step + step // 2 - reach // 2, 0), whole - reach) for place, step in zip(at, cells, strict=True)
    )
    shown = field[first : first + reach, second : second + reach]
    frame = (float(second), float(second + reach), float(first + reach), float(first))
    axes = draw_map(sheet, left, top, SIDE, shown, frame)
    up, before = at[0] * cells[0], at[1] * cells[1]
    down, behind = up + cells[0], before + cells[1]
    axes.plot((before, behind, behind, before, before), (up, up, down, down, up), color="black", linewidth=0.8)


def depths(operator: SharingOperator) -> list[str]:
    """The last layer of each of the four coarsest sizes."""
    last = {operator.size(name): name for name in operator.names if name not in ("input", "@features", "low")}
    return list(last.values())[-4:]


def cell(pixel: tuple[int, int], size: tuple[int, ...], whole: int = 224) -> tuple[int, int]:
    """The position of a layer of this size above a pixel."""
    return pixel[0] * size[0] // whole, pixel[1] * size[1] // whole


def breadth(field: Tensor) -> int:
    """The side of the square that holds all of a field that is not zero."""
    rows, columns = (torch.nonzero((field != 0).any(axis)) for axis in (1, 0))
    return max(int(found.max() - found.min()) + 1 for found in (rows, columns))


def extent(field: Tensor) -> str:
    """How far a field reaches: the radius around its centre that holds half of what is positive; what is negative."""
    positive = field.clamp(min=0)
    rows, columns = torch.meshgrid(*(torch.arange(n, dtype=field.dtype) for n in field.shape), indexing="ij")
    row, column = ((positive * at).sum() / positive.sum() for at in (rows, columns))
    distance, order = ((rows - row) ** 2 + (columns - column) ** 2).sqrt().flatten().sort()
    held = positive.flatten()[order].cumsum(0) / positive.sum()
    half = float(distance[int((held < 0.5).sum())])
    negative = float(field.clamp(max=0).abs().sum() / field.abs().sum())
    centre = f"({row:.0f}, {column:.0f})"
    return f"sum {float(field.sum()):.4f}, half within {half:.0f} px of {centre}, {negative:.1%} negative"


def _outstanding(loaded: LoadedModel, layer: str, x: Tensor, at: tuple[int, int]) -> int:
    """The channel that is largest at a position, compared with its mean."""
    with torch.no_grad(), backlight.captured(loaded.model, [layer]) as store:
        loaded.model(x)
    values = store[layer][0]
    return int((values[:, at[0], at[1]] / (values.mean((1, 2)) + values.mean())).argmax())


# what SRD does, in numbers


def numbers(loaded: LoadedModel) -> None:
    """The two forms, biases, cancellation, the grid, and the class, on the cat."""
    x = loaded.preprocessing.tensor(sample_image("chelsea"))[None]
    index = int(loaded.model(x).argmax())
    exact, tench = (_attribution(SRD, loaded, x, target) for target in (index, 0))
    for bias in ("uniform", "drop"):
        found = _attribution(partial(SRD, bias=bias), loaded, x, index)
        print(f"{bias}: sum {float(found.sum()):.3f} of {float(exact.sum()):.3f}, "
              f"correlation {alike(found, exact):.2f}")  # fmt: skip
    negative = float(exact.clamp(max=0).abs().sum() / exact.abs().sum())
    print(f"tench: correlation {alike(tench, exact):.2f}; {negative:.1%} of the predicted class's map is negative")
    operator, dropped = SRD(loaded.model).prepare(x), SRD(loaded.model, bias="drop").prepare(x)
    high = operator.relevance(operator.seed(index), "high")[0]
    print("grid at high:", [round(float(high[a::2, b::2].mean() / high.mean()), 2) for a in (0, 1) for b in (0, 1)])
    for name in operator.names:
        if name not in ("input", "@features", "low"):
            mean, share = operator.cancellation(name).mean(), dropped.leak(name).median()
            print(f"  {name}: sum |ratio| {float(mean):.2f} on average, the bias's share {float(share):.2f} (median)")
    double = replace(loaded, model=copy.deepcopy(loaded.model).double())
    operator = SRD(double.model).prepare(x.double())
    stencils, rules = operator.relevance(operator.seed(index)), _attribution(SRD, double, x.double(), index)[:, 0]
    off = float((operator.ierf("low").sum((2, 3)) - 1).abs().max())
    apart = float((stencils - rules).abs().max() / rules.abs().max())
    print(f"float64: forms {apart:.1e} apart, fields sum to 1 within {off:.1e}")


def alike(one: Tensor, other: Tensor) -> float:
    """The correlation of two maps."""
    return float(torch.corrcoef(torch.stack((one.flatten(), other.flatten())))[0, 1])


# two pictures side by side, in numbers


def table(networks: list[LoadedModel], folder: Path, count: int) -> None:
    """How much of what is positive lies in the half of the class, and whether the largest value does.

    The grid pointing game's localisation (Boehle et al. 2021) on grids of two. A map that knows nothing of the class
    has the mean share 0.5: what one class gains the other loses.
    """
    labelled = _right_for_all(networks, folder)
    chosen = pairs(labelled, count)
    print(f"{len(labelled)} photographs that all networks name rightly; {len(chosen)} pairs of different classes")
    for loaded in networks:
        found: dict[str, list[tuple[float, bool]]] = {label: [] for label in TABLE}
        ranks = []
        for files in chosen:
            x = beside(*(loaded.preprocessing.tensor(folder / file) for file in files))
            with torch.no_grad():
                order = loaded.model(x)[0].argsort(descending=True).tolist()
            for half, file in enumerate(files):
                ranks.append(1 + order.index(labelled[file]))
                for label, explainer in TABLE.items():
                    attribution = _attribution(explainer, loaded, x, labelled[file])
                    found[label].append(localisation(attribution[0, 0], half))
        print(f"\n{loaded.name}: ranks of the classes in the pairs: median {sorted(ranks)[len(ranks) // 2]}, "
              f"in the first five {sum(rank <= 5 for rank in ranks) / len(ranks):.0%}")  # fmt: skip
        print("| method | share in the right half | standard error | largest value in it |\n|---|---|---|---|")
        for label, results in found.items():
            shares = torch.tensor([share for share, _ in results])
            print(f"| {label} | {shares.mean():.3f} | {shares.std() / len(shares) ** 0.5:.3f} | "
                  f"{sum(hit for _, hit in results) / len(results):.2f} |")  # fmt: skip


def localisation(attribution: Tensor, half: int) -> tuple[float, bool]:
    """(the share of what is positive in the left, 0, or right, 1, half; whether the largest value lies there)."""
    middle = attribution.shape[1] // 2
    inside = attribution[:, middle:] if half else attribution[:, :middle]
    total = float(attribution.clamp(min=0).sum())
    share = float(inside.clamp(min=0).sum()) / total if total else 0.0
    return share, bool(inside.max() == attribution.max())


def _right_for_all(networks: list[LoadedModel], folder: Path) -> dict[str, int]:
    with (folder / "labels.csv").open(newline="", encoding="utf-8") as rows:
        labels = {row["file"]: int(row["class_index"]) for row in csv.DictReader(rows)}
    right = set(labels)
    for loaded in networks:
        right &= {file for file, index in _predictions(loaded, folder, sorted(right)) if index == labels[file]}
    return {file: labels[file] for file in sorted(right)}


def _predictions(loaded: LoadedModel, folder: Path, files: list[str], batch: int = 20) -> Iterator[tuple[str, int]]:
    prepare: Preprocessing = loaded.preprocessing
    for start in range(0, len(files), batch):
        some = files[start : start + batch]
        with torch.no_grad():
            outputs = loaded.model(torch.stack([prepare.tensor(folder / file) for file in some]))
        yield from zip(some, outputs.argmax(1).tolist(), strict=True)


def pairs(labelled: dict[str, int], count: int, seed: int = 0) -> list[tuple[str, str]]:
    """Pairs of files of different classes, each file once."""
    files = sorted(labelled)
    random.Random(seed).shuffle(files)
    couples = zip(files[::2], files[1::2], strict=False)
    return [(a, b) for a, b in couples if labelled[a] != labelled[b]][:count]


if __name__ == "__main__":
    main()
