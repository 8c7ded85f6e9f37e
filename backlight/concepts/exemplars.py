"""Exemplars: the images and positions on which a concept is strongest, each with what it is made of in its image."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from backlight.concepts.concepts import Concepts
from backlight.concepts.receptive_fields import MASS, Box, Position, ReceptiveField, ReceptiveFields, faded
from backlight.contributions.exemplars import Exemplars as Strongest
from backlight.contributions.exemplars import exemplars as strongest_rows
from backlight.decompositions.folder import read_tensors, write_tensors
from backlight.errors import InputError, UnknownNameError
from backlight.shapes import Float
from backlight.store.rows import Rows

DIVERSE = ("no", "vectors", "classes")
KEPT = 64  # images a concept whose numbers are kept with the concepts
AMONG = 8  # diverse ones are chosen among so many times their number


@dataclass(frozen=True)
class Exemplar:
    """One image on which a concept is strong, at the position where it is strongest.

    `image`, `row`: numbers in the bank's images and in its rows of the site; `name`, `label` (-1: none): of the image.
    `position`: (row, column) in the site's grid, (-1, -1) the class token. `code`: the concept's, there. `strength`:
    what exemplars are ranked by, the code or the nearness; `rank`: among all images, from 0.
    """

    concept: int
    rank: int
    image: int
    name: str
    label: int
    row: int
    position: Position
    code: float
    strength: float
    site: str
    fields: ReceptiveFields = field(repr=False, compare=False)

    @cached_property
    def field(self) -> ReceptiveField:
        """The iERF of the vector at this position: what it is made of. Computed once, then read from the disk."""
        return self.fields.of(self.image, self.site, [self.position])[0]

    @property
    def ierf(self) -> Float[Tensor, "H W"]:
        """The field by pixel."""
        return self.field.at_input

    def box(self, mass: float = MASS) -> Box:
        """The smallest box (x0, y0, x1, y1) with a share of the field's positive mass."""
        return self.field.box(mass)

    @cached_property
    def picture(self) -> Float[Tensor, "C H W"]:
        """The image, in [-1, 1]."""
        return self.fields.bank.picture(self.image)

    def crop(self, mass: float = MASS, masked: bool = False) -> Float[Tensor, "C h w"]:
        """The picture in the box; `masked`: whitened outside the pixels that hold the share of the field."""
        x0, y0, x1, y1 = self.box(mass)
        shown = faded(self.picture, self.field.mask(mass)) if masked else self.picture
        return shown[:, y0:y1, x0:x1]


def exemplars(
    concepts: Concepts, k: int, count: int = 8, *, diverse: bool | str = False, fields: ReceptiveFields | None = None
) -> list[Exemplar]:
    """The images on which concept k is strongest, at most one position of each, strongest first.

    Fewer than `count` where the concept is on (code > 0) in fewer images. An image's strength is its largest code;
    where rows have one concept each (k-means in its own codes), its nearness 1 / (1 + |x - v_k|) to the centre: the
    paper shows a concept's nearest vectors.

    Args:
        diverse: True or "vectors": farthest first among the 8 `count` strongest, from the strongest on: each next one
            has the largest distance, between directions x / |x|, to the nearest that is chosen. "classes": in turn the
            strongest of each label.
        fields: of the bank's vectors; by default those kept in the bank's folder.

    Raises:
        InputError: no such concept, or a count below 1.
        UnknownNameError: another kind of diversity.
    """
    kind = {True: "vectors", False: "no"}.get(diverse, diverse) if isinstance(diverse, bool) else diverse
    if kind not in DIVERSE:
        raise UnknownNameError("diversity of exemplars", str(kind), DIVERSE)
    if not 0 <= k < len(concepts):
        raise InputError(f"there are concepts 0 to {len(concepts) - 1}, not {k}")
    if count < 1:
        raise InputError(f"count must be at least 1, got {count}")
    found = strongest(concepts, count if kind == "no" else AMONG * count)
    own = ReceptiveFields(concepts.bank) if fields is None else fields
    made = list(_made(concepts, k, found, own))
    if kind == "vectors":
        return [made[place] for place in _farthest(_vectors(concepts, made), count)]
    return _in_turn(made, count) if kind == "classes" else made[:count]


def strength(concepts: Concepts) -> Rows:
    """What exemplars are ranked by, `[n, K]`: codes, or nearness where rows have one concept each."""
    if concepts.own_codes and "one mode" in concepts.dictionary.claims:
        return Nearness(concepts)
    return concepts.codes


def strongest(concepts: Concepts, top: int = KEPT) -> Strongest:
    """Of each concept, the `top` images on which it is strongest; up to 64 are found once, and kept in the folder."""
    ranked = concepts.of_images(strength(concepts))
    if top > KEPT:
        return strongest_rows(ranked, top)
    path = concepts.folder / f"strongest-{concepts.coder}.safetensors"
    if path.is_file():
        tensors, _ = read_tensors(path)
    else:
        all_of = strongest_rows(ranked, KEPT)
        tensors = {"samples": all_of.samples, "loadings": all_of.loadings, "active": all_of.active}
        write_tensors(path, tensors)
    return Strongest(tensors["samples"][:, :top], tensors["loadings"][:, :top], tensors["active"])


class Nearness:
    """1 / (1 + |x - v_k|) of each row to the concept that it belongs to, 0 to all others: `[n, K]`."""

    def __init__(self, concepts: Concepts) -> None:
        self._codes, self._rows, self._dictionary = concepts.codes, concepts.rows, concepts.dictionary

    @property
    def shape(self) -> tuple[int, int]:
        return self._codes.shape

    def read(self, start: int, stop: int) -> Float[Tensor, "n K"]:
        codes, x = self._codes.read(start, stop), self._rows.read(start, stop)
        distance = torch.linalg.vector_norm(x - self._dictionary.decode(codes).float(), dim=1)
        return (codes != 0) / (1 + distance[:, None])


def _made(concepts: Concepts, k: int, found: Strongest, fields: ReceptiveFields) -> Iterator[Exemplar]:
    bank, site = concepts.bank, concepts.site
    strengths, positions, labels = strength(concepts), bank.position(site), bank.labels
    ranked = concepts.of_images(strengths)
    for rank, (image, value) in enumerate(zip(found.samples[k].tolist(), found.loadings[k].tolist(), strict=True)):
        if value <= 0:
            return
        low, high = ranked.span(image)
        row = low + int(strengths.read(low, high)[:, k].argmax())
        code = float(concepts.codes.read(row, row + 1)[0, k])
        at = (int(positions[row, 0]), int(positions[row, 1]))
        yield Exemplar(k, rank, image, bank.images[image], int(labels[image]), row, at, code, value, site, fields)


def _vectors(concepts: Concepts, made: list[Exemplar]) -> Float[Tensor, "m C"]:
    if not made:
        return torch.zeros(0, concepts.rows.shape[1])
    return torch.cat([concepts.rows.read(one.row, one.row + 1) for one in made])


def _farthest(vectors: Float[Tensor, "m C"], count: int) -> list[int]:
    """Farthest first, from the first on."""
    if not len(vectors):
        return []
    directions = torch.nn.functional.normalize(vectors.double(), dim=1)
    chosen, nearest = [0], torch.cdist(directions, directions[:1])[:, 0]
    while len(chosen) < min(count, len(vectors)):
        nearest[chosen] = -1
        chosen.append(int(nearest.argmax()))
        nearest = torch.minimum(nearest, torch.cdist(directions, directions[chosen[-1] :][:1])[:, 0])
    return chosen


def _in_turn(made: list[Exemplar], count: int) -> list[Exemplar]:
    """The strongest of each label, labels in the order of their strongest; then the second of each."""
    groups: dict[int, list[Exemplar]] = {}
    for one in made:
        groups.setdefault(one.label, []).append(one)
    turns = sorted((place, order, one) for order, own in enumerate(groups.values()) for place, one in enumerate(own))
    return [one for _, _, one in turns[:count]]
