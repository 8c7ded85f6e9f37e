"""Reports in Chromium, from disk: no scroll sideways, nothing asked of the network, the graph's frame runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("networkx")

from report_networks import small_graph, small_network, small_picture

from backlight.viz import image_report, model_report


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder, loaded = tmp_path_factory.mktemp("pages"), small_network()
    graph = small_graph(loaded)
    made = {
        "pictures": image_report(loaded, {"one": small_picture()}, ["Saliency", "SRD"], graphs=[graph]),
        "network": model_report(loaded, None, ["Saliency", "SoftPullback"]),
    }
    return {name: one.write(folder / f"{name}.html") for name, one in made.items()}


@pytest.mark.parametrize("name", ["pictures", "network"])
@pytest.mark.parametrize("width", [390, 1400])
def test_pages_fit_and_ask_for_nothing(browser: Any, pages: dict[str, Path], name: str, width: int) -> None:
    page = browser.new_page(viewport={"width": width, "height": 800})
    told: list[str] = []
    page.on("console", lambda message: told.append(message.text))
    page.on("pageerror", lambda error: told.append(str(error)))
    page.on("request", lambda request: told.append(request.url) if request.url.startswith("http") else None)
    page.goto(pages[name].as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") == width
    broken = page.evaluate("[...document.images].filter(i => !i.complete || !i.naturalWidth).length")
    assert broken == 0
    if name == "pictures":
        page.locator("iframe").scroll_into_view_if_needed()
        frame = page.frame_locator("iframe")
        frame.locator("#status").filter(has_text="nodes").wait_for(timeout=20_000)
        assert frame.locator("#nodes-layer > *").count() >= 4
    assert told == []
    page.close()


def test_paper_has_the_graphs_picture_and_not_its_frame(browser: Any, pages: dict[str, Path]) -> None:
    page = browser.new_page()
    page.goto(pages["pictures"].as_uri())
    page.emulate_media(media="print")
    assert not page.locator("iframe").is_visible()
    assert page.locator(".paper-only img").is_visible()
    assert not page.locator("nav").is_visible()
    page.close()
