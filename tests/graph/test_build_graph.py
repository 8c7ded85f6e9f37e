"""Graphs of networks whose wiring is known; what their edges sum to; what they do not depend on."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from composed_networks import Composed, cat, exact, pets, scene
from torch import Tensor, nn

pytest.importorskip("networkx")

from backlight.data.classes import ClassNames
from backlight.decompositions import KMeans
from backlight.errors import InputError, SiteError, TargetError, UnknownNameError
from backlight.graph.build import build_graph, build_graphs
from backlight.graph.concept_graph import ConceptGraph
from backlight.graph.importance import choose
from backlight.graph.layers import LayerConcepts
from backlight.graph.mean_graph import mean_graph
from backlight.graph.operators import IntegratedGradients


def strong(graph: ConceptGraph, least: float = 0.1) -> set[tuple[str, str]]:
    return {(a, b) for a, b, share in graph.graph.edges(data="share") if share >= least}


def test_two_textures_and_a_shape_make_a_class() -> None:
    graph = build_graph(pets(), cat(), pets().concepts(), classes=[0, 1], top=5)
    wired = {("body.low/0", "body.mid/0"), ("body.low/1", "body.mid/0"), ("body.low/2", "body.mid/1"),
             ("body.low/3", "body.mid/2"), ("body.mid/0", "output/0"), ("body.mid/1", "output/0"),
             ("body.mid/1", "output/1"), ("body.mid/2", "output/1")}  # fmt: skip
    assert strong(graph) == wired  # precision and recall 1
    assert {n for n, held in graph.graph.nodes(data=True) if held["shared"]} == {"body.low/2", "body.mid/1"}
    assert graph.classes == [0, 1]
    assert [one["site"] for one in graph.layers] == ["body.low", "body.mid", "output"]
    best = graph.routes(0, 3)
    assert {route.nodes[0] for route in best} == {"body.low/0", "body.low/1", "body.low/2"}
    assert graph.mass("body.low", "body.mid", "residual") < 1e-9


def test_wiring_of_random_compositions_is_found() -> None:
    hits = found = true = 0
    for seed in range(5):
        draw = torch.Generator().manual_seed(seed)
        wiring = (torch.rand(8, 12, generator=draw) < 0.2).double()
        head = (torch.rand(3, 8, generator=draw) < 0.4).double()
        model = Composed(wiring, head, seed=seed)
        spots = torch.randperm(16, generator=draw)[:8].tolist()
        lows = torch.randperm(12, generator=draw)[:8].tolist()
        x = scene({q: (4 * (s // 4) + 1, 4 * (s % 4) + 1) for q, s in zip(lows, spots, strict=True)}, 12, 18)
        every = {"body.low": list(range(12)), "body.mid": list(range(8))}
        graph = build_graph(model, x, model.concepts(), classes=[0, 1, 2], nodes=every)
        on = {q for q in range(8) if graph.graph.nodes[f"body.mid/{q}"]["activation"] > 0}
        truth = {(f"body.low/{q}", f"body.mid/{t}") for t in on for q in lows if wiring[t, q]}
        truth |= {(f"body.mid/{t}", f"output/{c}") for c in range(3) for t in on if head[c, t]}
        got = strong(graph, 0.05)
        hits, found, true = hits + len(truth & got), found + len(got), true + len(truth)
    assert hits / found >= 0.95  # precision
    assert hits / true >= 0.95  # recall


@pytest.mark.parametrize("pairs", ["consecutive", "classes", "all"])
def test_edges_into_a_node_sum_to_what_it_reaches(pairs: str) -> None:
    model = pets()
    few = model.concepts(low=[0, 1, 2])  # sky is in no concept
    graph = build_graph(model, cat(), few, classes=[0, 1], top=2, shared=0, pairs=pairs)
    assert len(graph.completeness) == {"consecutive": 2, "classes": 3, "all": 3}[pairs]
    for one in graph.completeness:
        for target, reached, base, gap in zip(one["targets"], one["reached"], one["base"], one["gap"], strict=True):
            within = [(s, e) for s, e in graph.edges_into(target) if graph.graph.nodes[s]["layer"] == one["source"]]
            assert math.fsum(e["weight"] for _, e in within) == pytest.approx(reached - base + gap, abs=1e-12)
            assert abs(gap) < 0.02 * abs(reached - base) + 1e-12
            assert math.fsum(abs(e["share"]) for _, e in within) == pytest.approx(1)
    assert abs(graph.graph.edges["body.low/residual", "body.mid/2"]["share"]) > 0.9  # which is made of sky


def test_residual_is_what_the_missing_concept_would_do() -> None:
    model = pets()
    whole = build_graph(model, cat(), model.concepts(), classes=[1])
    part = build_graph(model, cat(), model.concepts(low=[0, 1, 2]), classes=[1], nodes={
        "body.low": [0, 1, 2], "body.mid": whole.concepts()["body.mid"]})  # fmt: skip
    for target in whole.of_layer("body.mid", ["concept"]):
        by_sky = whole.graph.get_edge_data("body.low/3", target, {"weight": 0.0})["weight"]
        untold = part.graph.get_edge_data("body.low/residual", target, {"weight": 0.0})["weight"]
        assert untold == pytest.approx(by_sky, abs=1e-9)
    without = build_graph(model, cat(), model.concepts(low=[0, 1, 2]), classes=[1], residual=False)
    assert "body.low/residual" not in without.graph


def test_importance_is_the_attribution_to_the_logit_and_what_is_not_chosen_is_the_rest() -> None:
    model = pets()
    graph = build_graph(model, cat(), model.concepts(), classes=[0], top=1)
    nodes = graph.graph.nodes
    logit = model(cat())[0, 0].item()
    assert nodes["output/0"]["activation"] == pytest.approx(logit)
    told = sum(nodes[n]["importance"]["0"] for n in graph.of_layer("body.mid"))
    assert told == pytest.approx(logit)  # the head is linear, and 0 without concepts
    assert nodes["body.mid/rest"]["importance"]["0"] == pytest.approx(
        logit - nodes[graph.of_layer("body.mid")[0]]["importance"]["0"]
    )


def test_the_edge_of_the_rest_is_net_and_says_what_cancels_in_it() -> None:
    model = pets()
    with torch.no_grad():
        model.head.weight[0] -= 1.5 * model.head.weight[1]  # cat: fur - ear / 2 - blue * 3 / 2
    by = build_graph(model, cat(), model.concepts(), classes=[0], nodes={"body.low": [0], "body.mid": [1, 2]})
    ear, blue = (by.graph.edges[f"body.mid/{q}", "output/0"]["weight"] for q in (1, 2))
    fur = by.graph.edges["body.mid/rest", "output/0"]
    assert (ear < 0, blue < 0, fur["weight"] > 0, fur["gross"] == fur["weight"]) == (True,) * 4
    few = build_graph(model, cat(), model.concepts(), classes=[0], nodes={"body.low": [0], "body.mid": [1]})
    rest = few.graph.edges["body.mid/rest", "output/0"]
    assert rest["weight"] == pytest.approx(fur["weight"] + blue)
    assert rest["gross"] == pytest.approx(fur["weight"] - blue)
    assert rest["share"] == pytest.approx(rest["weight"] / (abs(rest["weight"]) - ear))


def test_layers_outside_a_pair_have_no_influence() -> None:
    model = pets()
    nodes = {"body.low": [0, 1, 2], "body.mid": [0, 1]}
    before = build_graph(model, cat(), model.concepts(), classes=[0], nodes=nodes)
    with torch.no_grad():
        model.head.weight.mul_(-3)
    after = build_graph(model, cat(), model.concepts(), classes=[0], nodes=nodes)
    for a, b, held in before.graph.edges(data=True):
        if b.startswith("body.mid"):
            assert after.graph.edges[a, b] == held


def test_an_image_does_not_know_its_mates_and_the_mean_is_over_them() -> None:
    model, other = pets(), scene({0: (5, 5), 2: (1, 1), 3: (4, 8), 4: (9, 2)})
    both = build_graphs(
        model, torch.cat([cat(), other]), model.concepts(), classes=[0, 1], top=3, image_names=["a", "b"]
    )
    nodes = both[0].concepts()
    for graph, x in zip(both, (cat(), other), strict=True):
        alone = build_graph(model, x, model.concepts(), classes=[0, 1], nodes=nodes)
        assert {n: h["importance"] for n, h in alone.graph.nodes(data=True) if h["kind"] != "class"} == {
            n: h["importance"] for n, h in graph.graph.nodes(data=True) if h["kind"] != "class"}  # fmt: skip
        assert dict(alone.graph.edges) == dict(graph.graph.edges)
    mean = mean_graph(both)
    assert mean.about["images"] == ["a", "b"]
    for a, b, held in mean.graph.edges(data=True):
        weights = [one.graph.get_edge_data(a, b, {"weight": 0.0})["weight"] for one in both]
        assert held["weight"] == pytest.approx(sum(weights) / 2)
        assert held["count"] == 2
    for target in mean.of_layer("body.mid", ["concept"]):
        assert math.fsum(abs(e["share"]) for _, e in mean.edges_into(target)) == pytest.approx(1)
    for one in mean.completeness:
        for target, reached, base, gap in zip(one["targets"], one["reached"], one["base"], one["gap"], strict=True):
            total = math.fsum(e["weight"] for _, e in mean.edges_into(target))
            assert total == pytest.approx(reached - base + gap)
    ConceptGraph.from_json(mean.as_json())


def test_means_of_other_nodes_are_over_the_graphs_that_have_them() -> None:
    model = pets()
    a = build_graph(model, cat(), model.concepts(), nodes={"body.low": [0, 1], "body.mid": [0]})
    b = build_graph(model, cat(), model.concepts(), nodes={"body.low": [1, 2], "body.mid": [0]})
    mean = mean_graph([a, b])
    assert [mean.graph.nodes[f"body.low/{q}"]["count"] for q in (0, 1, 2)] == [1, 2, 1]
    only = a.graph.edges["body.low/0", "body.mid/0"]["weight"]
    assert mean.graph.edges["body.low/0", "body.mid/0"]["weight"] == pytest.approx(only)
    assert "body.low/0" not in mean_graph([a, b], min_count=2).graph
    with pytest.raises(InputError, match="attribution"):
        mean_graph([a, build_graph(model, cat(), model.concepts(), attribution="GradientTimesInput")])
    with pytest.raises(InputError, match="at least one"):
        mean_graph([])


def test_nothing_is_left_behind_and_nothing_is_drawn() -> None:
    model = pets()
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    model.train()
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = build_graph(model, cat(), model.concepts())
    assert torch.equal(torch.get_rng_state(), before)
    assert model.training
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    torch.manual_seed(6)
    again = build_graph(model, cat(), model.concepts())
    assert again.as_json() == first.as_json()


def test_layers_are_put_in_order_and_wrong_ones_are_named() -> None:
    model = pets()
    layers = model.concepts()
    backwards = dict(reversed(list(layers.items())))
    assert build_graph(model, cat(), backwards).sites == ["body.low", "body.mid", "output"]
    with pytest.raises(UnknownNameError, match=r"body\.low"):
        build_graph(model, cat(), {"body.lo": layers["body.low"]})
    with pytest.raises(InputError, match="build_graphs"):
        build_graph(model, torch.cat([cat(), cat()]), layers)
    with pytest.raises(InputError, match="outputs"):
        build_graph(model, cat(), layers, classes=[9])
    with pytest.raises(InputError, match="images and layers"):
        build_graph(model, cat(), {})
    with pytest.raises(UnknownNameError, match="consecutive"):
        build_graph(model, cat(), layers, pairs="consecutiv")
    with pytest.raises(UnknownNameError, match="magnitude"):
        build_graph(model, cat(), layers, order="magnitud")
    with pytest.raises(InputError, match=r"\[7\]"):
        build_graph(model, cat(), layers, nodes={"body.low": [7], "body.mid": [0]})
    with pytest.raises(InputError, match=r"body\.mid"):
        build_graph(model, cat(), layers, nodes={"body.low": [0]})
    with pytest.raises(InputError, match="LayerConcepts"):
        build_graph(model, cat(), {"body.low": "low"})  # type: ignore[dict-item]
    with pytest.raises(TargetError, match="classes"):
        build_graph(model.body[:3], cat(), {"low": layers["body.low"]})


def test_a_layer_that_is_called_twice_is_refused() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(self.layer(x))

    with pytest.raises(SiteError, match="layer"):
        build_graph(Twice(), torch.randn(1, 4), {"layer": exact(torch.eye(4))})


def test_fitted_dictionaries_and_coders() -> None:
    model, x = pets(), cat()
    rows = model.body[:1](x)[0].detach().flatten(1).T.float()
    fitted = KMeans(n_modes=4, seed=1).fit(rows)
    graph = build_graph(model, x, {"body.low": fitted})
    assert graph.layers[0]["atoms"] == 4
    assert graph.about["dictionaries"]["body.low"]["dictionary"] == "KMeans"

    class Twofold:
        def encode(self, vectors: Tensor, dictionary: KMeans) -> Tensor:
            return 2 * dictionary.encode(vectors)

    doubled = build_graph(model, x, {"body.low": (fitted, Twofold())}, nodes=graph.concepts())
    for node in graph.of_layer("body.low", ["concept"]):
        assert doubled.graph.nodes[node]["activation"] == 2 * graph.graph.nodes[node]["activation"]


def test_tags_names_exemplars_and_progress() -> None:
    model = pets()
    told: list[tuple[str, int, int]] = []
    layers: dict[str, Any] = model.concepts()
    layers["body.low"] = LayerConcepts(
        layers["body.low"].atoms, layers["body.low"].encode, tags={0: [("stripes", 0.9)]},
        exemplars=lambda concept, count: [{"image": f"{concept}", "crop": "data:"}] * count,
    )  # fmt: skip
    graph = build_graph(
        model, cat(), layers, name="a cat", names=ClassNames(("cat", "bird", "truck")), exemplars=2,
        progress=lambda *step: told.append(step),
    )  # fmt: skip
    held = graph.graph.nodes["body.low/0"]
    assert (held["label"], held["tags"]) == ("stripes", [["stripes", 0.9]])
    assert held["exemplars"] == [{"image": "0", "crop": "data:"}] * 2
    assert graph.graph.nodes["body.low/1"]["label"] == "concept 1"
    assert graph.graph.nodes["output/0"]["label"] == "cat"
    assert graph.about["classes"][0]["name"] == "cat"
    assert [done for _, done, _ in told] == list(range(1, told[0][2] + 1))


def test_tokens_keep_their_class_token() -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, depth=3, embed_dim=16, num_heads=2, num_classes=4
    ).eval()
    x = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    draw = torch.Generator().manual_seed(2)
    # a layer norm does not see how large a token is: from a base of 0 all happens in the first step
    layers = {site: LayerConcepts(torch.randn(6, 16, generator=draw), encode=lambda v: (v[:, :6] + 1).relu(),
                                  offset=torch.randn(16, generator=draw))
              for site in ("blocks.0", "blocks.2")}  # fmt: skip
    graph = build_graph(model, x, layers, classes=[1], attribution=IntegratedGradients(n_steps=40), picture=x[0])
    for node in graph.of_layer("blocks.2", ["concept"]):
        held = graph.graph.nodes[node]
        assert (len(held["map"]), len(held["map"][0]), len(held["prefix"])) == (4, 4, 1)
        assert held["field"].startswith("data:image/png;base64,")
        mean = (sum(map(sum, held["map"])) + held["prefix"][0]) / 17
        assert held["activation"] == pytest.approx(mean, rel=1e-3)
    assert graph.layers[0]["grid"] == [4, 4]
    for one in graph.completeness:
        for reached, base, gap in zip(one["reached"], one["base"], one["gap"], strict=True):
            assert abs(gap) < 0.05 * abs(reached - base) + 1e-3
    into = dict(graph.edges_into("output/1"))
    assert set(into) == {*graph.of_layer("blocks.2")}


def test_choice_of_concepts() -> None:
    importance = torch.tensor([[3.0, 2.0, -9.0, 0.5, 8.0], [0.1, 2.0, 1.0, 5.0, 8.0]])
    on = torch.tensor([True, True, True, True, False])
    found = choose(importance, on, (7, 9), top=1, shared=0)
    assert dict(found.chosen_for) == {3: (9,), 0: (7,)}  # 5.5 and 3.1 in all; the last is nowhere on
    assert not found.shared
    found = choose(importance, on, (7, 9), top=1, shared=1)
    assert dict(found.chosen_for) == {3: (9,), 1: (), 0: (7,)}
    assert found.shared == {1}  # the largest minimum
    assert set(choose(importance, on, (7, 9), top=2, shared=0).shared) == {1}  # in both lists
    assert choose(importance, on, (7, 9), top=1, shared=0, order="magnitude").concepts == [2, 3]
    assert choose(importance[:1], on, (7,), top=9).concepts == [0, 1, 3]  # what speaks against it is none
    with pytest.raises(InputError, match="not negative"):
        choose(importance, on, (7, 9), top=-1)
