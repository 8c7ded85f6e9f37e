"""Pictures of nodes: the part of the image that a concept comes from, by the receptive fields of where it is on."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from backlight.errors import BacklightError
from backlight.graph.coded import Coded
from backlight.methods.sharing_operator import SharingOperator
from backlight.methods.srd import SRD
from backlight.methods.token_fields import TokenFields
from backlight.shapes import Float

STRONG = 0.5  # of the strongest position
MOST_AT_ONCE = 8  # receptive fields in one pass


@dataclass(eq=False)
class Thumbnails:
    """Crops of an image, lit by receptive fields.

    Feature maps: the mean field (SRD), weighed by |u_pq|, of the positions where it is at least half as large as
    anywhere: coders of a weak penalty have a concept on a little at most of them. Tokens: the field of the concept's
    direction in the token where it is strongest (AttnLRP, CAFE's iERF). Where neither is defined for the layer, the
    codes themselves are shown, enlarged. The sharing ratios are computed once; a field of feature maps is cheap then,
    one of tokens is a forward and a backward pass.

    Attributes:
        image: as the model takes it; picture: the same in [0, 1]; size: of a crop's side, in pixels.
    """

    model: nn.Module
    image: Float[Tensor, "1 C H W"]
    picture: Float[Tensor, "3 H W"]
    size: int = 96
    _sharing: SharingOperator | None = field(default=None, init=False, repr=False)
    _without: bool = field(default=False, init=False, repr=False)

    def whole(self) -> str:
        """The picture, at most 224 pixels on the longer side, as a PNG data URI."""
        drawn = Image.fromarray(self._array())
        drawn.thumbnail((224, 224))
        return png_uri(drawn)

    def fields(
        self, coded: Coded, grid: tuple[int, int] | None, maps: Float[Tensor, "Q P"], directions: Float[Tensor, "R C"]
    ) -> list[str | None]:
        """A crop for each node of a layer, as PNG data URIs; None for a node that is nowhere on.

        `maps`: where the nodes are on, at all positions. `directions`: what they look for, of the first Q used.
        """
        heat = self.heat(coded, grid, maps, directions[: len(maps)])
        if heat is None:
            return [None] * len(maps)
        return [png_uri(crop(self._array(), one, self.size)) if bool((one > 0).any()) else None for one in heat]

    def heat(
        self, coded: Coded, grid: tuple[int, int] | None, maps: Float[Tensor, "Q P"], directions: Float[Tensor, "Q C"]
    ) -> Float[Tensor, "Q H W"] | None:
        """Where in the image each node comes from, at least 0; None where the layer has no grid."""
        if grid is None:
            return None
        on = maps.abs()
        on = torch.where(on >= STRONG * on.amax(1, keepdim=True), on, 0.0)
        on_grid = on[:, coded.layout.prefix :].reshape(-1, *grid)
        try:
            if coded.layout.kind == "tokens":
                found = self._of_tokens(coded, on, directions)
            else:
                found = self._of_maps(coded.site, on_grid)
        except BacklightError:  # the theory of fields does not reach this layer
            found = on_grid
        found = found.detach().float().clamp(min=0)
        size = self.picture.shape[1:]
        if found.shape[1:] != size:
            found = F.interpolate(found[:, None], size=tuple(size), mode="bilinear", align_corners=False)[:, 0]
        alive = (on > 0).any(1)
        return found * alive[:, None, None].to(found)

    def _of_maps(self, site: str, on: Float[Tensor, "Q h w"]) -> Float[Tensor, "Q H W"]:
        if self._sharing is None:
            if self._without:
                return on
            self._without = True  # unless this works
            self._sharing = SRD(self.model).prepare(self.image)
        self._sharing.node(site)
        weights = (on / on.flatten(1).sum(1).clamp(min=1e-30)[:, None, None])[None]
        parts = [self._sharing.relevance(part, at=site)[0] for part in weights.split(MOST_AT_ONCE, 1)]
        return torch.cat(parts)

    def _of_tokens(
        self, coded: Coded, on: Float[Tensor, "Q P"], directions: Float[Tensor, "Q C"]
    ) -> Float[Tensor, "Q h w"]:
        fields = TokenFields(self.model)
        found = fields.of(
            self.image, coded.site, on.argmax(1).cpu(), direction=directions, internal_batch_size=MOST_AT_ONCE
        )
        return found.patches.norm

    def _array(self) -> np.ndarray:
        return (self.picture.detach().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()


def crop(picture: np.ndarray, heat: Float[Tensor, "H W"], size: int) -> Image.Image:
    """The square that holds the middle 80 % of the heat along each side, darker where there is little heat."""
    height, width = heat.shape
    rows, columns = middle(heat.sum(1)), middle(heat.sum(0))
    side = max(rows[1] - rows[0], columns[1] - columns[0], min(height, width) // 6) * 1.1
    side = int(min(side, height, width))
    ends = []
    for (low, high), length in ((rows, height), (columns, width)):
        start = int(np.clip(round((low + high - side) / 2), 0, length - side))
        ends.append(slice(start, start + side))
    part = heat[ends[0], ends[1]].cpu().numpy()
    light = np.clip(part / max(float(np.quantile(part, 0.98)), 1e-30), 0, 1) ** 0.5
    shown = picture[ends[0], ends[1]] * (0.3 + 0.7 * light[:, :, None])
    return Image.fromarray(shown.round().astype(np.uint8)).resize((size, size), Image.Resampling.BILINEAR)


def middle(mass: Float[Tensor, "L"], share: float = 0.8) -> tuple[int, int]:
    """The range that holds the middle `share` of a mass along an axis; the end is outside it."""
    total = mass.double().cumsum(0) / mass.double().sum().clamp(min=1e-300)
    low, high = (1 - share) / 2 + 1e-9, (1 + share) / 2 - 1e-9
    start = int((total <= low).sum())
    return min(start, len(mass) - 1), min(int((total < high).sum()) + 1, len(mass))


def png_uri(picture: Image.Image) -> str:
    """A picture as a data URI."""
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
