"""The pages that are made when the site is built, and are no files of docs/."""

from __future__ import annotations

import re
from pathlib import Path

import api_pages
import error_pages
import method_pages

from backlight.methods import METHODS

ROOT = Path(__file__).resolve().parents[2]
INCLUDED = {"CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}  # of the repository's root
LINK = re.compile(r"\]\(([^)\s#]+)(#[^)\s]*)?\)")


def addresses() -> set[str]:
    """What `pages` makes, without making it."""
    methods = {"methods/index.md", *(f"methods/{name}.md" for name in METHODS)}
    rooms = {"api/index.md", *(f"api/{room}.md" for room in api_pages.ROOMS)}
    return {*methods, *rooms, "errors.md", *INCLUDED.values()}


def pages() -> dict[str, str]:
    """`{address: Markdown}`."""
    found = {**method_pages.pages(), **error_pages.pages(), **api_pages.pages()}
    for file, address in INCLUDED.items():
        text = (ROOT / file).read_text(encoding="utf-8")
        found[address] = LINK.sub(lambda link: f"]({link[1].removeprefix('docs/')}{link[2] or ''})", text)
    return found
