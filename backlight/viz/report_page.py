"""The page of a report: one HTML file that asks for nothing from elsewhere, for screens and for paper."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from backlight.evaluation.journal import write_text
from backlight.viz.report_markup import Markup, escape, join, table, tag

MANY = 8  # sections, from which the list of contents is long


@dataclass(frozen=True)
class Section:
    """A part of a report. `inline`: styles and scripts of frames in it, which the page permits by their hashes."""

    title: str
    body: Markup
    inline: tuple[str, ...] = ()
    new_page: bool = False


@dataclass(frozen=True)
class Report:
    """A page that was made. `failed`: what could not be shown, and why; `figures`: the files that were written."""

    title: str
    html: str = field(repr=False)
    failed: Mapping[str, str] = field(default_factory=dict)
    figures: tuple[Path, ...] = ()

    def write(self, path: str | os.PathLike[str]) -> Path:
        """Write the file, whole or not at all. Returns its path."""
        file = Path(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, self.html)
        return file


def page(title: str, lead: object, sections: Sequence[Section]) -> str:
    """The page: a title, what it is about, a list of contents, the sections.

    Its Content-Security-Policy permits its own style, pictures within it, and the frames' styles and scripts by their
    hashes; nothing from elsewhere.
    """
    style = resources.files("backlight.viz").joinpath("report_page.css").read_text(encoding="utf-8")
    inline = [part for section in sections for part in section.inline]
    hashes = " ".join(dict.fromkeys(f"'{hash_of(part)}'" for part in (style, *inline)))
    scripts = f"script-src {hashes}" if inline else "script-src 'none'"
    policy = f"default-src 'none'; img-src data:; style-src {hashes}; {scripts}; base-uri 'none'; form-action 'none'"
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="color-scheme", content="light dark"),
        Markup('<link rel="icon" href="data:,">'),
        tag("title", title),
        Markup(f"<style>{style}</style>"),
    )
    names = [f"s{place}" for place in range(len(sections))]
    entries = [tag("li", tag("a", one.title, href=f"#{name}")) for name, one in zip(names, sections, strict=True)]
    contents = tag("nav", tag("ul", *entries), aria_label="Contents", class_="long" if len(sections) > MANY else None)
    body = [
        tag("section", tag("h2", one.title), one.body, id=name, class_="new-page" if one.new_page else None)
        for name, one in zip(names, sections, strict=True)
    ]
    top = tag("header", tag("h1", title), lead)
    return f"<!DOCTYPE html>\n{tag('html', head, tag('body', top, contents, tag('main', join(body))), lang='en')}\n"


def hash_of(text: str) -> str:
    """Of a script or style, as a Content-Security-Policy names it."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def settings_section(settings: Mapping[str, Any]) -> Section:
    """Settings, versions, hashes and seeds: what a reader needs to make the same page again."""
    rows = [(key, _told(value)) for key, value in flat(settings)]
    return Section("How this was made", tag("div", table(("", ""), rows), class_="scroll"), new_page=False)


def failures(failed: Mapping[str, str]) -> Markup:
    """What could not be read or shown, as a list; nothing where there is none."""
    if not failed:
        return Markup("")
    lines = [tag("li", tag("b", name), ": ", reason) for name, reason in failed.items()]
    return tag("div", tag("p", "What could not be shown:"), tag("ul", *lines), class_="wrong", role="note")


def flat(settings: Mapping[str, Any], above: str = "") -> list[tuple[str, Any]]:
    """Nested settings as pairs, keys joined by dots."""
    found: list[tuple[str, Any]] = []
    for key, value in settings.items():
        name = f"{above}.{key}" if above else str(key)
        found += flat(value, name) if isinstance(value, Mapping) and value else [(name, value)]
    return found


def _told(value: Any) -> Markup:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return escape(text)
