"""What the server's owner opened: dictionaries and decompositions in the folders of the workspace, by name."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from backlight.app.workspace import Workspace
from backlight.contributions.decomposed import REPORT, RUN
from backlight.decompositions.folder import read_json
from backlight.errors import BacklightError, InputError, UnknownNameError
from backlight.models import LoadedModel

T = TypeVar("T")
PFVS = "pfvs"  # the quantity of concepts; others are of contributions
PATH = re.compile(r"(['\"]?)(?:/[^\s'\"/:;,]+)+/([^\s'\"/:;,]+)\1")


@dataclass(frozen=True)
class Opened:
    """A fitted dictionary or decomposition of one layer. `name`: what users call it; `model`: of whose layer `site`."""

    name: str
    folder: Path
    site: str
    model: str
    method: str

    @property
    def label(self) -> str:
        """The name, and what it is of."""
        return f"{self.name} · {self.method} of {self.model}, {self.site}"


def dictionaries(workspace: Workspace) -> list[Opened]:
    """Fitted concepts, one a layer, that the server's owner opened."""
    names = workspace.dictionary_names()
    return [one for one, quantity in _found((name, workspace.dictionary(name)) for name in names) if quantity == PFVS]


def decompositions(workspace: Workspace) -> list[Opened]:
    """Decomposed contributions, one a layer, that the server's owner opened."""
    names = workspace.contribution_names()
    return [one for one, quantity in _found((name, workspace.contribution(name)) for name in names) if quantity != PFVS]


def by_name(listed: Iterable[Opened], kind: str, name: str | None) -> Opened:
    """One of those that are listed: no other folder can be reached. Raises `UnknownNameError`, `InputError`."""
    known = {one.name: one for one in listed}
    if not name:
        raise InputError(f"choose a {kind} first")
    if name not in known:
        raise UnknownNameError(kind, name, known)
    return known[name]


def number_of(kind: str, given: Any) -> int:
    """The number of a mode or concept that was chosen, or typed. Raises `InputError` for anything else."""
    text = "" if given is None else str(given).strip()
    if not text.isdecimal():
        raise InputError(
            f"choose a {kind} first, or type its number" if not text else f"{text!r} is no {kind}'s number"
        )
    return int(text)


def check_model(one: Opened, name: str) -> None:
    """Raises `InputError` where the model chosen above is another one."""
    if name.rpartition(":")[2] != one.model.rpartition(":")[2]:
        raise InputError(
            f"{one.name} is of {one.model}, and the model chosen above is {name}: choose {one.model} there"
        )


@dataclass(frozen=True)
class Choices(Generic[T]):
    """What the listeners of a tab share: the folders that are open, nothing of a user's.

    `kind`: what a user calls one.
    """

    workspace: Workspace
    there: Sequence[Opened]
    kind: str
    open: Callable[[Opened], T]

    def opened(self, name: str | None) -> T:
        """The one that was chosen."""
        return self.open(by_name(self.there, self.kind, name))

    def with_model(self, name: str | None, model: str, weights: str | None, names: str) -> tuple[LoadedModel, T]:
        """The network chosen above, which has to be the one of what was chosen here."""
        one = by_name(self.there, self.kind, name)
        check_model(one, model)
        return self.workspace.model(model, weights, names), self.open(one)


@contextmanager
def without_paths() -> Iterator[None]:
    """Errors say names of files and folders, not where on the server they lie."""
    try:
        yield
    except BacklightError as error:
        told = PATH.sub(r"\1\2\1", str(error))
        if told == str(error):
            raise
        raise InputError(told) from None


def _found(entries: Iterable[tuple[str, Path]]) -> Iterator[tuple[Opened, str]]:
    """Each entry itself, or those in it, as commands write them: a folder a layer."""
    for name, folder in entries:
        inner = sorted(path.parent for path in folder.glob(f"*/{RUN}")) if folder.is_dir() else []
        for place in [folder] if (folder / RUN).is_file() else inner:
            if not (place / REPORT).is_file():
                continue
            try:
                identity: dict[str, Any] = read_json(place / RUN)["identity"]
                data = identity["data"]
                model = data["model"] if "model" in data else data["store"]["model"]["name"]
                title = name if place == folder else f"{name}/{place.name}"
                yield Opened(title, place, identity["site"], str(model), identity["method"]), identity["quantity"]
            except (BacklightError, KeyError, TypeError):
                continue  # what is no result of a command is not offered
