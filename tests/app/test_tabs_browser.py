"""The tabs of changes, concepts, graphs and contributions in a headless Chromium, driven as a reader does."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from PIL import Image

pytest.importorskip("gradio")
pytest.importorskip("zarr")
pytest.importorskip("sklearn")
pytest.importorskip("networkx")
pytest.importorskip("timm")

from opened_folders import folders

from backlight.app.workspace import Workspace

expect = pytest.importorskip("playwright.sync_api", reason="playwright is not installed").expect

Page = Any


@pytest.fixture(scope="module")
def address(start_app: Callable[[Any], Any]) -> str:
    return start_app(folders().workspace()).address


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Page]:
    """The app with a small network, opened by a new user, with a picture of the class tabby in it."""
    context = browser.new_context(viewport={"width": 1400, "height": 900})
    context.set_default_timeout(60_000)
    found = context.new_page()
    complaints: list[str] = []
    found.on("pageerror", lambda error: complaints.append(str(error)))
    found.goto(address)
    found.locator("#top label").first.wait_for()
    yield found
    context.close()
    assert not complaints


def opened(page: Page, name: str) -> Page:
    page.get_by_role("tab", name=name).click()
    return page


def says(page: Page, place: str, text: str) -> None:
    page.locator(place).get_by_text(text).first.wait_for()


def fill(page: Page, place: str, value: str) -> None:
    field = page.locator(f"{place} input[type=number]")
    field.fill(value)
    field.press("Tab")


def test_ascend_cancel_and_ascend_again(page: Page) -> None:
    page.get_by_role("radio").nth(1).check()
    opened(page, "Change")
    fill(page, "#change-steps", "50")
    page.locator("#change-start").click()
    says(page, "#change-status", "of 50")
    page.locator("#cancel-change").click()
    says(page, "#change-status", "Stopped.")
    assert not page.locator("#change-table table").is_visible()
    fill(page, "#change-steps", "2")
    page.locator("#change-start").click()  # the lock is free again
    page.locator("#change-table table").wait_for()
    says(page, "#sentence-pullback", "after 2 steps")
    says(page, "#sentence-gradient", "after 2 steps")
    source = page.locator("#change-animation img").get_attribute("src")
    with Image.open(io.BytesIO(page.request.get(source).body())) as moving:
        assert (moving.format, moving.n_frames) == ("GIF", 3)
    with page.expect_download() as downloading:
        page.get_by_role("button", name="Download: Pullback Ascent, PNG").or_(
            page.get_by_role("link", name="Download: Pullback Ascent, PNG")
        ).first.click()
    assert downloading.value.suggested_filename == "pullback-ascent.png"


def test_a_wrong_temperature_gets_a_sentence(page: Page) -> None:
    opened(page, "Change")
    field = page.locator("#change-temperature input")
    field.fill("warm")
    field.press("Enter")
    page.locator("#change-start").click()
    page.get_by_text("A temperature is paper, relative, excitation or a number").first.wait_for()


def test_build_a_graph_filter_it_and_diagnose(page: Page) -> None:
    page.get_by_role("radio").nth(1).check()
    opened(page, "Graph")
    page.get_by_text("Coding and attribution").click()
    operator = page.get_by_label("What makes an edge")
    operator.fill("GradientTimesInput")
    operator.press("Enter")
    page.locator("#graph-start").click()
    inner = page.frame_locator("#graph-page iframe")
    inner.get_by_text("test_resnet · the picture").first.wait_for()
    nodes = inner.get_by_text(re.compile(r"\d+ of \d+ nodes")).first  # what its scripts wrote, in a frame of their own
    before = nodes.inner_text()
    page.get_by_label("layer2", exact=True).uncheck()
    expect(nodes).not_to_have_text(before)
    assert int(re.findall(r"\d+", nodes.inner_text())[1]) < int(re.findall(r"\d+", before)[1])
    page.locator("#graph-diagnose").click()
    says(page, "#graph-text", "test_resnet takes the picture for")


def test_modes_of_the_picture_are_taken_away(page: Page) -> None:
    opened(page, "Contributions")
    page.locator("#modes-table table").wait_for()
    page.locator("#modes-active").click()
    page.locator("#modes-table").get_by_text("loading").wait_for()
    page.locator("#control-start").click()
    page.locator("#control-table table").wait_for()
    assert page.locator("#control-table tbody tr").count() >= 5
    says(page, "#modes-status", "of the largest weights set to zero.")


def test_concepts_are_searched_and_looked_at(page: Page) -> None:
    opened(page, "Concepts")
    page.locator("#concepts-table table").wait_for()
    choice = page.locator("#concepts-dictionary input")
    choice.click()
    page.get_by_role("option", name="sae/layer4").click()
    page.locator("#concepts-table").get_by_text("Concepts of test_resnet, layer4").wait_for()
    search = page.get_by_label("Concepts of a class")
    search.fill("zebra")
    search.press("Enter")
    page.get_by_text("Nothing was correlated with a class called 'zebra'").first.wait_for()
    search.fill("tabby")
    search.press("Enter")
    page.locator("#concepts-active").click()
    page.locator("#concepts-table").get_by_text("on the picture").wait_for()
    page.locator("#cafe-start").click()
    says(page, "#cafe-sentence", "of its iERF lies farther than")


def test_two_readers_do_not_mix(browser: Any, address: str) -> None:
    """Each sees the result of their own number of steps."""
    contexts = [browser.new_context(viewport={"width": 1400, "height": 900}) for _ in range(2)]
    pages = [context.new_page() for context in contexts]
    for found in pages:
        found.set_default_timeout(60_000)
        found.goto(address)
        found.locator("#top label").first.wait_for()
        opened(found, "Change")
    for steps, found in zip("13", pages, strict=True):
        fill(found, "#change-steps", steps)
        found.locator("#change-start").click()
    for steps, found in zip("13", pages, strict=True):
        says(found, "#sentence-pullback", f"after {steps} steps")
    for context in contexts:
        context.close()


def test_where_nothing_is_open_the_tabs_say_how(browser: Any, start_app: Callable[[Any], Any]) -> None:
    workspace = Workspace(default_model="test_resnet")
    workspace._models["test_resnet", "", ""] = folders().loaded
    found = browser.new_page()
    found.set_default_timeout(60_000)
    found.goto(start_app(workspace).address)
    for name, option in (("Concepts", "dictionaries"), ("Graph", "dictionaries"), ("Contributions", "contributions")):
        opened(found, name)
        found.locator(f"#{name.lower()}-nothing").get_by_text(f"backlight app --{option}").wait_for()
    found.close()
