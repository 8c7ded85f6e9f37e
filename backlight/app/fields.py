"""What one position of a hidden layer is made of: its instance-specific effective receptive field (iERF).

Convolutional networks: the sharing ratios of SRD, a field that sums to 1. Transformers: AttnLRP, patch by patch.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import nn

from backlight.app.computation import Watch
from backlight.app.predictions import grey_input, network_input
from backlight.engine.sites import FEATURES, INPUT, captured
from backlight.errors import BacklightError, InputError
from backlight.methods.srd import SRD
from backlight.methods.token_fields import TokenFields
from backlight.methods.token_layout import find_sites
from backlight.models import LoadedModel, PixelModel
from backlight.shapes import Float

FRONT = "network."  # what the front of pixels puts before a layer's name
OWN_NAMES = (INPUT, FEATURES, "low", "high")


@dataclass(frozen=True, eq=False)
class EffectiveField:
    """The field of one position: `values`, shares of the picture's pixels `[H, W]` or patches `[h, w]`, which sum to 1.

    `row`, `column`: of the position in the layer's grid. `words`: what else there is to say.
    """

    layer: str
    row: int
    column: int
    grid: tuple[int, int]
    values: Float[np.ndarray, "H W"]
    words: str


def has_tokens(model: nn.Module) -> bool:
    """Whether the network is a transformer whose patch tokens are known."""
    try:
        find_sites(model)
    except BacklightError:
        return False
    return True


def field_layers(loaded: LoadedModel, watch: Watch) -> dict[str, tuple[int, int]]:
    """The layers whose positions have fields, in the order of the forward pass, each with its grid (height, width).

    Raises:
        BacklightError: the network is neither convolutional, as SRD needs it, nor a transformer that is known.
    """
    x, front = grey_input(loaded), watch.front(loaded)
    if has_tokens(loaded.model):
        grid = TokenFields(front).layout(x)
        return dict.fromkeys(_token_layers(front, x, grid.prefix + grid.count), (grid.height, grid.width))
    operator = SRD(front).prepare(x)
    by_node: dict[int, str] = {}
    for name, node in operator.names.items():
        if name in OWN_NAMES or isinstance(front.get_submodule(name), nn.Identity):
            continue
        if len(name) < len(by_node.get(node, name + " ")):
            by_node[node] = name
    return {name.removeprefix(FRONT): operator.size(name) for _, name in sorted(by_node.items())}  # type: ignore[misc]


def effective_field(
    loaded: LoadedModel, picture: Image.Image | None, layer: str, row: int, column: int, watch: Watch
) -> EffectiveField:
    """The field of the position (row, column) of a layer's grid.

    Raises:
        BacklightError: a layer without fields, or a position outside its grid.
    """
    if not layer:
        raise InputError("choose a layer first")
    x, front = network_input(loaded, picture), watch.front(loaded)
    if has_tokens(loaded.model):
        return _token_field(front, x, layer, row, column)
    operator = SRD(front).prepare(x)
    height, width = operator.size(FRONT + layer)
    _check(layer, row, column, (height, width))
    values = operator.ierf(FRONT + layer, [(row, column)])[0, 0].detach()
    cancelled = float(values.clamp(max=0).sum().abs())
    words = f"shares of the pixels, which sum to {float(values.sum()):.3g}; negative ones to {-cancelled:.3g}"
    return EffectiveField(layer, row, column, (height, width), values.cpu().numpy(), words)


def position_at(x: float, y: float, size: tuple[int, int], grid: tuple[int, int]) -> tuple[int, int]:
    """(row, column) of the cell of a grid (height, width) at a pixel of a picture of a size (width, height)."""
    row, column = int(y / size[1] * grid[0]), int(x / size[0] * grid[1])
    return min(max(row, 0), grid[0] - 1), min(max(column, 0), grid[1] - 1)


def marked(picture: Image.Image, field: EffectiveField) -> Image.Image:
    """The picture with the field's cell outlined: white around black, so that it shows on any ground."""
    sheet = picture.convert("RGB")
    height, width = sheet.height / field.grid[0], sheet.width / field.grid[1]
    left, top = field.column * width, field.row * height
    right, bottom = max(left + width, left + 4), max(top + height, top + 4)
    pen = ImageDraw.Draw(sheet)
    for grow, colour in ((2, "white"), (1, "black"), (0, "white")):
        pen.rectangle((left - grow, top - grow, right - 1 + grow, bottom - 1 + grow), outline=colour)
    return sheet


def _token_layers(front: PixelModel, x: torch.Tensor, count: int) -> list[str]:
    """The numbered blocks that give the whole sequence of tokens."""
    names = [name for name, _ in front.named_modules() if re.search(r"\.(\w+_)?\d+$", name)]
    with torch.no_grad(), captured(front, names) as store:
        front(x)
    return [
        name.removeprefix(FRONT)
        for name in names
        if name in store and store[name].ndim == 3 and store[name].shape[:2] == (1, count)
    ]


def _token_field(front: PixelModel, x: torch.Tensor, layer: str, row: int, column: int) -> EffectiveField:
    fields = TokenFields(front)
    layout = fields.layout(x)
    grid = (layout.height, layout.width)
    _check(layer, row, column, grid)
    found = fields.of(x, FRONT + layer, [layout.token(row, column)])
    absorbed = {name: float(share[0]) for name, share in found.absorbed.items() if float(share[0]) > 0}
    words = "shares of the patches; of all relevance, " + ", ".join(f"{100 * s:.0f} % {n}" for n, s in absorbed.items())
    return EffectiveField(layer, row, column, grid, found.shares[0].detach().cpu().numpy(), words)


def _check(layer: str, row: int, column: int, grid: tuple[int, int]) -> None:
    if not (0 <= row < grid[0] and 0 <= column < grid[1]):
        raise InputError(
            f"the position ({row}, {column}) is outside the {grid[0]} x {grid[1]} positions of {layer!r}: "
            f"rows are 0 to {grid[0] - 1}, columns 0 to {grid[1] - 1}"
        )
