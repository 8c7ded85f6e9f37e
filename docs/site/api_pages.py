"""The API reference: one page a room, of its public names; mkdocstrings writes each from its docstring.

Public is what a room's `__all__` names, what `backlight` itself gives, and what the guides import.
"""

from __future__ import annotations

import inspect
import re
from importlib import import_module
from pathlib import Path

import backlight
from backlight.methods import METHODS

DOCS = Path(__file__).resolve().parents[1]
ROOMS = {
    "engine": "Targets, rules, paths, sites, and `attribute`, which composes them. Guide: [the engine](../engine.md).",
    "rules": "What each operation does with a cotangent. Guide: [the rules](../rules.md).",
    "methods": "Named methods; [a page for each](../methods/index.md).",
    "models": "Networks with their preprocessing and classes. Guide: [models](../models.md).",
    "data": "Pictures, classes, samples.",
    "metrics": "Measures of explanations. Guide: [metrics](../metrics.md).",
    "store": "Arrays that outgrow memory. Guide: [extraction](../extraction.md), [scaling](../scaling.md).",
    "decompositions": "Dictionaries: SAEs, NMF, k-means and others. Guide: [decomposition](../decomposition.md).",
    "contributions": "CODEC. Guide: [contributions](../codec.md).",
    "concepts": "Banks, dictionaries of concepts, CAFE. Guide: [concepts](../concepts.md).",
    "graph": "Concept graphs. Guide: [concept graphs](../concept-graphs.md).",
    "text": "Language models. Guide: [language models](../language-models.md).",
    "retina": "Models of the retina. Guide: [the retina](../retina.md).",
    "robustness": "Explanations under attack. Guide: [robustness](../robustness.md).",
    "evaluation": "Explanations measured on labelled pictures. Guide: [evaluation](../evaluation.md).",
    "viz": "Figures and pages.",
    "errors": "Exceptions; [cause and fix of each](../errors.md).",
}
IMPORT = re.compile(r"^\s*from (backlight(?:\.\w+)+) import (\([^)]*\)|[^\n]+)", flags=re.MULTILINE)


def pages() -> dict[str, str]:
    """`{address: Markdown}` of the list and of every room's page."""
    return {"api/index.md": index(), **{f"api/{room}.md": page(room) for room in ROOMS}}


def index() -> str:
    """The rooms."""
    rows = [f"| [backlight.{room}]({room}.md) | {about} |" for room, about in ROOMS.items()]
    return "\n".join(
        [
            "# API reference",
            "",
            "*The public names, from their docstrings, a page for each room. A room uses only those above it. What "
            "`import backlight` gives itself is marked on its room's page by the shorter import.*",
            "",
            "| room | |",
            "|---|---|",
            *rows,
            "",
        ]
    )


def page(room: str) -> str:
    """One room: its own docstring's first line, then its names."""
    module = import_module(f"backlight.{room}")
    parts = [f"# backlight.{room}", f"*{(module.__doc__ or '').splitlines()[0]}*", ROOMS[room]]
    for name, (owner, short) in names(room).items():
        where = "backlight" if short else owner
        parts += [f"::: {address(owner, name)}", f"`from {where} import {name}`"]
    return "\n\n".join(parts) + "\n"


def names(room: str) -> dict[str, tuple[str, bool]]:
    """`{name: (module to import it from, whether backlight itself has it)}`, in alphabetical order."""
    package = f"backlight.{room}"
    module = import_module(package)
    public = dict.fromkeys(getattr(module, "__all__", ()), package)
    if room == "errors":
        public = {name: package for name, kind in vars(module).items() if inspect.isclass(kind)}
    for text in (path.read_text(encoding="utf-8") for path in [*DOCS.glob("*.md"), DOCS.parent / "README.md"]):
        for owner, imported in IMPORT.findall(text):
            if (owner + ".").startswith(package + "."):
                for name in re.findall(r"\w+", re.sub(r"#.*", "", imported)):
                    public.setdefault(name, owner)
    short = {name for name, owner in backlight._PUBLIC.items() if (owner + ".").startswith(package + ".")}
    public |= {name: backlight._PUBLIC[name] for name in short - set(public)}
    if room == "methods":
        public |= {name: f"backlight.methods.{file}" for name, file in METHODS.items()}
        short |= set(METHODS)
    known = {name: owner for name, owner in public.items() if documented(owner, name)}
    return {name: (known[name], name in short) for name in sorted(known, key=str.lower)}


def documented(owner: str, name: str) -> bool:
    """Whether it is a class or a function of that room with a docstring; registries and constants are in the guides."""
    value = getattr(import_module(owner), name, None)
    defined = (getattr(value, "__module__", None) or "") + "."
    mine = defined.startswith(".".join(owner.split(".")[:2]) + ".")  # what another room defines stands on its page
    return (inspect.isclass(value) or inspect.isfunction(value)) and mine and bool(value.__doc__)


def address(owner: str, name: str) -> str:
    """Where the object is defined."""
    value = getattr(import_module(owner), name)
    return f"{value.__module__}.{value.__qualname__}"
