"""An app that runs, started once for all tests in a browser."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from backlight.errors import BacklightError


@dataclass(frozen=True)
class RunningApp:
    """An app that runs: its shared workspace, its page (Gradio's Blocks), and its address."""

    workspace: Any
    page: Any
    address: str


@pytest.fixture(scope="session")
def start_app() -> Iterator[Callable[[Any], RunningApp]]:
    """Start an app with a workspace on a free port; all are stopped in the end."""
    pytest.importorskip("gradio")
    from backlight.app.server import serve

    running: list[RunningApp] = []

    def start(workspace: Any) -> RunningApp:
        page, address = serve(workspace, port=None, wait=False)
        running.append(RunningApp(workspace, page, address))
        return running[-1]

    yield start
    for one in running:
        one.page.close(verbose=False)


@pytest.fixture(scope="session")
def running_app(start_app: Callable[[Any], RunningApp]) -> RunningApp:
    """An app that starts with EfficientNet-Lite0, with two models at most."""
    from backlight.app.workspace import Workspace

    workspace = Workspace(max_models=2)
    try:
        workspace.model(workspace.default_model)
    except BacklightError as error:
        pytest.skip(str(error))
    return start_app(workspace)


@pytest.fixture
def open_page(browser: Any, running_app: RunningApp) -> Iterator[Callable[..., Any]]:
    """Open the app as a new user: `open_page(width=1400)`, once the model has said what it sees.

    Requests that leave the machine fail the test.
    """
    opened: list[Any] = []
    abroad: list[str] = []

    def note(request: Any) -> None:
        if not request.url.startswith((running_app.address, "http://127.0.0.1", "http://localhost", "data:", "blob:")):
            abroad.append(request.url)

    def open_as_new_user(width: int = 1400, height: int = 900) -> Any:
        context = browser.new_context(viewport={"width": width, "height": height})
        context.set_default_timeout(60_000)
        opened.append(context)
        page = context.new_page()
        page.on("request", note)
        page.goto(running_app.address)
        page.locator("#top label").first.wait_for()
        return page

    yield open_as_new_user
    for context in opened:
        context.close()
    assert not abroad
