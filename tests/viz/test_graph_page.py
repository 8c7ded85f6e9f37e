"""The page of a concept graph, as text: what is embedded, and that nothing in it can get out of its element."""

from __future__ import annotations

import base64
import copy
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from graph_example import CLASSES, HOSTILE, example_graph

from backlight.errors import InputError
from backlight.viz import graph_page, write_page


class Elements(HTMLParser):
    """Tags with their attributes, and the text of script and style elements."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.texts.append((tag, ""))

    def handle_endtag(self, tag: str) -> None:
        self.texts.append(("", ""))

    def handle_data(self, data: str) -> None:
        if self.texts:
            self.texts[-1] = (self.texts[-1][0], self.texts[-1][1] + data)

    def text(self, tag: str) -> list[str]:
        return [text for one, text in self.texts if one == tag]


def embedded(page: str) -> dict[str, Any]:
    return json.loads(Elements(page).text("script")[0])


@pytest.fixture(scope="module")
def graph() -> dict[str, Any]:
    return example_graph(layers=3, nodes=5, seed=2)


@pytest.fixture
def hostile(graph: dict[str, Any]) -> dict[str, Any]:
    """Hostile text wherever text may stand."""
    found = copy.deepcopy(graph)
    renamed = {node["id"]: node["id"] + HOSTILE for node in found["nodes"]}
    for node in found["nodes"]:
        node["id"], node["label"] = renamed[node["id"]], HOSTILE
        node["tags"] = [[HOSTILE, 0.5]]
        node["importance"] = {HOSTILE: 1.0}
        for one in node.get("exemplars", []):
            one["image"] = HOSTILE
    for edge in found["edges"]:
        edge["source"], edge["target"] = renamed[edge["source"]], renamed[edge["target"]]
    found["about"] |= {"model": HOSTILE, HOSTILE: {"a": [HOSTILE]}}
    return found


def test_everything_that_is_drawn_is_embedded(graph: dict[str, Any]) -> None:
    data = embedded(graph_page(graph))
    assert [node["id"] for node in data["nodes"]] == [node["id"] for node in graph["nodes"]]
    given = {(e["source"], e["target"]): (e["weight"], e["share"]) for e in graph["edges"]}
    found = {(data["nodes"][s]["id"], data["nodes"][t]["id"]): (w, part) for s, t, w, part in data["edges"]}
    assert found.keys() == given.keys()
    np.testing.assert_allclose([found[key] for key in given], list(given.values()), rtol=1e-5)
    sizes = [abs(share) for *_, share in data["edges"]]
    assert sizes == sorted(sizes)
    assert dict(data["classes"]) == CLASSES | {"300": "class 300", "301": "class 301"}
    for layer, column in zip(graph["layers"], data["layers"], strict=True):
        own = {node["id"] for node in graph["nodes"] if node["layer"] == layer["site"]}
        assert {data["nodes"][place]["id"] for place in column["nodes"]} == own
    assert data["nodes"][0]["crop"] == graph["nodes"][0]["field"]


def test_maps_keep_their_values_to_half_a_step(graph: dict[str, Any]) -> None:
    graph = copy.deepcopy(graph)
    graph["nodes"][0]["map"] = [[0.0, -3.0], [1.0, 0.011]]
    for node, held in zip(graph["nodes"], embedded(graph_page(graph))["nodes"], strict=True):
        if node.get("map") is None:
            assert held["map"] is None
            continue
        values, kept = np.array(node["map"]), held["map"]
        levels = np.frombuffer(base64.b64decode(kept["levels"]), np.int8).reshape(kept["h"], kept["w"])
        assert np.abs(levels * kept["scale"] / 127 - values).max() <= 0.5 * kept["scale"] / 127 * 1.001
        assert kept["on"] == (values != 0).sum()


def test_completeness_is_told_by_what_is_missed(graph: dict[str, Any]) -> None:
    graph = copy.deepcopy(graph)
    graph["completeness"] = [
        {"source": "a", "target": "b", "reached": [1.0, -2.0], "base": [0.0, -1.0], "gap": [0.1, -0.1]},
        {"source": "a", "target": "c", "reached": [], "base": [], "gap": []},
    ]
    assert [one["missed"] for one in embedded(graph_page(graph))["completeness"]] == [0.1, None]
    graph["completeness"] = [{"source": "a", "target": "b", "reached": [1.0]}]
    with pytest.raises(InputError, match="gap"):
        graph_page(graph)


def test_hostile_text_stays_text(hostile: dict[str, Any]) -> None:
    page = graph_page(hostile, title=HOSTILE)
    elements = Elements(page)
    assert sum(tag == "script" for tag, _ in elements.tags) == 2
    assert not any("onerror" in attributes for _, attributes in elements.tags)
    assert not any(tag == "img" for tag, _ in elements.tags)
    raw = page.split('id="graph">', 1)[1].rsplit("</script>\n<script>", 1)[0]
    assert json.loads(raw)
    assert not set("<>&\u2028") & set(raw)
    data = embedded(page)
    assert {node["label"] for node in data["nodes"]} == {HOSTILE}
    assert data["nodes"][0]["tags"][0][0] == HOSTILE
    assert elements.text("title")[0] == HOSTILE


def test_nothing_can_be_fetched_and_only_our_own_script_runs(graph: dict[str, Any]) -> None:
    page = graph_page(graph)
    elements = Elements(page)
    policy = next(held["content"] for tag, held in elements.tags if tag == "meta" and "http-equiv" in held)
    assert policy is not None
    for part in ("default-src 'none'", "img-src data:;", "base-uri 'none'", "form-action 'none'"):
        assert part in policy
    for kind, text in (("script", elements.text("script")[1]), ("style", elements.text("style")[0])):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    outside = page.replace("http://www.w3.org/2000/svg", "")  # a name, not an address
    assert not re.search(r"(https?:)?//[a-z]+\.|@import|fetch\(|XMLHttp", outside)
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(", outside)


def test_the_picture_in_about_must_be_a_data_url(graph: dict[str, Any]) -> None:
    crop = graph["nodes"][0]["field"]
    assert embedded(graph_page({**graph, "about": {"picture": crop}}))["picture"] == crop
    with pytest.raises(InputError, match="data URL"):
        graph_page({**graph, "about": {"picture": "file:///etc/passwd"}})


def test_a_graph_object_is_taken_by_its_json(graph: dict[str, Any], tmp_path: Path) -> None:
    class Held:
        def as_json(self) -> dict[str, Any]:
            return graph

    path = write_page(Held(), tmp_path / "graph.html", title="held")
    assert path.read_text(encoding="utf-8") == graph_page(graph, title="held")


def test_the_same_graph_gives_the_same_page(graph: dict[str, Any]) -> None:
    assert graph_page(graph) == graph_page(copy.deepcopy(graph))
