"""The layers of a concept graph: each with a dictionary of concepts and a way to code what a model has there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from backlight.contributions.reduction import Layout
from backlight.decompositions import Decomposition
from backlight.engine.evaluation import check_evaluation_mode
from backlight.engine.sites import captured
from backlight.engine.targets import output_tensor
from backlight.errors import InputError, TargetError
from backlight.evaluation.identity import plain
from backlight.graph.coded import Encode
from backlight.shapes import Float

NAMED = 0.3  # tags below it are no names
Exemplars = Callable[[int, int], list[dict[str, str]]]  # (concept, count) to [{"image": name, "crop": data URI}]
Tags = Mapping[int, Sequence[tuple[str, float]]]


class Coder(Protocol):
    """How PFVs are written in a dictionary: Lasso, OMP, ..."""

    def encode(self, x: Tensor, dictionary: Any) -> Tensor: ...


@dataclass(frozen=True, eq=False)
class LayerConcepts:
    """The concepts of a layer.

    Attributes:
        atoms: `[K, C]`, the concept vectors; offset: `[C]`, what is there without concepts, or None.
        encode: PFVs `[n, C]` to codes `[n, K]`, row by row.
        tags: by concept, what it goes with and how much, the most first: [("tabby", 0.41), ...].
        exemplars: (concept, count) to pictures from elsewhere, [{"image": name, "crop": data URI}].
        layout: where channels and positions are, if it is not to be told from the model.
        about: what it is, as plain values.
    """

    atoms: Float[Tensor, "atoms channels"]
    encode: Encode
    offset: Float[Tensor, "channels"] | None = None
    tags: Tags = field(default_factory=dict)
    exemplars: Exemplars | None = None
    layout: Layout | None = None
    about: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        dictionary: Decomposition,
        coder: Coder | None = None,
        *,
        tags: Tags | None = None,
        exemplars: Exemplars | None = None,
        layout: Layout | None = None,
        about: Mapping[str, Any] | None = None,
    ) -> LayerConcepts:
        """Those of a fitted dictionary, coded by `coder`, or as the dictionary itself encodes.

        Raises:
            InputError: the dictionary is not fitted.
        """
        encode = dictionary.encode if coder is None else lambda vectors: coder.encode(vectors, dictionary)
        known: dict[str, Any] = {"dictionary": type(dictionary).__name__, "atoms": len(dictionary.atoms)}
        known["coder"] = "its own" if coder is None else f"{plain(coder)}"
        return cls(
            dictionary.atoms, encode, dictionary.offset, tags or {}, exemplars, layout, {**known, **(about or {})}
        )

    def name(self, concept: int) -> str:
        """The first tag, where the concept goes with it clearly (0.3 or more), else its number."""
        tags = self.tags.get(concept)
        return tags[0][0] if tags and tags[0][1] >= NAMED else f"concept {concept}"


Given = LayerConcepts | Decomposition | tuple[Decomposition, Coder]


def as_layer(given: Given) -> LayerConcepts:
    """`LayerConcepts`, from a dictionary, or a dictionary and its coder.

    Raises:
        InputError: something else.
    """
    if isinstance(given, LayerConcepts):
        return given
    if isinstance(given, Decomposition):
        return LayerConcepts.of(given)
    if isinstance(given, tuple) and len(given) == 2 and isinstance(given[0], Decomposition):
        return LayerConcepts.of(*given)
    raise InputError(
        f"a layer's concepts are LayerConcepts, a fitted dictionary, or (dictionary, coder); got {type(given).__name__}"
    )


def in_order(model: nn.Module, image: Float[Tensor, "N ..."], sites: Iterable[str]) -> tuple[list[str], Tensor]:
    """Sites in the order in which the model reaches them, and its outputs `[N, classes]`: one forward pass.

    Raises:
        UnknownNameError, SiteError: a site that is not there, or that is reached several times.
        TargetError: outputs that are not one row an image.
        ModelError: a model in training mode.
    """
    check_evaluation_mode(model)
    with torch.no_grad(), captured(model, sites) as found:
        outputs = output_tensor(model(image))
    if outputs.ndim != 2:
        raise TargetError(f"expected outputs [N, classes], got {list(outputs.shape)}")
    return list(found), outputs
