"""Effective receptive fields of a bank's vectors: what each is made of in its image; computed on demand, and kept."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from backlight.concepts.bank import Bank
from backlight.concepts.bank_relevance import chosen_relevance
from backlight.engine.attribution import attribute
from backlight.engine.targets import Unit
from backlight.errors import InputError, UnknownNameError
from backlight.evaluation.journal import whole
from backlight.methods.srd import SRD
from backlight.methods.token_fields import TokenFields
from backlight.shapes import Bool, Float

KINDS = ("auto", "srd", "tokens", "gradient")
MASS = 0.9
ROUNDING = 1e-6  # of a share of a sum of float32 numbers
Position = tuple[int, int]
Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class ReceptiveField:
    """The iERF of a vector: its shares `[h, w]` in the positions of the input, or in its patches.

    `size`: (height, width) of the input. Of `srd`, shares have a sign and sum to 1; of `tokens`, they are the patches'
    shares of the l2 norms, at least 0, and sum to 1; of `gradient`, pixel times gradient of the vector's norm.
    """

    values: Float[Tensor, "h w"]
    size: tuple[int, int]
    kind: str

    @property
    def at_input(self) -> Float[Tensor, "H W"]:
        """The shares by pixel, those of a patch spread evenly: the sum stays."""
        h, w = self.values.shape
        rows = torch.arange(self.size[0]) * h // self.size[0]
        columns = torch.arange(self.size[1]) * w // self.size[1]
        counts = torch.bincount(rows, minlength=h)[:, None] * torch.bincount(columns, minlength=w)
        return (self.values / counts)[rows][:, columns]

    def box(self, mass: float = MASS) -> Box:
        """(x0, y0, x1, y1), half-open, in pixels: the smallest box with this share of the positive shares."""
        x0, y0, x1, y1 = smallest_box(self.values, mass)
        (h, w), (height, width) = self.values.shape, self.size
        return -(-x0 * width // w), -(-y0 * height // h), -(-x1 * width // w), -(-y1 * height // h)

    def mask(self, mass: float = MASS) -> Bool[Tensor, "H W"]:
        """The fewest pixels with this share of the positive shares, after a blur of 1/56 of the input's longer side.

        Fields at pixels are as grainy as the filters that read them; without the blur the mask is dust. Patches are
        not blurred.
        """
        shares = self.at_input.clamp(min=0)
        if self.kind != "tokens":
            shares = _blurred(shares, max(self.size) / 56)
        order = shares.flatten().argsort(descending=True, stable=True)
        sums = shares.flatten()[order].double().cumsum(0)
        count = int(torch.searchsorted(sums, mass * sums[-1] * (1 - ROUNDING))) + 1 if sums[-1] > 0 else 0
        found = torch.zeros(len(order), dtype=torch.bool)
        found[order[:count]] = True
        return found.reshape(self.size)


class ReceptiveFields:
    """The fields of a bank's vectors. SRD's of convolutional networks, `TokenFields` of transformers.

    `kind`: "auto", "srd", "tokens", or "gradient", for feature maps that SRD has no node of. `folder`: where fields
    are kept, by network, image, site and position; by default in the bank's; where it cannot be written to, nothing is
    kept. Cost of those that are not there yet: of an image, a pass of SRD for any number of positions; of a token, a
    forward and a backward pass.
    """

    def __init__(self, bank: Bank, folder: Path | None = None, kind: str = "auto") -> None:
        if kind not in KINDS:
            raise UnknownNameError("kind of receptive fields", kind, KINDS)
        self.bank, self.folder = bank, folder or bank.folder / "fields"
        if kind == "auto":
            kind = "tokens" if chosen_relevance(bank.network, "auto") == "attnlrp" else "srd"
        self.kind = kind

    def of(self, image: int, site: str, positions: Sequence[Position]) -> list[ReceptiveField]:
        """The fields of vectors of one image, at (row, column) of the site's grid; (-1, -1) is the class token.

        Raises:
            SiteError: SRD has no node there; InputError: no such position; or the network or images are not found.
        """
        paths = [self.path(image, site, position) for position in positions]
        missing = [position for position, path in zip(positions, paths, strict=True) if not path.is_file()]
        made = dict(zip(missing, self._computed(image, site, missing), strict=True)) if missing else {}
        for position, path in zip(positions, paths, strict=True):
            if position in made:
                self._keep(path, made[position])
        return [made.get(position) or _read(path) for position, path in zip(positions, paths, strict=True)]

    def path(self, image: int, site: str, position: Position) -> Path:
        """Where a field is kept."""
        name = self.bank.images[image]
        about = {
            "model": self.bank.identity["model"],
            "preprocessing": self.bank.identity["preprocessing"],
            "image": self._contents[name] or name,
            "site": site,
            "position": list(position),
            "kind": self.kind,
        }
        return self.folder / f"{hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:32]}.npz"

    @cached_property
    def _contents(self) -> dict[str, str]:
        return self.bank.store.contents

    def _computed(self, image: int, site: str, positions: Sequence[Position]) -> list[ReceptiveField]:
        x = self.bank.inputs(image)
        size = (x.shape[2], x.shape[3])
        if self.kind == "tokens":
            values = self._tokens(x, site, positions)
        elif any(position == (-1, -1) for position in positions):
            raise InputError(f"the class token of {site!r} has a field of kind 'tokens', not {self.kind!r}")
        elif self.kind == "srd":
            values = SRD(self.bank.network).prepare(x).ierf(site, positions)[0]
        else:
            targets = [Unit(site, position=position, reduce="norm") for position in positions]
            found = [attribute(self.bank.network, x, target, readout="value").value for target in targets]
            values = torch.cat(found).sum(1)
        return [ReceptiveField(value.detach().float().cpu(), size, self.kind) for value in values]

    def _tokens(self, x: Tensor, site: str, positions: Sequence[Position]) -> Tensor:
        fields = TokenFields(self.bank.network)
        layout = fields.layout(x)
        numbers = [0 if position == (-1, -1) else layout.token(*position) for position in positions]
        return fields.of(x, site, numbers, internal_batch_size=8).shares

    def _keep(self, path: Path, field: ReceptiveField) -> None:
        with suppress(OSError):  # the field is there all the same
            path.parent.mkdir(parents=True, exist_ok=True)
            with whole(path) as partial, partial.open("wb") as file:
                np.savez_compressed(file, values=field.values.numpy(), size=np.array(field.size), kind=field.kind)


def _read(path: Path) -> ReceptiveField:
    try:
        with np.load(path, allow_pickle=False) as found:
            height, width = (int(one) for one in found["size"])
            return ReceptiveField(torch.from_numpy(found["values"]), (height, width), str(found["kind"]))
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"cannot read the receptive field {str(path)!r}, remove it: {error}") from None


def smallest_box(values: Float[Tensor, "h w"], mass: float = MASS) -> Box:
    """(x0, y0, x1, y1), half-open: the box of least area that holds a share `mass` of the positive entries.

    Exact: for every pair of rows, the fewest columns, by bisection in sums. Of equal areas, the first by y0, x0. Cost:
    h^2 w log w.

    Raises:
        InputError: a share outside (0, 1], or no positive entry.
    """
    if not 0 < mass <= 1:
        raise InputError(f"the share of the mass lies in (0, 1], got {mass}")
    positive = values.detach().cpu().double().clamp(min=0)
    height, width = positive.shape
    total = float(positive.sum())
    if not total > 0:
        raise InputError("the field has no positive entry: there is nothing to put in a box")
    wanted = mass * total * (1 - ROUNDING)
    below = torch.cat((torch.zeros(1, width).double(), positive.cumsum(0)))
    best, found = height * width + 1, (0, 0, width, height)
    for top in range(height):
        columns = (below[top + 1 :] - below[top]).cumsum(1)
        sums = torch.cat((torch.zeros(len(columns), 1).double(), columns), 1)  # [bottom, x]
        right = torch.searchsorted(sums, sums[:, :-1] + wanted)  # the first x1 with enough, for each x0
        widths = right - torch.arange(width)
        areas = (widths * torch.arange(1, len(columns) + 1)[:, None]).masked_fill(right > width, best)
        least = int(areas.min())
        if least < best:
            bottom, left = (int(one[0]) for one in (areas == least).nonzero(as_tuple=True))
            best, found = least, (left, top, int(right[bottom, left]), top + bottom + 1)
    return found


def _blurred(values: Float[Tensor, "H W"], sigma: float) -> Float[Tensor, "H W"]:
    reach = max(1, round(3 * sigma))
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1).to(values) / sigma) ** 2)
    kernel /= kernel.sum()
    across = torch.nn.functional.conv2d(values[None, None], kernel[None, None, None], padding=(0, reach))
    return torch.nn.functional.conv2d(across, kernel[None, None, :, None], padding=(reach, 0))[0, 0]


def faded(picture: Float[Tensor, "C H W"], mask: Bool[Tensor, "H W"], by: float = 0.8) -> Float[Tensor, "C H W"]:
    """A picture in [-1, 1] whose pixels outside a mask are whitened."""
    return torch.where(mask, picture, picture + by * (1 - picture))
