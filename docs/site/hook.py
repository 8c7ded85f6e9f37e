"""MkDocs' hook: the generated pages, links to files outside docs/, and Markdown in which `<` is a character."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

import api_pages
import generated
import method_pages
from markdown import Extension, Markdown
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from backlight.methods import METHODS

LINK = re.compile(r"(?<!!)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s#]+)(#[^)\s]*)?\)")  # [text](target#anchor)


class PlainAngles(Extension):
    """No raw HTML: formulas such as `<v, z>` in docstrings and guides are text."""

    def extendMarkdown(self, md: Markdown) -> None:
        md.preprocessors.deregister("html_block")
        md.inlinePatterns.deregister("html")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    config.markdown_extensions.append(PlainAngles())  # type: ignore[arg-type]
    sections = {title: pages for entry in config.nav or () for title, pages in entry.items()}
    sections["Methods"] += [
        {family: [f"methods/{name}.md" for name in METHODS if method_pages.entries()[name]["family"] == family]}
        for family in method_pages.FAMILIES
    ]
    sections["API"] += [f"api/{room}.md" for room in api_pages.ROOMS]
    if others := sorted(
        path.name for path in Path(config.docs_dir).glob("*.md") if path.name not in listed(config.nav)
    ):
        sections["Guides"].append({"More": others})
    return config


def listed(nav: Any) -> set[str]:
    """The addresses in a navigation."""
    if isinstance(nav, str):
        return {nav}
    return {address for part in (nav.values() if isinstance(nav, dict) else nav) for address in listed(part)}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for address, text in generated.pages().items():
        files.append(File.generated(config, address, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    return with_links_inside(markdown, page.file.src_uri)


def with_links_inside(markdown: str, address: str) -> str:
    """Links to the repository's files outside docs/: to their page where they have one, else their path as code."""

    def inside(found: re.Match[str]) -> str:
        text, target, anchor = found[1], found[2], found[3] or ""
        path = posixpath.normpath(posixpath.join(posixpath.dirname(address), target))
        if "://" in target or not path.startswith("../"):
            return found[0]
        path = path.removeprefix("../")
        if path in generated.INCLUDED:
            return f"[{text}]({posixpath.relpath(generated.INCLUDED[path], posixpath.dirname(address) or '.')}{anchor})"
        return f"{text} (`{path}`)"

    return LINK.sub(inside, markdown)
