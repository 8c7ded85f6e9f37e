"""Draw docs/images/methods/METHOD.webp, one picture a method: `python docs/site/method_pictures.py [METHOD ...]`.

Most show a cat beside a cup of coffee, explained for each of the two: a map that answers for a class differs between
them. The methods that end in a picture show that picture; those for transformers explain DINOv2-S.
"""

from __future__ import annotations

import copy
import sys
from io import BytesIO
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

import backlight
from backlight.data import sample_image
from backlight.methods import METHODS, method
from backlight.methods.perturbation import Accentuation
from backlight.models import LoadedModel
from backlight.viz.figures import Sheet, draw_bare_map, draw_image

FOLDER = Path(__file__).resolve().parents[1] / "images" / "methods"
MODEL, TRANSFORMER = "efficientnet_lite0", "dinov2_small"
LEFT, RIGHT, GOAL = ("chelsea", "tiger cat"), ("coffee", "espresso"), "tiger"
SIDE = 160  # pixels of each half of the pair; a pixel of a map is a pixel of the picture
DPI = 150
GAP, EDGE, FOOT = 0.08, 0.04, 0.24  # inches
LARGEST = 60_000  # bytes
CHANGED = ("Accentuation", "Counterfactual")
FOR_TOKENS = ("AttnLRP", "CPLRP")


class SplitReLU6(nn.Module):
    """ReLU6 as relu(z) - relu(z - 6): the same function, of modules that Captum's DeepLIFT knows."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.ReLU(), nn.ReLU()

    def forward(self, z: Tensor) -> Tensor:
        return self.first(z) - self.second(z - 6)


def split(network: nn.Module) -> nn.Module:
    """A copy whose ReLU6 are sums of ReLUs."""
    network = copy.deepcopy(network)
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.ReLU6):
                setattr(module, name, SplitReLU6())
    return network


def channels(values: tuple[float, ...]) -> Tensor:
    """`[1, C, 1, 1]`."""
    return torch.tensor(values).view(1, -1, 1, 1)


def photograph(loaded: LoadedModel, name: str, side: int) -> Tensor:
    """A sample photograph in [-1, 1], `[1, 3, side, side]`."""
    x = (2 * loaded.preprocessing.image(sample_image(name)) - 1)[None]
    return F.interpolate(x, (side, side), mode="bilinear", antialias=True, align_corners=False)


def panels_of_pair(name: str) -> list[tuple[Tensor, str]]:
    """The pair, and its maps for each of the two classes."""
    loaded = backlight.load(MODEL)
    network: nn.Module = loaded.pixels()
    x = torch.cat([photograph(loaded, sample, SIDE) for sample, _ in (LEFT, RIGHT)], dim=3)
    panels = [(x[0], "input")]
    if name == "DeepLIFT":  # Captum refuses what is no module, the normalisation of `pixels()` too
        network, x = (
            split(loaded.model),
            ((x + 1) / 2 - channels(loaded.preprocessing.mean)) / channels(loaded.preprocessing.std),
        )
    for _, label in (LEFT, RIGHT):
        found = method(name)(network).attribute(x, loaded.classes.index(label), internal_batch_size=8)
        panels.append((found[0].detach(), f"for {label}"))
    return panels


def panels_of_change(name: str) -> list[tuple[Tensor, str]]:
    """A photograph, what the method makes of it, and the difference."""
    loaded = backlight.load(MODEL)
    x, target = photograph(loaded, LEFT[0], 224), loaded.classes.index(GOAL)
    kind = method(name)
    assert issubclass(kind, Accentuation)
    found = kind(loaded.pixels()).perturb(x, target)
    before, after = (100 * float(found.probabilities[step, 0]) for step in (0, -1))
    return [
        (x[0], f"input: {GOAL}, {before:.1f} %"),
        (found.image[0].detach(), f"toward {GOAL}: {after:.1f} %"),
        (found.difference[0].detach(), "difference"),
    ]


def panels_of_tokens(name: str) -> list[tuple[Tensor, str]]:
    """Two photographs, and what the length of their class token is made of."""
    loaded = backlight.load(TRANSFORMER)
    panels = []
    for sample, _ in (LEFT, RIGHT):
        x = photograph(loaded, sample, 224)
        found = method(name)(loaded.pixels()).attribute(x, lambda features: features.norm(dim=1))
        panels += [(x[0], "input"), (found[0].detach(), "class token")]
    return panels


def drawn(panels: list[tuple[Tensor, str]]) -> Sheet:
    """The panels in a row, each with its line below; maps have their scale there."""
    height = panels[0][0].shape[-2] / DPI
    widths = [panels[0][0].shape[-1] / DPI] * len(panels)
    sheet = Sheet(sum(widths) + GAP * (len(widths) - 1) + 2 * EDGE, height + EDGE + FOOT)
    left = EDGE
    for (values, caption), width in zip(panels, widths, strict=True):
        axes = sheet.axes(left, EDGE, width, height)
        if caption.startswith(("input", "toward")):
            draw_image(axes, values)
        else:
            caption += f", ± {draw_bare_map(axes, values):.2g}"
        axes.set_aspect("auto")
        sheet.text(left, EDGE + height + FOOT / 2, caption, fontsize=8)
        left += width + GAP
    return sheet


def save(sheet: Sheet, path: Path) -> None:
    """As WebP, at the highest quality that stays below the limit."""
    buffer = BytesIO()
    sheet.figure.savefig(buffer, format="png", dpi=DPI)
    picture = Image.open(buffer).convert("RGB")
    for quality in range(90, 20, -5):
        picture.save(path, quality=quality, method=6)
        if path.stat().st_size < LARGEST:
            break
    print(f"{path.name}: {path.stat().st_size // 1000} kB at quality {quality}", flush=True)


def draw(name: str) -> None:
    """One method's picture."""
    panels = {**dict.fromkeys(CHANGED, panels_of_change), **dict.fromkeys(FOR_TOKENS, panels_of_tokens)}
    save(drawn(panels.get(name, panels_of_pair)(name)), FOLDER / f"{name}.webp")


if __name__ == "__main__":
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name in sys.argv[1:] or METHODS:
        draw(name)
