"""The app in a real browser: what a user does, and what strangers must not be able to do."""

from __future__ import annotations

import base64
import io
import json
import re
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import backlight
from backlight.app.predictions import best, network_input, outputs
from backlight.data import sample_image

pytest.importorskip("gradio")
ROOT = Path(__file__).resolve().parents[2]


def see(page: Any, place: str, text: str) -> str:
    """Wait until a text stands in a place; what stands there."""
    found = page.locator(place).filter(has_text=text).first
    found.wait_for()
    return str(found.inner_text())


def upload(page: Any, name: str, data: bytes) -> None:
    """Put another picture in place of the one that is there."""
    clear = page.locator("#picture").get_by_role("button", name="Remove Image")
    if clear.count():
        clear.click()
    page.locator("#picture input[type=file]").first.set_input_files(
        {"name": name, "mimeType": "image/png", "buffer": data}
    )


def png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def choose(page: Any, label: str, text: str) -> None:
    """Type into a list to choose from, and take what is found."""
    box = page.get_by_label(label, exact=True)
    box.click()
    box.fill(text)
    page.get_by_role("option", name=text).first.click()


def test_a_picture_is_uploaded_explained_and_looked_into(open_page: Callable[..., Any], running_app: Any) -> None:
    loaded = running_app.workspace.model("efficientnet_lite0")
    picture = sample_image("coffee")
    top = best(loaded, outputs(loaded, network_input(loaded, picture))[0])
    page = open_page()
    upload(page, "coffee.png", png(picture))
    see(page, "#top", str(top[0]))
    assert [label.inner_text() for label in page.locator("#top label").all()] == [str(one) for one in top]

    page.locator("#top label").nth(1).click()  # the second class, by its button
    page.locator("#explain").click()
    assert see(page, "#explain-status", "Explained").endswith(f"Explained: {top[1]}.")
    bare = backlight.SoftPullback(loaded.pixels()).explain(network_input(loaded, picture), top[1].index)
    assert f"{float(bare.scores[0]):.4g}" in see(page, "#explain-table", "SoftPullback")

    _sliders_draw_anew(page)
    _a_click_shows_a_field(page)
    _a_setting_from_the_registry_reaches_the_method(page)


def _sliders_draw_anew(page: Any) -> None:
    """Another percentile draws the same map anew; the table, with the seconds it took, stays."""
    before, table = page.locator("#maps img").nth(1).get_attribute("src"), page.inner_text("#explain-table")
    scale = page.locator("#maps .caption-label").nth(1).inner_text()
    page.get_by_label("number input for Percentile where colours end").fill("95")
    page.wait_for_function("old => document.querySelectorAll('#maps img')[1]?.src !== old", arg=before)
    assert page.locator("#maps .caption-label").nth(1).inner_text() != scale
    assert page.inner_text("#explain-table") == table


def _a_click_shows_a_field(page: Any) -> None:
    page.get_by_role("button", name="Look into a layer").click()
    see(page, "#field-words", "Click a position")
    image = page.locator("#field-picture img")
    box = image.bounding_box()
    image.click(position={"x": box["width"] * 0.9, "y": box["height"] * 0.3})
    words = see(page, "#field-words", "shares of the pixels")
    row, column, height, width = map(int, re.findall(r"\d+", words)[:4])
    assert (row, column) == (int(0.3 * height), int(0.9 * width))
    assert page.locator("#field-row input").input_value() == str(row)
    page.locator("#field-result img").wait_for()


def _a_setting_from_the_registry_reaches_the_method(page: Any) -> None:
    see(page, "#refused", "Left out")
    choose(page, "Methods", "IntegratedGradients")
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Settings of the methods").click()
    with page.expect_response(lambda response: "/run/" in response.url):  # the session has heard of it
        page.get_by_label("n_steps").fill("3")
    page.locator("#explain").click()
    assert "n_steps = 3" in see(page, "#explain-table", "IntegratedGradients")


def test_cancel_stops_the_computation(open_page: Callable[..., Any], running_app: Any) -> None:
    page = open_page()
    see(page, "#refused", "Left out")
    page.locator("#methods [title=Clear]").click()
    choose(page, "Methods", "KernelSHAP")
    page.keyboard.press("Escape")
    page.locator("#explain").click()
    see(page, "#explain-status", "KernelSHAP (1 of 1): pass")
    assert running_app.workspace.lock.locked()
    page.locator("#cancel-explain").click()
    see(page, "#explain-status", "Stopped.")
    assert running_app.workspace.lock.acquire(timeout=20), "the computation goes on"
    running_app.workspace.lock.release()
    assert not page.locator("#maps img").count()


def test_two_users_with_two_models_at_once(open_page: Callable[..., Any], running_app: Any) -> None:
    """Each sees the score of his own model and picture, as the library gives it."""
    asked = {"efficientnet_lite0": "astronaut", "mobilenet_v2": "rocket"}
    try:
        running_app.workspace.model("mobilenet_v2")
    except backlight.errors.BacklightError as error:
        pytest.skip(str(error))
    pages = {}
    for name, picture in asked.items():
        pages[name] = open_page()
        upload(pages[name], f"{picture}.png", png(sample_image(picture)))
        if name != "efficientnet_lite0":
            choose(pages[name], "Model", name)
        see(pages[name], "#about-model", "MobileNetV2" if name == "mobilenet_v2" else "EfficientNet")
    tops = {}
    for name, picture in asked.items():
        loaded = running_app.workspace.model(name)
        tops[name] = best(loaded, outputs(loaded, network_input(loaded, sample_image(picture)))[0])[0]
        see(pages[name], "#top", str(tops[name]))
    for page in pages.values():
        page.locator("#explain").click()
    for name, page in pages.items():
        assert see(page, "#explain-status", "Explained").endswith(f"Explained: {tops[name]}.")
        assert f"{tops[name].logit:.4g}" in see(page, "#explain-table", "SoftPullback")


def _declared(width: int, height: int) -> bytes:
    """A PNG whose header says width x height, of white pixels that pack well."""
    return png(Image.new("1", (width, height), 1))


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_bad_uploads_get_their_sentences(open_page: Callable[..., Any]) -> None:
    page = open_page(width=390)
    whole = png(sample_image("rocket"))
    for name, data, sentence in (
        ("text.png", b"this is no picture", "is not a picture that can be read"),
        ("nothing.png", b"", "zero bytes"),
        ("large.png", _declared(10_000, 10_000), "100 megapixels; at most 50 are taken"),
        ("bomb.png", _declared(30_000, 20_000), "more than 178 megapixels"),
        ("half.png", whole[: len(whole) // 2], "damaged or cut short"),
    ):
        upload(page, name, data)
        words = see(page, ".toast-body", sentence)
        assert "Traceback" not in words
        assert "/tmp" not in words
        page.locator(".toast-close").first.click()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    upload(page, "rocket.png", whole)  # and a good one works after them
    see(page, "#top", "missile")


def test_controls_have_names_and_the_page_can_be_tabbed_through(open_page: Callable[..., Any]) -> None:
    page = open_page()
    nameless = page.evaluate(
        """[...document.querySelectorAll('input, button, textarea, select')].filter(one => one.offsetParent &&
           !(one.labels?.length || one.getAttribute('aria-label') || one.title || one.innerText.trim()))
           .map(one => one.outerHTML.slice(0, 160))"""
    )
    assert not nameless
    page.get_by_label("Class to explain", exact=True).focus()
    page.keyboard.press("ControlOrMeta+a")
    page.keyboard.type("Egyptian")
    page.wait_for_function("document.querySelectorAll('[role=option]').length === 1")
    page.keyboard.press("Enter")
    page.wait_for_function("document.querySelector('#target input').value.includes('Egyptian cat')")
    page.locator("#explain").focus()
    page.keyboard.press("Enter")
    see(page, "#explain-status", "Explained: Egyptian cat")


def test_no_path_of_the_server_can_be_read(running_app: Any, tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    for path in (
        "/etc/passwd",
        ROOT / "pyproject.toml",
        "pyproject.toml",
        secret,
        "../../../etc/passwd",
        "/proc/self/environ",
    ):
        for route in ("gradio_api/file=", "file=", "gradio_api/file/"):
            with pytest.raises(urllib.error.HTTPError) as caught:
                urllib.request.urlopen(f"{running_app.address}{route}{path}")
            assert caught.value.code in (403, 404, 405)


def test_a_client_cannot_name_a_file_of_the_server(running_app: Any, tmp_path: Path) -> None:
    picture = tmp_path / "private.png"
    Image.new("RGB", (8, 8)).save(picture)
    encoded = "data:image/png;base64," + base64.b64encode(picture.read_bytes()).decode()

    def ask(file: dict[str, Any]) -> str:
        data = [{"meta": {"_type": "gradio.FileData"}, "orig_name": "p.png", **file}, "efficientnet_lite0", None, ""]
        url = f"{running_app.address}gradio_api/call/predict"
        request = urllib.request.Request(url, json.dumps({"data": data}).encode(), {"Content-Type": "application/json"})
        event = json.load(urllib.request.urlopen(request))["event_id"]
        return str(urllib.request.urlopen(f"{url}/{event}").read().decode())

    for file in ({"path": str(picture)}, {"path": "/etc/passwd"}, {"path": "x", "url": encoded}):
        answer = ask(file)
        assert "event: error" in answer
        assert "choices" not in answer


def test_maps_given_to_a_client_are_the_librarys(running_app: Any) -> None:
    """The same figures through HTTP, without a browser."""
    client_of = pytest.importorskip("gradio_client")
    loaded = running_app.workspace.model("efficientnet_lite0")
    file = io.BytesIO()
    sample_image("chelsea").save(file, "PNG")
    path = Path(running_app.page.GRADIO_CACHE) / "chelsea.png"
    path.write_bytes(file.getvalue())
    client = client_of.Client(running_app.address, verbose=False)
    given = client_of.handle_file(path)
    status, maps, *_ = client.predict(
        given, "efficientnet_lite0", None, "", -1, ["Saliency"], -1, 1.0, 99.5, api_name="/explain"
    )
    x = network_input(loaded, sample_image("chelsea"))
    with torch.no_grad():
        name = loaded.classes.name(int(loaded.pixels()(x).argmax()))
    assert status.startswith(f"Explained: **{name}")
    from backlight.app.drawing import drawn_map

    bare = backlight.Saliency(loaded.pixels()).attribute(x)
    drawn = drawn_map(loaded.preprocessing.picture(sample_image("chelsea")), bare[0].numpy(), 1.0, 99.5)[0]
    assert np.array_equal(np.asarray(Image.open(maps[1]["image"])), np.asarray(drawn))
