"""The page in a headless Chromium, driven as a reader does; skipped where there is no Chromium or no playwright."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from graph_example import HOSTILE, example_graph

from backlight.viz import write_page

Page = Any
Open = Callable[..., Page]


@pytest.fixture(scope="module")
def desktop(browser: Any) -> Any:
    return browser.new_context(viewport={"width": 1400, "height": 900})


@pytest.fixture(scope="module")
def graph() -> dict[str, Any]:
    return example_graph(layers=4, nodes=8, seed=5)


@pytest.fixture
def opened(browser: Any, desktop: Any, graph: dict[str, Any], tmp_path: Path) -> Iterator[Open]:
    """Opens a page; afterwards nothing was fetched, and nothing was complained of."""
    opened, requests, complaints = [], [], []

    def page(of: dict[str, Any] = graph, anchor: str = "", **style: Any) -> Page:
        opened.append(browser.new_context(**style) if style else desktop.new_page())
        found = opened[-1].new_page() if style else opened[-1]
        found.on("request", lambda request: requests.append(request.url))
        found.on("console", lambda message: complaints.append(message.text))
        found.on("pageerror", lambda error: complaints.append(str(error)))
        found.on("dialog", lambda dialog: complaints.append(dialog.message))
        found.goto(write_page(of, tmp_path / "graph.html").as_uri() + anchor)
        return found

    yield page
    for one in opened:
        one.close()
    assert not complaints
    assert requests
    assert all(url.startswith(("file://", "data:")) for url in requests)


def slide(page: Page, control: str, value: float) -> None:
    """Move a slider, and wait until it is drawn."""
    page.evaluate(
        "([id, value]) => { const one = document.getElementById(id); one.value = value;"
        " one.dispatchEvent(new Event('input')); return new Promise(done =>"
        " requestAnimationFrame(() => requestAnimationFrame(done))); }",
        [control, value],
    )


def shown(page: Page) -> list[str]:
    """Ids of the nodes that are to be seen."""
    return page.eval_on_selector_all(".node:not([hidden])", "found => found.map(one => one.title)")


def lit(page: Page) -> set[str]:
    """Of those, the ones that are not dimmed."""
    return set(page.eval_on_selector_all(".node:not([hidden]):not(.off)", "found => found.map(one => one.title)"))


def lines(page: Page) -> int:
    return page.eval_on_selector_all("#base path", "found => found.filter(one => one.style.display !== 'none').length")


def node(page: Page, name: str) -> Any:
    return page.locator(f'.node[title="{name}"]')


def reached(graph: dict[str, Any], start: str, least: float) -> set[str]:
    """The ancestors and descendants of a node, by plain search."""
    found = {start}
    for end, other in (("target", "source"), ("source", "target")):
        front = {start}
        while front:
            front = {
                edge[other] for edge in graph["edges"] if edge[end] in front and abs(edge["share"]) >= least
            }  # fmt: skip
            found |= front
    return found


def concepts(graph: dict[str, Any], layer: str) -> list[dict[str, Any]]:
    return [one for one in graph["nodes"] if one["layer"] == layer and one["kind"] == "concept"]


def test_all_nodes_and_edges_are_there(opened: Open, graph: dict[str, Any]) -> None:
    page = opened()
    assert sorted(shown(page)) == sorted(one["id"] for one in graph["nodes"])
    slide(page, "share", 0)
    assert lines(page) == len(graph["edges"])
    assert "100 % of their mass" in page.locator("#status").inner_text()


def test_the_slider_of_edges_leaves_those_of_at_least_its_share(opened: Open, graph: dict[str, Any]) -> None:
    page = opened()
    for place in (40, 80, 20):
        slide(page, "share", place)
        least = 0.5 * (place / 100) ** 2
        assert lines(page) == sum(abs(edge["share"]) >= least for edge in graph["edges"])
    page.uncheck("#negative")
    slide(page, "share", 20)
    assert lines(page) == sum(edge["share"] >= 0.02 for edge in graph["edges"])


def test_the_slider_of_nodes_keeps_the_most_important(opened: Open, graph: dict[str, Any]) -> None:
    page = opened()
    slide(page, "nodes", 2)
    held = sorted(concepts(graph, "blocks.1"), key=lambda one: -sum(map(abs, one["importance"].values())))
    there = [one for one in shown(page) if one.startswith("blocks.1/")]
    assert set(there) == {held[0]["id"], held[1]["id"], "blocks.1/residual", "blocks.1/rest"}
    page.uncheck("#untold")
    slide(page, "nodes", 1)
    assert [one for one in shown(page) if one.startswith("blocks.1/")] == [held[0]["id"]]
    page.select_option("#of", "242")
    slide(page, "nodes", 1)
    best = max(concepts(graph, "blocks.1"), key=lambda one: abs(one["importance"]["242"]))
    assert [one for one in shown(page) if one.startswith(("blocks.1/", "output/"))] == [best["id"], "output/242"]


def test_the_range_of_layers(opened: Open) -> None:
    page = opened()
    slide(page, "from", 1)
    slide(page, "to", 2)
    assert {one.split("/")[0] for one in shown(page)} == {"blocks.1", "blocks.2"}
    slide(page, "from", 3)
    assert page.input_value("#to") == "3"
    assert {one.split("/")[0] for one in shown(page)} == {"output"}


def test_hover_shows_a_card_with_pictures_and_numbers(opened: Open, graph: dict[str, Any]) -> None:
    page = opened()
    one = concepts(graph, "blocks.1")[0]
    node(page, one["id"]).hover()
    card = page.locator("#card")
    assert card.locator("h2").inner_text() == one["label"]
    assert card.locator(".pair img").get_attribute("src") == one["field"]
    assert card.locator("canvas").count() == 1
    assert card.locator(".strip img").count() == 3
    best = max((e for e in graph["edges"] if e["target"] == one["id"]), key=lambda edge: abs(edge["share"]))
    told = card.locator(".row").first
    assert best["source"] in told.inner_text()
    assert f"{abs(best['share']) * 100:.1f}".rstrip("0").rstrip(".")[:2] in told.locator(".number").first.inner_text()
    ends = sum(one["id"] in (edge["source"], edge["target"]) for edge in graph["edges"])
    slide(page, "share", 0)
    assert page.locator("#over path").count() == ends
    page.mouse.move(5, 5)
    assert page.locator("#over path").count() == 0


def test_a_click_isolates_routes_and_another_brings_all_back(opened: Open, graph: dict[str, Any]) -> None:
    page = opened()
    slide(page, "share", 50)
    one = concepts(graph, "blocks.1")[2]["id"]
    node(page, one).click()
    expected = reached(graph, one, 0.125)
    assert 1 < len(expected) < len(graph["nodes"])
    assert lit(page) == expected
    assert node(page, one).get_attribute("aria-pressed") == "true"
    assert page.url.endswith("#" + one.replace("/", "%2F"))
    slide(page, "share", 60)
    assert lit(page) == reached(graph, one, 0.18)
    node(page, one).click()
    assert lit(page) == {one["id"] for one in graph["nodes"]}
    assert "#" not in page.url


def test_an_address_with_a_node_opens_its_routes(opened: Open, graph: dict[str, Any]) -> None:
    one = concepts(graph, "blocks.2")[1]["id"]
    page = opened(anchor="#" + one.replace("/", "%2F"))
    assert node(page, one).get_attribute("aria-pressed") == "true"
    assert page.locator("#card").get_attribute("data-node") == one


def test_keys_alone_are_enough(opened: Open, graph: dict[str, Any]) -> None:
    page = opened()
    slide(page, "share", 0)
    page.focus("#reset")
    page.keyboard.press("Tab")
    if page.evaluate("document.activeElement.id") == "scroller":  # some versions let what scrolls take the focus
        page.keyboard.press("Tab")
    start = page.evaluate("document.activeElement.title")
    assert start in shown(page)
    page.keyboard.press("ArrowRight")
    best = max((e for e in graph["edges"] if e["source"] == start), key=lambda edge: abs(edge["share"]))
    assert page.evaluate("document.activeElement.title") == best["target"]
    assert page.locator("#card").get_attribute("data-node") == best["target"]
    page.keyboard.press("Enter")
    assert node(page, best["target"]).get_attribute("aria-pressed") == "true"
    page.keyboard.press("Escape")
    assert page.locator('[aria-pressed="true"]').count() == 0
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "search"


def test_search_by_label_class_and_number(opened: Open, graph: dict[str, Any]) -> None:
    page = opened()
    slide(page, "nodes", 1)
    one = concepts(graph, "blocks.0")[3]
    for query in (str(one["concept"]), one["label"], f"#{one['concept']}", f"{one['id']}"):
        page.fill("#search", query)
        slide(page, "nodes", 1)
        hits = page.eval_on_selector_all(".node.hit:not([hidden])", "found => found.map(one => one.title)")
        assert one["id"] in hits, query
    page.fill("#search", str(one["concept"]))
    page.press("#search", "Enter")
    assert page.evaluate("document.activeElement.title").endswith(f"/{one['concept']}")
    page.fill("#search", "tiger cat")
    slide(page, "nodes", 8)
    hits = page.eval_on_selector_all(".node.hit:not([hidden])", "found => found.map(one => one.title)")
    tagged = {n["id"] for n in graph["nodes"] if n["label"] == "tiger cat" or "tiger cat" in [t for t, _ in n["tags"]]}
    assert set(hits) == tagged
    page.focus("#search")
    page.keyboard.press("Escape")
    slide(page, "nodes", 8)
    assert page.locator(".node.hit").count() == 0


def test_a_row_of_the_card_leads_to_its_node(opened: Open) -> None:
    page = opened()
    slide(page, "nodes", 1)
    page.locator(".node.concept:visible").last.hover()
    row = page.locator("#card .row").first
    name = row.get_attribute("title").removeprefix("Go to ")
    row.click()
    assert page.evaluate("document.activeElement.title") == name


@pytest.mark.parametrize("dark", [False, True])
def test_both_schemes_can_be_read(opened: Open, dark: bool) -> None:
    page = opened(color_scheme="dark" if dark else "light")
    ink, paper = page.evaluate(
        "['color', 'backgroundColor'].map(name => getComputedStyle(document.querySelector('.node.concept'))[name]"
        ".match(/[\\d.]+/g).slice(0, 3).map(Number))"
    )
    assert _contrast(ink, paper) > 7
    assert (sum(paper) < sum(ink)) == dark


def _contrast(one: list[float], other: list[float]) -> float:
    """WCAG 2.2's ratio of relative luminances, from 1 to 21."""
    light = []
    for colour in (one, other):
        linear = [c / 255 / 12.92 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour]
        light.append(0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2])
    return (max(light) + 0.05) / (min(light) + 0.05)


def test_a_telephone_scrolls_the_graph_and_not_the_page(opened: Open, graph: dict[str, Any]) -> None:
    page = opened(viewport={"width": 390, "height": 800}, has_touch=True, is_mobile=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.evaluate("document.getElementById('scroller').scrollWidth") > 390
    one = shown(page)[0]
    node(page, one).tap()
    assert page.locator("#card.sheet").is_visible()
    assert page.locator("#card h2").is_visible()
    page.locator("#card .close").tap()
    assert page.locator("#card.sheet").count() == 0


def test_print_shows_all_of_the_graph_on_a_landscape_page(opened: Open) -> None:
    page = opened()
    page.emulate_media(media="print")
    assert not page.locator("#settings").is_visible()
    assert page.evaluate("getComputedStyle(document.getElementById('scroller')).overflow") == "visible"
    assert page.evaluate("document.getElementById('stage').getBoundingClientRect().width") <= 1060
    assert page.pdf().startswith(b"%PDF")


def test_hostile_labels_run_nothing(opened: Open, graph: dict[str, Any]) -> None:
    hostile = {**graph, "about": {"model": HOSTILE, HOSTILE: HOSTILE}}
    hostile["nodes"] = [{**one, "label": HOSTILE, "tags": [[HOSTILE, 1.0]]} for one in graph["nodes"]]
    page = opened(hostile)
    node(page, concepts(graph, "blocks.1")[0]["id"]).click()
    assert page.locator("#card h2").inner_text() == HOSTILE
    assert page.locator("img[src='x']").count() == 0
    assert page.title().startswith("</script x</script>")


def test_a_graph_without_edges_pictures_or_importance(opened: Open) -> None:
    bare = example_graph(layers=2, nodes=4, pictures=False)
    bare["edges"], bare["completeness"], bare["about"] = [], [], {}
    for one in bare["nodes"]:
        for name in ("importance", "map", "tags", "activation"):
            one.pop(name, None)
    page = opened(bare)
    node(page, "blocks.0/residual").click()
    assert len(shown(page)) == 8
    assert "0 of 0 edges" in page.locator("#status").inner_text()


def test_the_largest_picture_stays_fluid(opened: Open) -> None:
    """7 layers of 20 nodes with all edges: the script's part of a change is far below what a reader notices."""
    page = opened(example_graph())
    slide(page, "nodes", 20)
    times = page.evaluate(
        """() => { const took = (id, values) => values.map(value => { const one = document.getElementById(id);
             one.value = value; const start = performance.now(); one.dispatchEvent(new Event('input')); update(true);
             document.getElementById('stage').getBoundingClientRect(); return performance.now() - start; });
           return took('share', [0, 10, 20, 30, 0, 5, 60, 0]); }"""
    )
    assert lines(page) == 2200
    assert sorted(times)[len(times) // 2] < 300  # a tenth of this alone on a desktop machine
