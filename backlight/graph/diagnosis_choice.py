"""Which concepts a diagnosis shows: those that tell two classes apart, not those that speak for either."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from backlight.errors import InputError
from backlight.graph.build import build_graphs
from backlight.graph.coded import code_sites
from backlight.graph.concept_graph import ConceptGraph, node_id
from backlight.graph.icat import edges
from backlight.graph.importance import Chosen, largest
from backlight.graph.layers import Given, as_layer
from backlight.graph.operators import Operator
from backlight.models import LoadedModel
from backlight.shapes import Float


def graphs_apart(
    model: nn.Module | LoadedModel,
    images: Float[torch.Tensor, "N C H W"],
    layers: Mapping[str, Given],
    classes: tuple[int, int],
    building: Mapping[str, Any],
    names: Sequence[str],
) -> list[ConceptGraph]:
    """Graphs of an image, or of two versions of it, whose nodes are those of `choose_apart`.

    `building`: settings of `build_graphs`; where it says `nodes`, they are taken.
    """
    settings = {"image_names": names, "classes": list(classes), **building}
    if "nodes" in building:
        return build_graphs(model, images, layers, **settings)
    own = {name: building[name] for name in ("top", "shared", "attribution", "residual") if name in building}
    chosen = choose_apart(model, images, layers, classes, **own)
    settings["nodes"] = {site: one.concepts for site, one in chosen.items()}
    graphs = build_graphs(model, images, layers, **settings)
    for graph in graphs:
        graph.about["order"] = "apart"
        for site, one in chosen.items():
            for concept, of in one.chosen_for.items():
                held = graph.graph.nodes[node_id(site, concept)]
                held |= {"chosen_for": list(of), "shared": concept in one.shared}
    return graphs


def choose_apart(
    model: nn.Module | LoadedModel,
    images: Float[torch.Tensor, "N C H W"],
    layers: Mapping[str, Given],
    classes: tuple[int, int],
    *,
    top: int = 5,
    shared: int = 3,
    attribution: str | Operator = "IntegratedGradients",
    residual: bool = True,
) -> dict[str, Chosen]:
    """Concepts by site: what makes one class lead the other in an image, or more so in a second version of it.

    d_q = I_qB - I_qA, all concepts' parts of the lead of B over A. One image: the `top` largest d_q, the `top` largest
    -d_q. Two: the same of the change of d_q from the first to the second. And the `shared` ones of the largest
    min(I_qA, I_qB), over the images too. The most important concepts of a class need not be among the former: what is
    important for both classes tells nothing apart.

    Cost: with Integrated Gradients, for each image and layer `n_steps` forward passes from there on, and twice as many
    backward. Raises:
        InputError: not one or two images, `top` or `shared` that are negative.
    """
    if len(images) not in (1, 2) or top < 1 or shared < 0:
        raise InputError(f"expected one or two images, top >= 1, shared >= 0; got {len(images)}, {top}, {shared}")
    network = model.model if isinstance(model, LoadedModel) else model
    known = {site: as_layer(one) for site, one in layers.items()}
    ways = {site: (one.encode, one.atoms, one.offset) for site, one in known.items()}
    layouts = {site: one.layout for site, one in known.items() if one.layout is not None}
    importance: dict[str, list[torch.Tensor]] = {site: [] for site in known}
    for image in images:
        for site, coded in code_sites(network, image[None], ways, layouts=layouts).items():
            found = edges(
                network, image[None], coded, None, list(classes), attribution=attribution, residual=residual
            )  # fmt: skip
            importance[site].append(found.values[0].double())
    return {site: _chosen(torch.stack(values), classes, top, shared) for site, values in importance.items()}


def _chosen(importance: Float[torch.Tensor, "N two K"], classes: Sequence[int], top: int, shared: int) -> Chosen:
    lead = importance[:, 1] - importance[:, 0]
    apart = lead[-1] - lead[0] if len(lead) == 2 else lead[0]
    both = largest(importance.amin((0, 1)), shared)
    wanted: dict[int, tuple[int, ...]] = {}
    for row, one in ((apart, classes[1]), (-apart, classes[0])):
        wanted |= dict.fromkeys(largest(row, top), (one,))
    wanted |= {q: tuple(classes) for q in both}
    ranked = sorted(wanted, key=lambda q: (-float(apart[q].abs()), q))
    return Chosen({q: wanted[q] for q in ranked}, frozenset(both))
