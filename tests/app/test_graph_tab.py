"""What the Graph tab shows is what the library gives: the graph, parts of it, a diagnosis; no path of the server."""

from __future__ import annotations

import json
import threading
from html import unescape

import pytest
import torch
from torch import nn

pytest.importorskip("gradio")
pytest.importorskip("zarr")
pytest.importorskip("sklearn")
pytest.importorskip("networkx")
pytest.importorskip("timm")

from opened_folders import SITES, Folders, folders

from backlight.app.computation import Running, Stopped, Watch
from backlight.app.interruption import settled, stoppable, underway
from backlight.app.opened import Opened, by_name, dictionaries
from backlight.app.picture_graphs import (
    Building,
    class_choices,
    diagnosis_of,
    framed,
    graph_of,
    json_file,
    layer_choices,
    layers_of,
    part_of,
)
from backlight.app.predictions import PREDICTED, network_input
from backlight.errors import InputError
from backlight.graph.build import build_graph
from backlight.graph.concept_graph import ConceptGraph
from backlight.graph.diagnosis import diagnose
from backlight.viz.graph_page import graph_page

SETTINGS = Building(top=2, shared=1, attribution="GradientTimesInput")


@pytest.fixture(scope="module")
def made() -> Folders:
    return folders()


@pytest.fixture(scope="module")
def chosen(made: Folders) -> list[Opened]:
    listed = dictionaries(made.workspace())
    return [by_name(listed, "dictionary", f"km/{site}") for site in SITES]


@pytest.fixture(scope="module")
def graph(made: Folders, chosen: list[Opened]) -> ConceptGraph:
    return graph_of(chosen, made.loaded, made.picture(), 281, SETTINGS, Watch())


def normalised(made: Folders) -> torch.Tensor:
    return made.loaded.preprocessing.normalise((network_input(made.loaded, made.picture()) + 1) / 2)


def test_the_graph_is_the_librarys(made: Folders, chosen: list[Opened], graph: ConceptGraph) -> None:
    layers = layers_of(chosen, made.loaded, None)
    bare = build_graph(
        made.loaded, normalised(made), layers, classes=[281], top=2, shared=1, attribution="GradientTimesInput"
    )
    assert set(graph.graph) == set(bare.graph)
    for source, target, edge in bare.graph.edges(data=True):
        assert graph.graph.edges[source, target]["weight"] == pytest.approx(edge["weight"], rel=1e-6, abs=1e-12)
    predicted = int(made.loaded.model(normalised(made)).argmax())
    assert [index for _, index in class_choices(graph)] == [281, predicted]
    assert layer_choices(graph) == list(SITES)


def test_nodes_are_called_by_what_concepts_go_with(graph: ConceptGraph) -> None:
    labels = {held["label"] for _, held in graph.graph.nodes(data=True) if held["kind"] == "concept"}
    assert labels & {"tabby", "tiger cat", "sports car", "domestic cat"}


def test_no_path_of_the_server_leaves_it(made: Folders, graph: ConceptGraph) -> None:
    for text in (json_file(graph).decode(), graph_page(graph)):
        assert str(made.place) not in text
        assert made.place.name not in text
        assert "km/layer4" in text


def test_the_file_is_read_again(graph: ConceptGraph) -> None:
    again = ConceptGraph.from_json(json.loads(json_file(graph)))
    assert set(again.graph.edges) == set(graph.graph.edges)


def test_parts_are_filtered_and_keep_the_classes(graph: ConceptGraph) -> None:
    part = part_of(graph, 0.0, ["layer4"], [281])
    assert part.sites == ["layer4", graph.sites[-1]]
    assert part.classes == [281]
    strong = part_of(graph, 0.3, [], [])
    assert all(abs(share) >= 0.3 for _, _, share in strong.graph.edges(data="share"))
    assert part_of(graph, 0.0, list(SITES), []).graph.number_of_edges() == graph.graph.number_of_edges()


def test_a_page_in_a_frame_is_the_page(graph: ConceptGraph) -> None:
    page = graph_page(graph)
    frame = framed(page, 'a "title" <b>')
    assert frame.startswith('<iframe sandbox="allow-scripts" title="a &quot;title&quot; &lt;b&gt;"')
    inner = frame.partition('srcdoc="')[2].removesuffix('"></iframe>')
    assert '"' not in inner
    assert "<" not in inner
    assert unescape(inner) == page


def test_the_diagnosis_is_the_librarys(made: Folders, chosen: list[Opened]) -> None:
    found = diagnosis_of(chosen, made.loaded, made.picture(), 281, SETTINGS, Watch())
    bare = diagnose(
        made.loaded, normalised(made), layers_of(chosen, made.loaded, None), true=281, top=2, shared=1,
        attribution="GradientTimesInput", name="the picture",
    )  # fmt: skip
    assert (found.true, found.predicted) == (bare.true, bare.predicted)
    assert found.lead == pytest.approx(bare.lead)
    assert found.text() == bare.text()


def test_what_is_missing_gets_a_sentence(made: Folders, chosen: list[Opened]) -> None:
    with pytest.raises(InputError, match="choose the class that the picture shows"):
        diagnosis_of(chosen, made.loaded, made.picture(), PREDICTED, SETTINGS, Watch())
    with pytest.raises(InputError, match="choose at least one layer's dictionary"):
        graph_of([], made.loaded, made.picture(), 281, SETTINGS, Watch())
    two = [chosen[0], by_name(dictionaries(made.workspace()), "dictionary", "sae/layer2")]
    with pytest.raises(InputError, match="holds concepts of 'layer2', as a folder before it") as told:
        graph_of(two, made.loaded, made.picture(), 281, SETTINGS, Watch())
    assert str(made.place) not in str(told.value)
    with pytest.raises(InputError, match="concepts of a layer lie between 1 and 12"):
        Building(top=0)


def test_cancel_stops_a_graph_and_leaves_nothing(made: Folders, chosen: list[Opened]) -> None:
    lock = threading.Lock()
    hooks = dict(nn.modules.module._global_forward_pre_hooks)
    running = Running(lock, lambda watch: graph_of(chosen, made.loaded, made.picture(), 281, Building(), watch))
    words = iter(running)
    next(words)
    words.close()  # type: ignore[attr-defined]  # as Gradio does when the listener is cancelled
    assert running._done.wait(30)
    with pytest.raises(Stopped):
        _ = running.result
    assert lock.acquire(timeout=1)
    assert dict(nn.modules.module._global_forward_pre_hooks) == hooks


def test_a_stop_is_heard_at_the_next_module_of_its_own_thread_alone() -> None:
    model, watch = nn.Sequential(nn.Linear(2, 2), nn.ReLU()), Watch()
    with stoppable(watch):
        model(torch.zeros(1, 2))
        watch.stop()
        other: list[bool] = []
        thread = threading.Thread(target=lambda: other.append(model(torch.zeros(1, 2)) is not None))
        thread.start()
        thread.join()
        assert other == [True]
        with pytest.raises(Stopped):
            model(torch.zeros(1, 2))
    model(torch.zeros(1, 2))


def test_a_line_that_was_under_way_is_settled_as_stopped() -> None:
    assert settled(underway("edges (3 of 4)")) == "Stopped."
    assert settled("Done.") != "Stopped."
    assert settled("") != "Stopped."
