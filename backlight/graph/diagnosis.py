"""Diagnosis: why an image is taken for one class and not for another, told by the concepts of a network's layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from backlight.displayed import Displayed
from backlight.engine.targets import output_tensor
from backlight.errors import InputError
from backlight.graph.concept_graph import ConceptGraph
from backlight.graph.diagnosis_choice import graphs_apart
from backlight.graph.diagnosis_contrast import (
    Balance,
    Contrast,
    RouteContrast,
    balances,
    contrast_routes,
    contrasts,
    two_classes,
)
from backlight.graph.diagnosis_text import markdown, text
from backlight.graph.importance import NOTHING
from backlight.graph.layers import Given
from backlight.graph.routes import Route
from backlight.models import LoadedModel
from backlight.shapes import Float


@dataclass(frozen=True, repr=False)
class Diagnosis(Displayed):
    """Two classes against each other, in one image.

    `true`, `predicted`: classes A and B. `graph`: of both. `concepts`: all nodes that are concepts, those that tell the
    two apart the most first. `balances`: by layer, what makes the lead of B. `routes_for_predicted`, `routes_for_true`:
    the ways that carry the most to the lead of one over the other. `routes`: by class, the dominant routes to it alone.
    """

    graph: ConceptGraph
    true: int
    predicted: int
    concepts: tuple[Contrast, ...]
    balances: tuple[Balance, ...]
    routes_for_predicted: tuple[RouteContrast, ...]
    routes_for_true: tuple[RouteContrast, ...]
    routes: Mapping[int, tuple[Route, ...]]

    @classmethod
    def of(cls, graph: ConceptGraph, true: int | str, predicted: int | str, count: int = 5) -> Diagnosis:
        """That of a graph that has both classes; `count` routes each.

        Raises:
            UnknownNameError: a class that the graph does not have. InputError: the same class twice.
        """
        a, b = (graph.graph.nodes[graph.class_node(one)]["class"] for one in (true, predicted))
        two_classes(a, b)
        back = [
            RouteContrast(one.nodes, one.for_predicted, one.for_true) for one in contrast_routes(graph, b, a, count)
        ]
        return cls(
            graph, a, b, tuple(contrasts(graph, a, b)), tuple(balances(graph, a, b)),
            tuple(contrast_routes(graph, a, b, count)), tuple(back),
            {one: tuple(graph.routes(one, count)) for one in (a, b)},
        )  # fmt: skip

    @property
    def lead(self) -> float:
        """logit of the predicted class - logit of the true one."""
        nodes = self.graph.graph.nodes
        a, b = (nodes[self.graph.class_node(one)]["activation"] for one in (self.true, self.predicted))
        return b - a

    @property
    def for_predicted(self) -> tuple[Contrast, ...]:
        """Concepts that speak for the predicted class against the true one, the strongest first."""
        return tuple(one for one in self.concepts if one.difference > 0)

    @property
    def for_true(self) -> tuple[Contrast, ...]:
        """Concepts that speak for the true class against the predicted one, the strongest first."""
        return tuple(one for one in self.concepts if one.difference < 0)

    @property
    def shared(self) -> tuple[Contrast, ...]:
        """Concepts that speak for both, by what the class that needs them least has of them."""
        least = NOTHING * max((max(one.for_true, one.for_predicted) for one in self.concepts), default=0.0)
        both = [one for one in self.concepts if min(one.for_true, one.for_predicted) > least]
        return tuple(sorted(both, key=lambda one: (-min(one.for_true, one.for_predicted), one.node)))

    @property
    def untold(self) -> float:
        """The largest share of the evidence that no concept tells, over the layers."""
        return max(one.untold for one in self.balances)

    def text(self, count: int = 3) -> str:
        """Plain sentences with numbers: what speaks for which class, from where, and what is untold."""
        return text(self, count)

    def markdown(self, count: int = 8) -> str:
        """The sentences, then tables."""
        return markdown(self, count)

    def as_json(self) -> dict[str, Any]:
        """Plain values, without the graph."""
        return {
            "true": self.true, "predicted": self.predicted, "lead": self.lead, "untold": self.untold,
            "concepts": [one.as_json() for one in self.concepts],
            "balances": [one.as_json() for one in self.balances],
            "routes_for_predicted": [one.as_json() for one in self.routes_for_predicted],
            "routes_for_true": [one.as_json() for one in self.routes_for_true],
            "routes": {str(one): [route.as_json() for route in found] for one, found in self.routes.items()},
            "text": self.text(),
        }  # fmt: skip


def diagnose(
    model: nn.Module | LoadedModel,
    image: Float[Tensor, "1 C H W"],
    layers: Mapping[str, Given],
    *,
    true: int,
    predicted: int | None = None,
    count: int = 5,
    name: str = "",
    **building: Any,
) -> Diagnosis:
    """Why an image is taken for class `predicted` and not for class `true`, or the other way round.

    Args:
        image, layers: as `build_graph` takes them.
        true: class A. predicted: class B; None: the likeliest class other than A, which is the predicted one where the
            network is wrong, and its closest rival where it is right.
        count: routes. name: of the image. building: other settings of `build_graphs`; `top` and `shared` are those of
            `choose_apart`, which chooses the concepts unless `nodes` does.

    Cost: that of the graph, and of `choose_apart`.

    Raises:
        InputError: the same class twice, outputs that there are not; and as `build_graphs`.
    """
    b = rival(model, image, true) if predicted is None else predicted
    two_classes(true, b)
    graph = graphs_apart(model, image, layers, (true, b), building, [name])[0]
    return Diagnosis.of(graph, true, b, count)


def rival(model: nn.Module | LoadedModel, image: Float[Tensor, "1 C H W"], true: int) -> int:
    """The class with the largest output other than `true`."""
    outputs = outputs_of(model, image)[0]
    if not 0 <= true < len(outputs):
        raise InputError(f"class {true} of a model with {len(outputs)} outputs")
    return next(one for one in outputs.topk(2).indices.tolist() if one != true)


def outputs_of(model: nn.Module | LoadedModel, images: Float[Tensor, "N C H W"]) -> Float[Tensor, "N outputs"]:
    """What the network gives, one row an image."""
    network = model.model if isinstance(model, LoadedModel) else model
    with torch.no_grad():
        outputs = output_tensor(network(images))
    if outputs.ndim != 2 or outputs.shape[1] < 2:
        raise InputError(f"a diagnosis is of a classifier, with outputs [N, classes]; got {list(outputs.shape)}")
    return outputs
