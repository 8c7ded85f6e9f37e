"""Photograph the app's tabs and a report: docs/images/app-TAB.webp and report.webp.

    python docs/site/app_pictures.py --dictionaries concepts --contributions decomposed

The folders are those of `backlight app`, made on EfficientNet-Lite0: a dictionary with an encoder of `blocks.5` among
them, and modes of it. Playwright drives a Chromium.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

import backlight
from backlight.app import serve
from backlight.app.workspace import Workspace
from backlight.data import sample_image
from backlight.viz import image_report

IMAGES = Path(__file__).resolve().parents[1] / "images"
WIDTH, PHONE = 1180, 390
WAIT = 90_000  # milliseconds


def explain(page: Any) -> None:
    page.locator("#refused").get_by_text("Left out").wait_for()
    box = page.get_by_label("Methods", exact=True)
    for name in ("SRD", "GuidedGradCAM"):
        box.click()
        box.fill(name)
        box.press("Enter")
        page.wait_for_timeout(500)
    page.locator("#explain").click()
    page.locator("#explain-table table").wait_for()


def change(page: Any) -> None:
    page.get_by_role("radio").nth(1).check()
    page.locator("#change-start").click()
    page.locator("#change-table table").wait_for()


def concepts(page: Any) -> None:
    page.locator("#concepts-table table").wait_for()
    page.locator("#concepts-dictionary input").click()
    page.get_by_role("option").last.click()
    page.wait_for_timeout(3000)
    page.locator("#concepts-active").click()
    page.locator("#concepts-status").get_by_text("largest on the picture").wait_for()
    page.locator("#cafe-start").click()
    page.locator("#cafe-figure img").wait_for()


def graph(page: Any) -> None:
    page.get_by_role("radio").nth(2).check()
    page.locator("#graph-start").click()
    page.frame_locator("#graph-page iframe").locator("svg").first.wait_for()


def contributions(page: Any) -> None:
    page.locator("#modes-table table").wait_for()
    page.locator("#modes-active").click()
    page.locator("#modes-status").get_by_text("largest on the picture").wait_for()
    page.locator("#control-start").click()
    page.locator("#control-table table").wait_for()


TABS: dict[str, Callable[[Any], None]] = {
    "explain": explain,
    "change": change,
    "concepts": concepts,
    "graph": graph,
    "contributions": contributions,
}


def save(data: bytes, name: str) -> None:
    picture = Image.open(BytesIO(data)).convert("RGB")
    picture.save(IMAGES / f"{name}.webp", quality=80)
    print(f"-> {IMAGES / name}.webp")


def main() -> None:
    from playwright.sync_api import sync_playwright

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tabs", nargs="*", metavar="TAB", help=f"of {', '.join(TABS)}, report; default: all")
    parser.add_argument("--dictionaries", type=Path, required=True)
    parser.add_argument("--contributions", type=Path, required=True)
    settings = parser.parse_args()
    names = settings.tabs or [*TABS, "report"]
    workspace = Workspace(dictionaries=settings.dictionaries, contributions=settings.contributions)
    app, address = serve(workspace, port=None, wait=False)
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for name in names:
            for width, height in ((WIDTH, 1900), *(((PHONE, 1700),) if name == "explain" else ())):
                context = browser.new_context(viewport={"width": width, "height": height})
                context.set_default_timeout(WAIT)
                page = context.new_page()
                if name == "report":
                    page.set_content(report())
                else:
                    page.goto(address)
                    page.locator("#top label").first.wait_for()
                    page.get_by_role("tab", name=name.capitalize()).click()
                    page.wait_for_timeout(1000)
                    TABS[name](page)
                page.wait_for_timeout(1500)
                called = name if name == "report" else f"app-{name}" if width == WIDTH else "app-phone"
                save(page.screenshot(), called)
                context.close()
        browser.close()
    app.close(verbose=False)


def report() -> str:
    """A report on a photograph."""
    loaded = backlight.load("efficientnet_lite0")
    return image_report(loaded, {"chelsea": sample_image("chelsea")}, ["SoftPullback", "SRD", "GradCAM"]).html


if __name__ == "__main__":
    main()
