"""Diagnoses of networks where the cause of a confusion is known; what they sum to; ways against all ways there are."""

from __future__ import annotations

import json
import math
from itertools import pairwise, product

import pytest
import torch
from composed_networks import cat, pets, scene
from torch import Tensor

pytest.importorskip("networkx")

from backlight.errors import InputError, UnknownNameError
from backlight.graph.build import build_graph, build_graphs
from backlight.graph.concept_graph import ConceptGraph
from backlight.graph.diagnosis import Diagnosis, diagnose
from backlight.graph.diagnosis_change import ChangeDiagnosis, diagnose_change
from backlight.graph.diagnosis_contrast import contrast_routes, region_of

CAT, BIRD, TRUCK = 0, 1, 2
FUR, EAR, BLUE = "body.mid/0", "body.mid/1", "body.mid/2"


def cat_under_the_sky() -> Tensor:
    """A cat on the left; so much sky in the lower right that the network sees a bird."""
    x = scene({0: (1, 1), 1: (1, 3), 2: (6, 1)})
    x[0, 3, 8:12, 7:12] = 1.0
    return x


def diagnosed(low: list[int] | None = None) -> Diagnosis:
    model = pets()
    return diagnose(model, cat_under_the_sky(), model.concepts(low), true=CAT, predicted=BIRD, name="cat.png")


def test_the_summary_names_the_concept_and_the_place_that_fooled_the_network() -> None:
    model, found = pets(), diagnosed()
    assert int(model(cat_under_the_sky()).argmax()) == BIRD
    assert {one.node for one in found.for_predicted} == {BLUE, "body.low/3"}
    assert {one.node for one in found.for_true} == {FUR, "body.low/0", "body.low/1"}
    assert {one.node for one in found.shared} == {EAR, "body.low/2"}
    assert [way.nodes for way in found.routes_for_predicted] == [("body.low/3", BLUE)]
    assert {way.nodes for way in found.routes_for_true} == {("body.low/0", FUR), ("body.low/1", FUR)}
    told = found.text()
    assert "takes cat.png for class 1 (" in told
    assert "What speaks most for class 1 against class 0, from the last layer to the first" in told
    assert f" is {BLUE}, in the lower right (" in told
    assert "; body.low/3, in the lower right (" in told
    assert f"{FUR}, in the upper left (" in told
    assert f"The strongest route for class 1 against class 0 is body.low/3 -> {BLUE} -> class 1: " in told
    assert "0% at body.low, 0% at body.mid" in told
    assert "more than half" not in told
    blue = next(one for one in found.concepts if one.node == BLUE)
    assert blue.region is not None
    assert blue.region.box[0] >= 7 / 12
    assert blue.region.box[1] >= 6 / 12


def test_numbers_are_those_of_the_network() -> None:
    model, x, found = pets(), cat_under_the_sky(), diagnosed()
    logits = model(x)[0].detach()
    assert found.lead == pytest.approx(float(logits[BIRD] - logits[CAT]))
    codes = model.concepts()["body.mid"].encode(model.body[:4](x)[0].flatten(1).T).mean(0).detach()
    by = {one.node: one for one in found.concepts}
    assert by[BLUE].for_predicted == pytest.approx(float(codes[2]))  # the head is linear, with weights of 1
    assert by[BLUE].for_true == pytest.approx(0, abs=1e-12)
    assert by[FUR].difference == pytest.approx(-float(codes[0]))
    assert by[EAR].difference == pytest.approx(0, abs=1e-12)
    low, mid = found.balances
    assert mid.concepts == pytest.approx(found.lead)
    assert mid.concepts_for == pytest.approx(float(codes[2]))
    assert mid.concepts_against == pytest.approx(-float(codes[0]))
    assert mid.base == pytest.approx(0, abs=1e-9)
    assert abs(low.base) < 0.02 * abs(found.lead) + 0.02
    assert (mid.rest, mid.untold) == pytest.approx((0, 0), abs=1e-9)
    way = found.routes_for_predicted[0]
    edges = found.graph.graph.edges
    assert way.for_predicted == pytest.approx(
        edges["body.low/3", BLUE]["share"] * edges[BLUE, f"output/{BIRD}"]["weight"]
    )
    assert way.for_true == pytest.approx(0, abs=1e-12)


def test_what_no_concept_tells_is_said() -> None:
    found = diagnosed(low=[0, 1, 2])  # sky is in no concept
    low = found.balances[0]
    whole = diagnosed()
    sky = next(one for one in whole.concepts if one.node == "body.low/3")
    assert low.residual == pytest.approx(sky.difference, rel=1e-6)
    assert low.untold == pytest.approx(abs(low.residual) / (abs(low.residual) - low.concepts_against), rel=1e-6)
    assert low.untold > 0.5
    assert "At body.low more than half is untold" in found.text()
    assert "less than half of it" not in found.text()  # the last layer is told
    nodes = {"body.low": [0], "body.mid": [1]}
    few = diagnose(pets(), cat_under_the_sky(), pets().concepts(), true=CAT, predicted=BIRD, nodes=nodes)
    assert "So less than half of it is told by the concepts that are shown" in few.text()
    assert not found.routes_for_predicted
    assert "No route through concepts carries anything to class 1 against class 0." in found.text()


def test_rivals() -> None:
    model = pets()
    wrong = diagnose(model, cat_under_the_sky(), model.concepts(), true=CAT)
    assert (wrong.predicted, wrong.lead > 0) == (BIRD, True)
    right = diagnose(model, cat(), model.concepts(), true=CAT)
    assert (right.predicted, right.lead < 0) == (BIRD, True)
    told, last = right.text(), right.balances[-1]
    assert "class 0 leads class 1 (" in told
    assert f"the lead of class 0 over class 1 ({-last.lead:+.2f} logits) is made of {-last.concepts:+.2f} by" in told
    assert told.index("for class 0 against class 1") < told.index("for class 1 against class 0")
    third = diagnose(model, cat(), model.concepts(), true=TRUCK, predicted=BIRD)
    assert " for class 0 (" in third.text()
    assert third.lead > 0


def test_classes_exchanged_mirror_everything() -> None:
    graph = diagnosed().graph
    one, other = Diagnosis.of(graph, CAT, BIRD), Diagnosis.of(graph, BIRD, CAT)
    assert one.lead == -other.lead
    assert [c.node for c in one.for_predicted] == [c.node for c in other.for_true]
    for a, b in zip(one.routes_for_predicted, other.routes_for_true, strict=True):
        assert (a.nodes, a.difference) == (b.nodes, -b.difference)
    for a, b in zip(one.balances, other.balances, strict=True):
        assert (a.concepts, a.rest, a.residual, a.untold) == pytest.approx(
            (-b.concepts, -b.rest, -b.residual, b.untold)
        )


def drawn_graph(seed: int) -> ConceptGraph:
    """Three layers of four concepts, random shares, three classes."""
    draw = torch.Generator().manual_seed(seed)
    graph = ConceptGraph(layers=[*({"site": site} for site in "abc"), {"site": "output", "classes": True}])
    for site in "abc":
        for q in range(4):
            graph.graph.add_node(f"{site}/{q}", layer=site, kind="concept", label="", importance={})
    for c in range(3):
        graph.graph.add_node(f"output/{c}", layer="output", kind="class", label=f"class {c}", **{"class": c})
    for before, after in ("ab", "bc", ("c", "output")):
        for q, t in product(range(4), range(3 if after == "output" else 4)):
            share, there = torch.rand(2, generator=draw).tolist()
            if there > 0.2:
                share = 2 * share - 1
                graph.graph.add_edge(f"{before}/{q}", f"{after}/{t}", share=share, weight=3 * share)
    return graph


@pytest.mark.parametrize("seed", range(6))
def test_contrast_routes_are_the_largest_of_all(seed: int) -> None:
    graph = drawn_graph(seed)
    edges = graph.graph.edges
    carried = {}
    for a, b, c in product(range(4), repeat=3):
        way = (f"a/{a}", f"b/{b}", f"c/{c}")
        shares = [edges[pair]["share"] if pair in edges else 0.0 for pair in pairwise(way)]
        if min(shares) > 0:
            ends = [
                edges[way[-1], f"output/{t}"]["weight"] if (way[-1], f"output/{t}") in edges else 0.0 for t in (2, 0)
            ]
            carried[way] = math.prod(shares) * (ends[1] - ends[0])
    best = sorted((way for way in carried if carried[way] > 0), key=lambda way: (-carried[way], way))
    found = contrast_routes(graph, 2, 0, 7)
    assert [one.nodes for one in found] == best[:7]
    assert [one.difference for one in found] == pytest.approx([carried[way] for way in best[:7]])


def test_regions() -> None:
    places = [[0.0] * 6 for _ in range(6)]
    assert region_of(places) is None
    assert region_of(None) is None
    places[0][1], places[1][0], places[5][5] = 4.0, -2.0, 1.9
    found = region_of(places)
    assert found is not None
    assert found.box == pytest.approx((0, 0, 2 / 6, 2 / 6))
    assert found.share == pytest.approx(6 / 7.9)
    for row, column, words in (
        (0, 0, "in the upper left"), (0, 2, "at the top"), (0, 5, "in the upper right"), (2, 0, "on the left"),
        (3, 3, "in the middle"), (3, 5, "on the right"), (5, 0, "in the lower left"), (5, 3, "at the bottom"),
    ):  # fmt: skip
        one = [[float((y, x) == (row, column)) for x in range(6)] for y in range(6)]
        found = region_of(one)
        assert found is not None
        assert found.place == words
    found = region_of([[1.0] * 6] * 6)
    assert found is not None
    assert found.place == "all over the picture"


def test_a_change_is_traced_to_what_was_changed() -> None:
    model = pets()
    before, after = scene({0: (1, 1), 1: (1, 3), 2: (6, 1)}), cat_under_the_sky()
    found = diagnose_change(model, before, after, model.concepts())
    assert (found.true, found.predicted) == (CAT, BIRD)
    logits = model(torch.cat([before, after])).detach()
    for side, row in ((found.lead.first, logits[0]), (found.lead.second, logits[1])):
        assert side == pytest.approx(float(row[BIRD] - row[CAT]))
    assert {one.node for one in found.concepts[:2]} == {BLUE, "body.low/3"}
    assert all(abs(one.lead.difference) < 1e-9 for one in found.concepts[2:])
    for one in found.concepts[:2]:
        assert one.region is not None
        assert one.region.place == "in the lower right"
        assert one.activation.first == 0
    low, mid = found.layers
    assert low.moved == pytest.approx(math.sqrt(20 / 12))  # 20 places of sky, 12 of other concepts
    assert mid.after.concepts - mid.before.concepts == pytest.approx(found.lead.difference)
    way = found.routes[0]
    assert way.nodes == ("body.low/3", BLUE)
    assert (way.before.difference, way.after.difference > 0) == (0, True)
    told = found.text()
    assert "whose code changed in the lower right" in told
    assert f"The route that changed the most is body.low/3 -> {BLUE}" in told
    back = ChangeDiagnosis.of(found.after, found.before, CAT, BIRD)
    assert back.lead.difference == -found.lead.difference


def test_an_unchanged_image_has_nothing_to_tell() -> None:
    model = pets()
    found = diagnose_change(model, cat(), cat(), model.concepts(), true=CAT, predicted=BIRD)
    assert found.lead.difference == 0
    assert all(one.moved == 0 for one in found.layers)
    assert all(one.lead.difference == 0 and one.region is None for one in found.concepts)


def test_the_same_twice() -> None:
    one, other = diagnosed(), diagnosed()
    assert one.as_json() == other.as_json()
    assert one.markdown() == other.markdown()
    json.dumps(one.as_json(), allow_nan=False)
    graph = ConceptGraph.from_json(json.loads(json.dumps(one.graph.as_json())))
    assert Diagnosis.of(graph, "0", "1").as_json() == one.as_json()


def test_names_do_not_become_marks() -> None:
    model = pets()
    found = diagnose(model, cat(), model.concepts(), true=CAT, name="a|b_<img>*.png")
    for line in found.markdown().splitlines():
        assert "<img" not in line.replace("\\<img", "")
        if line.startswith("| "):
            assert line.replace("\\|", "").count("|") in (3, 5, 6, 7, 8)


def test_wrong_calls() -> None:
    model = pets()
    with pytest.raises(InputError, match="twice"):
        diagnose(model, cat(), model.concepts(), true=CAT, predicted=CAT)
    with pytest.raises(InputError, match="3 outputs"):
        diagnose(model, cat(), model.concepts(), true=7)
    with pytest.raises(InputError, match="twice"):
        diagnose_change(model, cat(), cat(), model.concepts())
    with pytest.raises(InputError, match="one shape"):
        diagnose_change(model, cat(), cat()[..., :8], model.concepts())
    with pytest.raises(UnknownNameError, match="class of this graph"):
        Diagnosis.of(build_graph(model, cat(), model.concepts(), classes=[0]), 0, 2)
    graphs = build_graphs(model, torch.cat([cat(), cat_under_the_sky()]), model.concepts(), classes=[0, 1], top=1)
    other = build_graph(model, cat(), model.concepts(), classes=[0, 1], nodes={"body.low": [4], "body.mid": [3]})
    with pytest.raises(InputError, match="nodes"):
        ChangeDiagnosis.of(graphs[0], other, 0, 1)


def test_concepts_are_chosen_for_what_tells_the_classes_apart() -> None:
    """The ear is the most important concept of both classes here, and tells nothing: it is only chosen as shared."""
    model, x = pets(), cat_under_the_sky()
    x[0, 2] = 0.0
    x[0, 2, 4:12, 0:5] = 1.0
    few = diagnose(model, x, model.concepts(), true=CAT, predicted=BIRD, top=1, shared=0)
    assert set(few.graph.concepts()["body.mid"]) == {0, 2}
    by_importance = build_graph(model, x, model.concepts(), classes=[CAT, BIRD], top=1, shared=0)
    assert by_importance.concepts()["body.mid"] == [1]
    more = diagnose(model, x, model.concepts(), true=CAT, predicted=BIRD, top=1, shared=1)
    assert set(more.graph.concepts()["body.mid"]) == {0, 1, 2}
    assert {one.node for one in more.concepts if one.shared} == {"body.low/2", EAR}
    assert more.graph.graph.nodes[BLUE]["chosen_for"] == [BIRD]
    given = diagnose(model, x, model.concepts(), true=CAT, predicted=BIRD, nodes={"body.low": [4], "body.mid": [3]})
    assert given.graph.concepts() == {"body.low": [4], "body.mid": [3]}
