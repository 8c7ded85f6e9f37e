"""Which concepts of a layer become nodes: the most important ones for each class, and those that classes share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from backlight.errors import InputError, UnknownNameError
from backlight.shapes import Bool, Float

ORDERS = ("importance", "magnitude")
NOTHING = 1e-6  # of the largest importance for a class: rounding


@dataclass(frozen=True)
class Chosen:
    """Concepts of a layer: `chosen_for`, by concept the classes it was chosen for; `shared`: those of several."""

    chosen_for: Mapping[int, tuple[int, ...]]
    shared: frozenset[int] = field(default_factory=frozenset)

    @property
    def concepts(self) -> list[int]:
        return list(self.chosen_for)


def choose(
    importance: Float[Tensor, "T K"],
    on: Bool[Tensor, "K"],
    classes: Sequence[int],
    *,
    top: int = 5,
    shared: int = 3,
    order: str = "importance",
) -> Chosen:
    """The `top` concepts of each class, and the `shared` most important ones of all classes together.

    A concept's importance for class c is I_qc = sum_p AT(u_pq, logit_c) (iERF paper, section VI-A). What several
    classes share is ranked by min_c I_qc: what is important for the one that needs it least. A concept that stands in
    the lists of two classes is shared too.

    Args:
        importance: of each concept for each of the classes.
        on: whether it is on anywhere; others are never chosen.
        order: "importance", what speaks for the class, only; "magnitude", what speaks for or against it.

    Raises:
        UnknownNameError: another order. InputError: negative numbers.
    """
    if order not in ORDERS:
        raise UnknownNameError("order of concepts", order, ORDERS)
    if top < 0 or shared < 0:
        raise InputError(f"top and shared are not negative, got {top} and {shared}")
    size = importance.abs() if order == "magnitude" else importance
    least = NOTHING * size.abs().amax(1, keepdim=True)
    size = torch.where(on & (size > least), size.double(), 0.0)
    wanted: dict[int, list[int]] = {}
    for row, one in zip(size, classes, strict=True):
        for concept in largest(row, top):
            wanted.setdefault(concept, []).append(one)
    both = largest(size.amin(0), shared) if len(classes) > 1 else []
    for concept in both:
        wanted.setdefault(concept, [])
    several = {concept for concept, of in wanted.items() if len(of) > 1}
    total = size.sum(0)
    ranked = sorted(wanted, key=lambda concept: (-float(total[concept]), concept))
    return Chosen({concept: tuple(wanted[concept]) for concept in ranked}, frozenset({*both, *several}))


def largest(values: Float[Tensor, "K"], count: int) -> list[int]:
    """The numbers of the largest positive values, largest first; equal ones by their number."""
    positive = int((values > 0).sum())
    return values.sort(descending=True, stable=True).indices[: min(count, positive)].tolist()


def given(concepts: Sequence[int], atoms: int, site: str) -> Chosen:
    """Concepts that the caller chose.

    Raises:
        InputError: numbers that the dictionary does not have.
    """
    wrong = [concept for concept in concepts if not 0 <= concept < atoms]
    if wrong:
        raise InputError(f"concepts {wrong} of {site!r}, whose dictionary has {atoms}")
    return Chosen({int(concept): () for concept in dict.fromkeys(concepts)})
