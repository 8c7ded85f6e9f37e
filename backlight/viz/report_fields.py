"""What a report says of hidden layers: the receptive fields of the places that matter most for the decision."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from backlight.errors import BacklightError, SiteError
from backlight.methods.sharing_operator import SharingOperator
from backlight.methods.srd import SRD
from backlight.methods.token_fields import TokenFields
from backlight.models import PixelModel
from backlight.shapes import Float

LAYERS = 4
SPECIAL = ("input", "low", "high")
INSIDE = "network."  # what stands before a layer's name behind the front of pixels


@dataclass(frozen=True, eq=False)
class Field:
    """The iERF of a place of a layer: `values` `[h, w]` at pixels or patches; `place`: (row, column), None: the class
    token; `grid`: of the layer; `share`: of the layer's relevance for the target that lies there, where it is known.
    """

    layer: str
    place: tuple[int, int] | None
    grid: tuple[int, int]
    values: Float[np.ndarray, "h w"]
    share: float | None = None


def fields_of(
    front: PixelModel, x: Float[Tensor, "1 3 H W"], target: int, layers: Sequence[str] | None = None, count: int = 3
) -> list[Field]:
    """The fields of `count` places of each layer, those with the most relevance for the target.

    Feature maps: SRD, all layers after one pass. Tokens: AttnLRP, a pass each, and the class token first.

    Args:
        layers: names as `backlight layers` lists them; None: the last ones of the four coarsest grids, or three blocks.

    Raises:
        BacklightError: a network that neither fits, with both reasons; a layer without fields.
    """
    try:
        operator = SRD(front).prepare(x)
    except BacklightError as srd:
        try:
            return _of_tokens(front, x, target, layers, count)
        except BacklightError as tokens:
            raise SiteError(f"no receptive fields: SRD: {srd}; TokenFields: {tokens}") from None
    return _of_maps(operator, target, layers, count)


def _of_maps(operator: SharingOperator, target: int, layers: Sequence[str] | None, count: int) -> list[Field]:
    chosen = _coarsest(operator) if layers is None else [INSIDE + layer for layer in layers]
    seed = operator.seed(target)
    found = []
    for layer in chosen:
        relevance = operator.relevance(seed, to=layer)[0].double()
        h, w = operator.size(layer)
        order = relevance.flatten().argsort(descending=True)[:count]
        places = [(int(one) // w, int(one) % w) for one in order]
        shares = relevance.flatten()[order] / relevance.abs().sum().clamp(min=1e-30)
        maps = operator.ierf(layer, places)[0].float().cpu().numpy()
        found += [
            Field(layer.removeprefix(INSIDE), place, (h, w), values, float(share))
            for place, values, share in zip(places, maps, shares, strict=True)
        ]
    return found


def _coarsest(operator: SharingOperator) -> list[str]:
    """Of each of the coarsest grids the last layer of those whose names are the shortest: a block before its parts."""
    last: dict[tuple[int, ...], str] = {}
    for name, node in operator.names.items():
        size = operator.nodes[node].size
        if name in SPECIAL or name.startswith("@") or len(size) != 2 or min(size) < 2:
            continue
        if size not in last or name.count(".") <= last[size].count("."):
            last[size] = name
    return list(last.values())[-LAYERS:]


def _of_tokens(front: PixelModel, x: Tensor, target: int, layers: Sequence[str] | None, count: int) -> list[Field]:
    from backlight.methods.attn_lrp import AttnLRP

    fields = TokenFields(front)
    layout = fields.layout(x)
    found = []
    for layer in _blocks(front) if layers is None else [INSIDE + layer for layer in layers]:
        value = AttnLRP(front).explain(x, target, sites=layer).value
        if value.ndim != 3 or value.shape[1] != layout.prefix + layout.height * layout.width:
            raise SiteError(f"{layer.removeprefix(INSIDE)!r} has shape {list(value.shape)}, not one token a patch")
        relevance = value[0].double().sum(1)
        total = relevance.abs().sum().clamp(min=1e-30)
        best = relevance[layout.prefix :].argsort(descending=True)[: count - (layout.prefix > 0)] + layout.prefix
        tokens = [*([0] if layout.prefix else []), *best.tolist()]
        maps = fields.of(x, layer, tokens, internal_batch_size=1).shares.float().cpu().numpy()
        for token, values in zip(tokens, maps, strict=True):
            patch = token - layout.prefix
            place = divmod(patch, layout.width) if patch >= 0 else None
            grid = (layout.height, layout.width)
            found.append(Field(layer.removeprefix(INSIDE), place, grid, values, float(relevance[token] / total)))
    return found


def _blocks(front: nn.Module) -> list[str]:
    """Three blocks of a transformer, of its longest list of like modules: early, in the middle, the last but one.

    Behind the last one, only the class token has relevance where it is all that the head reads.
    """
    lists: list[list[str]] = []
    for name, module in front.named_modules():
        if isinstance(module, (nn.ModuleList, nn.Sequential)) and len({type(one) for one in module}) == 1:
            lists.append([f"{name}.{child}" for child, _ in module.named_children()])
    longest = max(lists, key=len, default=[])
    if len(longest) < 3:
        raise SiteError("no list of blocks was found: name the layers")
    return [longest[len(longest) // 3], longest[2 * len(longest) // 3], longest[-2]]


def overlay(image: Float[np.ndarray, "3 H W"], values: Float[np.ndarray, "h w"]) -> Float[np.ndarray, "3 H W"]:
    """The picture where a field is strong, and pale grey where it is not; both in [-1, 1].

    The weight is the root of the positive field by its 99th percentile, after bilinear resizing: fields are peaked.
    """
    height, width = image.shape[1:]
    field = torch.from_numpy(np.ascontiguousarray(values)).float().clamp(min=0)[None, None]
    if field.shape[-1] > 56:  # grainy as the filters that read them: shown as the mean of small squares
        field = torch.nn.functional.avg_pool2d(field, 5, 1, 2)
    field = torch.nn.functional.interpolate(field, (height, width), mode="bilinear")[0, 0]
    top = float(field.quantile(0.995)) or float(field.max()) or 1.0
    weight = (field / top).clamp(0, 1).sqrt().numpy()
    grey = np.broadcast_to(0.62 + 0.3 * image.mean(0, keepdims=True), image.shape)
    return (weight * image + (1 - weight) * grey).astype(np.float32)
