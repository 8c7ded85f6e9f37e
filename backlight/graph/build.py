"""Building concept graphs: code the layers, choose the concepts that matter, and find what they do for each other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, pairwise
from typing import Any

import torch
from torch import Tensor, nn

from backlight.data.classes import ClassNames
from backlight.errors import InputError, UnknownNameError
from backlight.evaluation.identity import plain, versions
from backlight.graph.assembly import assemble
from backlight.graph.coded import Coded, code_sites
from backlight.graph.concept_graph import ConceptGraph
from backlight.graph.icat import Edges, edges
from backlight.graph.importance import Chosen, choose, given
from backlight.graph.layers import Given, LayerConcepts, as_layer, in_order
from backlight.graph.operators import Operator, operator
from backlight.graph.thumbnails import Thumbnails
from backlight.models import LoadedModel
from backlight.shapes import Float

PAIRS = ("consecutive", "classes", "all")
Progress = Callable[[str, int, int], None]  # what was done, steps done, steps in all


@dataclass(frozen=True, eq=False)
class Building:
    """What is asked for, checked.

    `fixed`: concepts by layer, where the caller chose them.
    """

    model: nn.Module
    layers: Mapping[str, LayerConcepts]
    operator: Operator
    residual: bool
    pairs: str
    top: int
    shared: int
    order: str
    fixed: Mapping[str, Chosen] = field(default_factory=dict)

    @property
    def between(self) -> list[tuple[str, str]]:
        """The pairs of layers that edges go between, classes apart."""
        return list(combinations(self.layers, 2) if self.pairs == "all" else pairwise(self.layers))


@dataclass(frozen=True, eq=False)
class Coding:
    """An image as the layers' concepts have it, and the importance of them all for the classes."""

    image: Float[Tensor, "1 C H W"]
    coded: Mapping[str, Coded]
    importance: Mapping[str, Edges]
    logits: Float[Tensor, "outputs"]


def build_graph(
    model: nn.Module | LoadedModel,
    image: Float[Tensor, "1 C H W"],
    layers: Mapping[str, Given],
    *,
    classes: Sequence[int] | None = None,
    top: int = 5,
    shared: int = 3,
    attribution: str | Operator = "IntegratedGradients",
    residual: bool = True,
    pairs: str = "consecutive",
    order: str = "importance",
    nodes: Mapping[str, Sequence[int]] | None = None,
    name: str = "",
    names: ClassNames | None = None,
    picture: Float[Tensor, "3 H W"] | None = None,
    fields: bool = True,
    exemplars: int = 0,
    progress: Progress | None = None,
) -> ConceptGraph:
    """The interlayer concept graph of an image (iERF paper, section VI).

    Nodes: of each layer the `top` concepts for each class, by importance sum_p AT(u_pq, logit_c), and the `shared`
    ones; what the other concepts do together ("rest"), and what no concept tells ("residual"); the classes. Edges:
    ICAT, from every node of a layer to the concepts of the next one, and from those of the last to the classes.

    Args:
        image: normalised, as the model takes it.
        layers: by site, a fitted dictionary, (dictionary, coder) or `LayerConcepts`; they are put in the network's
            order.
        classes: outputs; None: the predicted one. The predicted one is always among them.
        attribution: an operator, or its name.
        residual: what no concept tells stays in the layer; False: it is left out, as in the paper, and the later
            layers are those of the reconstruction.
        pairs: between which layers edges go: "consecutive"; "classes": those, and from every layer to the classes;
            "all".
        order: of concepts: by "importance" (those that speak for a class), or "magnitude".
        nodes: concepts by site, in place of the choice: with `other.concepts()` the nodes of another graph.
        name, names: what the image and the classes are called; a `LoadedModel` knows the latter.
        picture: the image in [0, 1], for the pictures of nodes; a `LoadedModel` knows it.
        fields: nodes get pictures of where they come from; needs the picture.
        exemplars: pictures of each concept in other images, where the layer's concepts have them.
        progress: called with (what was done, steps done, steps in all).

    Cost: with Integrated Gradients, for each layer and each pair of layers `n_steps` forward passes of what lies
    between, and as many backward passes a target.

    Raises:
        UnknownNameError: a site, operator, order or choice of pairs.
        SiteError: a site without feature vectors, or that is reached several times.
        InputError: several images, no layers, concepts or classes that there are not.
    """
    if len(image) != 1:
        raise InputError(f"a graph is of one image, got {len(image)}: build_graphs and mean_graph take several")
    return build_graphs(
        model, image, layers, classes=classes, top=top, shared=shared, attribution=attribution, residual=residual,
        pairs=pairs, order=order, nodes=nodes, image_names=[name], names=names,
        pictures=None if picture is None else picture[None], fields=fields, exemplars=exemplars, progress=progress,
    )[0]  # fmt: skip


def build_graphs(
    model: nn.Module | LoadedModel,
    images: Float[Tensor, "N C H W"],
    layers: Mapping[str, Given],
    *,
    classes: Sequence[int] | None = None,
    top: int = 5,
    shared: int = 3,
    attribution: str | Operator = "IntegratedGradients",
    residual: bool = True,
    pairs: str = "consecutive",
    order: str = "importance",
    nodes: Mapping[str, Sequence[int]] | None = None,
    image_names: Sequence[str] | None = None,
    names: ClassNames | None = None,
    pictures: Float[Tensor, "N 3 H W"] | None = None,
    fields: bool = True,
    exemplars: int = 0,
    progress: Progress | None = None,
) -> list[ConceptGraph]:
    """Graphs of several images with the same nodes, so that they can be compared and averaged.

    The concepts are chosen by their mean importance over the images, for the classes that are given and all that are
    predicted. Arguments, cost and errors are those of `build_graph`; images are worked on one at a time.
    """
    work, wanted, outputs = _prepared(
        model, images, layers, classes, nodes, operator(attribution), residual, pairs, top, shared, order
    )
    told = _Told(progress, len(images) * (len(work.layers) + len(work.between) + 1))
    found = [_coded(work, image[None], wanted, row, told) for image, row in zip(images, outputs, strict=True)]
    chosen = _chosen(work, found, wanted)
    about = _about(model, work, classes)
    looks = names or (model.classes if isinstance(model, LoadedModel) else ClassNames())
    graphs = []
    for number, coding in enumerate(found):
        own = {"model": about["model"], "image": image_names[number] if image_names else "", **about}
        between = _between(work, coding, chosen, told)
        view = pictures[number] if pictures is not None else _picture(model, coding.image)
        drawn = Thumbnails(work.model, coding.image, view) if fields and view is not None else None
        graphs.append(assemble(work, coding, chosen, between, wanted, looks, own, drawn, exemplars))
        told("pictures")
    return graphs


class _Told:
    """Counts steps for the caller."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress, self._total, self._done = progress, total, 0

    def __call__(self, what: str) -> None:
        self._done += 1
        if self._progress is not None:
            self._progress(what, self._done, self._total)


def _prepared(
    model: nn.Module | LoadedModel,
    images: Tensor,
    layers: Mapping[str, Given],
    classes: Sequence[int] | None,
    nodes: Mapping[str, Sequence[int]] | None,
    operator: Operator,
    residual: bool,
    pairs: str,
    top: int,
    shared: int,
    order: str,
) -> tuple[Building, list[int], Tensor]:
    """What is asked for, with the layers in the network's order; the classes; the outputs of every image."""
    network = model.model if isinstance(model, LoadedModel) else model
    known = {site: as_layer(one) for site, one in layers.items()}
    if not len(images) or not known:
        raise InputError(f"a graph needs images and layers, got {len(images)} and {len(known)}")
    if pairs not in PAIRS:
        raise UnknownNameError("choice of pairs of layers", pairs, PAIRS)
    seen = [in_order(network, image[None], known) for image in images]
    outputs = torch.cat([found for _, found in seen])
    fixed = {} if nodes is None else _fixed(nodes, known)
    ordered = {site: known[site] for site in seen[0][0]}
    work = Building(network, ordered, operator, residual, pairs, top, shared, order, fixed)
    return work, _classes(classes, outputs), outputs


def _classes(given_classes: Sequence[int] | None, outputs: Float[Tensor, "N outputs"]) -> list[int]:
    """The classes that are given, in their order, then the predicted ones that are not among them."""
    wrong = [one for one in given_classes or () if not 0 <= one < outputs.shape[1]]
    if wrong:
        raise InputError(f"classes {wrong} of a model with {outputs.shape[1]} outputs")
    predicted = outputs.argmax(1).tolist()
    return list(dict.fromkeys((*(given_classes or ()), *predicted)))


def _fixed(nodes: Mapping[str, Sequence[int]], layers: Mapping[str, LayerConcepts]) -> dict[str, Chosen]:
    for site in nodes:
        if site not in layers:
            raise UnknownNameError("layer of this graph", site, layers)
    missing = [site for site in layers if site not in nodes]
    if missing:
        raise InputError(f"nodes= names no concepts of {', '.join(missing)}")
    return {site: given(nodes[site], len(layers[site].atoms), site) for site in layers}


def _coded(work: Building, image: Tensor, classes: list[int], logits: Tensor, told: _Told) -> Coding:
    """The image's codes, and the importance of every concept: the edges of every layer to the classes."""
    ways = {site: (one.encode, one.atoms, one.offset) for site, one in work.layers.items()}
    layouts = {site: one.layout for site, one in work.layers.items() if one.layout is not None}
    coded = code_sites(work.model, image, ways, layouts=layouts)
    importance = {}
    for site in work.layers:
        importance[site] = edges(
            work.model, image, coded[site], None, classes, attribution=work.operator, residual=work.residual
        )
        told(f"importance of {site}")
    return Coding(image, coded, importance, logits)


def _chosen(work: Building, found: Sequence[Coding], classes: list[int]) -> dict[str, Chosen]:
    """The concepts that become nodes, by their mean importance over the images."""
    if work.fixed:
        return dict(work.fixed)
    chosen = {}
    for site in work.layers:
        mean = torch.stack([one.importance[site].values[0].double() for one in found]).mean(0)
        on = torch.stack([(one.coded[site].codes != 0).flatten(0, 1).any(0) for one in found]).any(0)
        chosen[site] = choose(mean, on, classes, top=work.top, shared=work.shared, order=work.order)
    return chosen


def _between(
    work: Building, coding: Coding, chosen: Mapping[str, Chosen], told: _Told
) -> dict[tuple[str, str | None], Edges]:
    """The edges of every pair of layers that is asked for; None stands for the classes."""
    found: dict[tuple[str, str | None], Edges] = {}
    for start, stop in work.between:
        targets = chosen[stop].concepts
        if targets:
            found[start, stop] = edges(
                work.model, coding.image, coding.coded[start], coding.coded[stop], targets,
                attribution=work.operator, residual=work.residual,
            )  # fmt: skip
        told(f"edges {start} -> {stop}")
    sites = list(work.layers)
    for site in sites[-1:] if work.pairs == "consecutive" else sites:
        found[site, None] = coding.importance[site]
    return found


def _picture(model: nn.Module | LoadedModel, image: Float[Tensor, "1 C H W"]) -> Tensor | None:
    """The image in [0, 1], where the model's preprocessing is known."""
    if not isinstance(model, LoadedModel) or image.shape[1] != 3:
        return None
    return model.preprocessing.denormalise(image[0]).clamp(0, 1)


def _about(model: nn.Module | LoadedModel, work: Building, classes: Sequence[int] | None) -> dict[str, Any]:
    return {
        "model": model.name if isinstance(model, LoadedModel) else type(model).__name__,
        "attribution": type(work.operator).__name__,
        "settings": plain(vars(work.operator)),
        "n_steps": getattr(work.operator, "n_steps", None),
        "residual": work.residual,
        "pairs": work.pairs,
        "top": work.top,
        "shared": work.shared,
        "seed": getattr(work.operator, "seed", None),
        "order": "given" if work.fixed else work.order,
        "asked": None if classes is None else list(classes),
        "dictionaries": {site: plain(one.about) for site, one in work.layers.items()},
        "versions": versions(),
    }
