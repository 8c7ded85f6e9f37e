"""The page with its tabs, and the server that runs it on this machine alone unless told otherwise."""

from __future__ import annotations

import os
import shutil
import tempfile
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import gradio as gr

from backlight.app.header import header
from backlight.app.workspace import Workspace

TABS = ("explain", "change", "concepts", "graph", "contributions")
LOCAL = ("127.0.0.1", "localhost", "::1")
WAITING = 32  # requests in the queue; the next one is told to come back
KEEP = (600, 3600)  # seconds: every ten minutes, files older than an hour go
TITLE = "Backlight"
STYLE = """
.quiet, .quiet p { font-size: 0.9rem; color: var(--body-text-color-subdued); }
#maps img { object-fit: contain !important; }
#field-picture img { cursor: crosshair; }
@media (max-width: 480px) { .gradio-container { padding: 0.5rem !important; } }
"""


def build(workspace: Workspace | None = None) -> gr.Blocks:
    """The page: a header, and a tab for each module of this room that has one."""
    workspace = workspace or Workspace()
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=KEEP) as page:
        gr.Markdown("# Backlight\nSee what a network sees: send a vector backwards through it and look at what shines.")
        chosen = header(workspace)
        with gr.Tabs():
            for name in TABS:
                if find_spec(f"backlight.app.{name}") is None:
                    continue
                with gr.Tab(name.capitalize(), id=name):
                    import_module(f"backlight.app.{name}").tab(workspace, chosen)
    return page.queue(max_size=WAITING, default_concurrency_limit=4, api_open=False)


def serve(
    workspace: Workspace | None = None, host: str = "127.0.0.1", port: int | None = 7860, *, wait: bool = True,
    open_browser: bool = False,
) -> tuple[gr.Blocks, str]:  # fmt: skip
    """Run the page on this machine. Returns it and its address; with `wait`, only once it has been stopped.

    No path of this machine can be read from outside: uploads and results lie in a folder of the server's own, which
    goes with it. `port` None: any free one from 7860 on.
    """
    workspace = workspace or Workspace()
    folder = tempfile.mkdtemp(prefix="backlight-app-")  # readable by this user alone
    before = os.environ.get("GRADIO_TEMP_DIR")
    os.environ["GRADIO_TEMP_DIR"] = folder
    try:
        page = build(workspace)
        _, address, _ = page.launch(
            server_name=host, server_port=port, prevent_thread_lock=True, share=False, show_error=False, quiet=True,
            inbrowser=open_browser, allowed_paths=[], max_file_size=workspace.max_upload_bytes,
            enable_monitoring=False, ssr_mode=False, mcp_server=False, footer_links=[], theme=_theme(), css=STYLE,
            state_session_capacity=100, strict_cors=True,
        )  # fmt: skip
        if wait:
            page.block_thread()
    finally:
        if wait:
            shutil.rmtree(folder, ignore_errors=True)
        if before is None:
            del os.environ["GRADIO_TEMP_DIR"]
        else:
            os.environ["GRADIO_TEMP_DIR"] = before
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
