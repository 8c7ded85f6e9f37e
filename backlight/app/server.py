"""The page with its tabs, and the server that runs it on this machine alone unless told otherwise."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import gradio as gr

from backlight.app import change, concepts, contributions, explain, graph
from backlight.app.header import header
from backlight.app.workspace import Workspace
from backlight.errors import InputError

TABS = (explain, change, concepts, graph, contributions)
WAITING = 32  # requests in the queue; the next one is told to come back
SESSIONS = 100  # whose results are kept; those used longest ago go
KEEP = (600, 3600)  # seconds: every ten minutes, files older than an hour go
TITLE = "Backlight"
STYLE = Path(__file__).with_name("page.css")


def build(workspace: Workspace | None = None) -> gr.Blocks:
    """The page: a header, and a tab for each of `TABS`."""
    workspace = workspace or Workspace()
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=KEEP) as page:
        gr.Markdown("# Backlight\nSee what a network sees: send a vector backwards through it and look at what shines.")
        chosen = header(workspace)
        with gr.Tabs():
            for module in TABS:
                name = module.__name__.rpartition(".")[2]
                with gr.Tab(name.capitalize(), id=name):
                    module.tab(workspace, chosen)
    return page.queue(max_size=WAITING, default_concurrency_limit=4, api_open=False)


def serve(
    workspace: Workspace | None = None, host: str = "127.0.0.1", port: int | None = 7860, *, wait: bool = True,
    open_browser: bool = False,
) -> tuple[gr.Blocks, str]:  # fmt: skip
    """Run the page on this machine. Returns it and its address; with `wait`, only once it has been stopped.

    No path of this machine can be read from outside: uploads and results lie in a folder of the server's own, which
    goes with it. `port` None: any free one from 7860 on.
    """
    folder = tempfile.mkdtemp(prefix="backlight-app-")  # readable by this user alone
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ["GRADIO_TEMP_DIR"] = folder
    workspace = workspace or Workspace()
    page = build(workspace)
    try:
        _, address, _ = page.launch(
            server_name=host, server_port=port, prevent_thread_lock=True, share=False, show_error=False, quiet=True,
            inbrowser=open_browser, allowed_paths=[], max_file_size=workspace.max_upload_bytes,
            enable_monitoring=False, ssr_mode=False, mcp_server=False, run_history=False, footer_links=[],
            theme=_theme(), css_paths=STYLE, state_session_capacity=SESSIONS, strict_cors=True,
        )  # fmt: skip
    except OSError as error:
        raise InputError(f"cannot serve on port {port} of {host}: {str(error).splitlines()[0]}") from None
    if wait:
        page.block_thread()
    return page, address


def _theme() -> Any:
    """Fonts of the visitor's own machine: nothing is fetched."""
    fonts = ("system-ui", "-apple-system", "Segoe UI", "sans-serif")
    theme = gr.themes.Default(
        primary_hue="indigo", neutral_hue="slate", font=fonts, font_mono=("ui-monospace", "Consolas", "monospace")
    )
    dim, dim_dark = "*neutral_600", "*neutral_300"  # Gradio's own greys are too pale to read
    return theme.set(
        body_text_color_subdued=dim, body_text_color_subdued_dark=dim_dark, block_info_text_color=dim,
        block_info_text_color_dark=dim_dark,
    )  # fmt: skip
